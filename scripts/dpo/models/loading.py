"""A model as it is loaded: all of its weights, no others, and on which GPUs.

transformers and peft draw what is missing at random, print so and go on. Policy and reference
would have the same random numbers, and no check that compares the two would see it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, modeling_utils

from dpo.core.refusal import Refusal

MASKS = (".attn.masked_bias", ".attention.masked_bias", ".attn.bias", ".attention.bias")
MASKS += (".attn.causal_mask",)
HEAD = "If the head is its embedding, state tie_word_embeddings: true in its config.json. "


def some(names: Iterable[str]) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def refuse(name: str, kind: str, **wrong: Iterable[str]) -> None:
    """Raises Refusal if there are names of weights in `wrong`, each list called by its key."""
    if any(wrong.values()):
        parts = "; ".join(f"{key}: {some(names)}" for key, names in wrong.items() if names)
        raise Refusal(
            f"the weights in {name} are not those of {kind}: {parts}. "
            + "Missing ones would be random numbers. " * bool(wrong.get("missing"))
            + HEAD * ("lm_head.weight" in (*wrong.get("missing", ()),))
            + "Give a folder that save_pretrained of that class wrote"
        )


@contextmanager
def whole() -> Iterator[None]:
    """Where models are loaded in here, refuse weights that are missing, left over or of another
    shape. Tied weights, and what transformers knows to be of no importance, are aside.

    transformers has seen all this when it reports what it loaded, whichever way it loaded (sharded,
    quantised, renamed); peft returns it for an adapter.

    Raises:
        Refusal: there are such weights, or the model predicts no words.
    """
    from peft import PeftModel

    report, load_adapter = modeling_utils.log_state_dict_report, PeftModel.load_adapter

    def checked(model: PreTrainedModel, pretrained_model_name_or_path: str, *args, **kwargs):
        found, name = kwargs["loading_info"], pretrained_model_name_or_path
        if sys.exc_info()[0]:  # it reports on a load that failed, too
            return report(model, name, *args, **kwargs)
        # Masks that older versions saved as buffers, constants of causal attention.
        masks = {key for key, _ in model.named_buffers()}
        more = [k for k in found.unexpected_keys if k not in masks and not k.endswith(MASKS)]
        refuse(
            name,
            type(model).__name__,
            missing=found.missing_keys,
            unexpected=more,
            mismatched=[key[0] for key in found.mismatched_keys],
        )
        head = model.get_output_embeddings()
        if head is None:
            raise Refusal(f"{name} is a {type(model).__name__}, which predicts no words")
        if getattr(head, "weight", None) is not model.get_input_embeddings().weight:
            # As saved the policy would lose its head where a config says that it has none of its
            # own, as those of some merged models do.
            for config in (model.config, model.config.get_text_config()):
                config.tie_word_embeddings = False
        return report(model, name, *args, **kwargs)

    def checked_adapter(self: PeftModel, model_id: str, *args, **kwargs) -> Any:
        found = load_adapter(self, model_id, *args, **kwargs)
        if not self.active_peft_config.is_prompt_learning:  # which peft loads apart
            kind = f"its adapter on {type(self.get_base_model()).__name__}"
            refuse(model_id, kind, missing=found.missing_keys, unexpected=found.unexpected_keys)
        return found

    modeling_utils.log_state_dict_report = checked
    PeftModel.load_adapter = checked_adapter  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        modeling_utils.log_state_dict_report = report
        PeftModel.load_adapter = load_adapter


# Spread over several, a model computes on one of them at a time, its prompts are not shared, and
# every GPU has to be free: a model that is asked and not trained is put on one where it fits.
ROOM = 0.75  # of the memory; the rest is for activations, and the keys and values of what is read


def weight_bytes(
    config: PretrainedConfig, dtype: str = "auto", kind: Any = AutoModelForCausalLM, **how: Any
) -> int:
    """Size of a model's weights in a dtype ("auto": its own), from its shape: no file is read.
    Weights in fewer bits, such as 4, count as if they were whole."""
    with torch.device("meta"):
        model = kind.from_config(config, **how)
    given: Any = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
    return sum(parameter.numel() for parameter in model.parameters()) * given.itemsize


def device_map(device: str, size: Callable[[], int]) -> dict[str, str] | str | None:
    """As `from_pretrained` takes it: `device` where weights of `size` bytes leave room on it, else
    all GPUs, and after them the machine's memory; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    one = torch.device(device).index or 0
    ours = torch.cuda.memory_reserved(one) - torch.cuda.memory_allocated(one)  # to be used again
    free = torch.cuda.mem_get_info(one)[0] + ours
    return {"": f"cuda:{one}"} if size() <= ROOM * free else "auto"


def tensor_parallel(size: int, heads: int, share: float) -> int:
    """The GPUs that vLLM needs, which deals attention heads out evenly: the fewest whose `share`
    of memory holds weights of `size` bytes and as much again for keys and values; else all."""
    gpus = max(torch.cuda.device_count(), 1)
    even = [n for n in range(1, gpus + 1) if heads % n == 0]
    memory = share * torch.cuda.mem_get_info(0)[1]
    return next((n for n in even if 2 * size <= n * memory), even[-1])


def room_beside(share: float) -> bool:
    """Whether every GPU has `share` of its memory free beside the models that lie there, as vLLM
    asks when it starts."""
    torch.cuda.empty_cache()
    gpus = map(torch.cuda.mem_get_info, range(torch.cuda.device_count()))
    return all(free >= share * total for free, total in gpus)
