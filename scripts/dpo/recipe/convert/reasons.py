"""Why keys of other tools have no counterpart here, where several have the same reason."""


def by_key(groups: dict[str, str]) -> dict[str, str]:
    """Each key to what is said of it, from what is said and the keys of which it is."""
    return {key: said for said, keys in groups.items() for key in keys.split()}


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
DPO = "DPO is what is done here"
REFERENCE = "the reference is what the policy starts from"
CUT_WHOLE = "a pair is cut as a whole, by max_length"
TRUNCATED = "truncation_mode cuts; what is left without a completion is set aside"
CONFIGURED = "the model's configuration says it"
ORDER = "train_sampling_strategy: sequential takes rows as they come"
WATCHED = "a loss that stays high or is not finite ends a run in any case"
ACCURACY = "accuracy is measured in any case"
ONE_FOLDER = "all of a run lies in output_dir"
TEXT = "text alone is trained on here"
NOTHING_LEFT = "nothing looks at it any more"
FIRST_ROWS = "the original draws its shares at random; here they are the first rows"
