"""Positions that go by the batch: RoPE whose frequencies hang on the longest row beside a row.

`longrope` has one set of frequencies up to the length that the model was pretrained with, and
another for every row of a batch that has a longer one; `dynamic` stretches them to the longest row.
A row's log-probability then depends on what it is batched with. Policy and reference agree where
both see the same batch, and not where the reference was scored beforehand, in batches of its own.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig
from trl import DPOConfig


def limits(config: PreTrainedConfig) -> Iterator[tuple[str, int]]:
    """The kinds of RoPE in a model that go by the batch, and the tokens from which they do."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for each in (rope, *rope.values()):  # one for all layers, or one for each type of layer
        kind = each.get("rope_type") if isinstance(each, dict) else None
        if kind not in ("longrope", "dynamic"):
            continue
        known = (where.get("original_max_position_embeddings") for where in (each, vars(text)))
        lengths = [*filter(None, known)] or [text.max_position_embeddings]
        if kind == "dynamic":
            lengths.append(text.max_position_embeddings)
        yield kind, min(lengths)


def forget_longer_batches(model: torch.nn.Module) -> None:
    """Have `dynamic` frequencies go by the batch at hand. In transformers they stay stretched to
    the longest row so far: a run that goes on would compute otherwise than one that was not
    stopped, and a policy that has answered prompts otherwise than its reference."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.register_forward_pre_hook(_as_at_the_start)


def _as_at_the_start(module: torch.nn.Module, _: Any) -> None:
    for name in [*vars(module), *module._buffers]:
        if name.endswith("original_inv_freq"):  # of all layers, or of one type of layer
            kind = name.removesuffix("original_inv_freq")
            old, new = getattr(module, f"{kind}inv_freq"), getattr(module, name)
            module.register_buffer(f"{kind}inv_freq", new.to(old.device), persistent=False)
            setattr(module, f"{kind}max_seq_len_cached", module.original_max_seq_len)


def by_batch(model: Any, args: DPOConfig, longest: float) -> str | None:
    """Why the log-probabilities of rows depend on those beside them; None if they do not.

    Args:
        model: a name that TRL would load with `args`, or the model.
        longest: tokens of the longest row that will be trained on or held out (schema.py).
    """
    config = getattr(model, "config", None)
    if config is None:
        init: Any = args.model_init_kwargs or {}  # parsed by now
        how = {"trust_remote_code": args.trust_remote_code, **init}
        config = AutoConfig.from_pretrained(model, **how)
    for kind, limit in limits(config):
        if longest > limit:
            rows = f"up to {longest:g} tokens" if np.isfinite(longest) else "any length"
            return (
                f"beyond {limit} tokens this model's RoPE (type {kind}) goes by the longest row of "
                f"a batch, and rows are of {rows}"
            )
    return None
