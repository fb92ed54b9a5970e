"""Why keys of other tools have no counterpart here, where several have the same reason."""


def because(*groups: tuple[str, str]) -> dict[str, str]:
    """Each key to the reason of its group; a group is a reason and its keys."""
    return {key: reason for reason, keys in groups for key in keys.split()}


AT_LAUNCH = "make train CONFIG= says how a run is sharded"
BATCHES = "prefix sharing has no padding to pack away"
ATTENTION = "attn_implementation says it; prefix sharing has attention of its own"
TOKENIZER = "the tokenizer is the model's, with its own special tokens"
TEMPLATE = "the model's own chat template, or another with chat_template_path"
PREPARED = "rows are read, checked and kept by content"
KERNELS = "not here: it changes speed or memory, not what is learned"
WANDB = "W&B reads its environment: WANDB_PROJECT, WANDB_ENTITY"
NOT_WANDB = "W&B and a local page are the trackers here"
NOT_DPO = "it is no part of DPO"
GENERATES = "make evaluate does it"
AT_AI2 = "it starts jobs of the authors' own cluster"
UNLIKE = "there is no such method here"
