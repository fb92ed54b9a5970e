"""Bytes of a reference that is a model of its own, of another size than the policy it may be: while
the policy trains, if it is live, and else while it is scored, before step 1."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from dpo.plan.arithmetic import memory
from dpo.plan.arithmetic.bounds import bound, each_token
from dpo.plan.arithmetic.counted import How, Pairs, kept, without_weights
from dpo.plan.arithmetic.memory import ZERO, Setting, Sizes
from dpo.plan.arithmetic.peak import CONTEXT, SLACK, tile_of


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference of its own.

    Attributes:
        model: on the meta device.
        sizes: all of it frozen.
    """

    config: PreTrainedConfig
    model: Any
    sizes: Sizes


def made(
    config: PreTrainedConfig, attention: str | None, four_bits: bool, nested: bool
) -> Reference:
    model: Any = without_weights(config, attention=attention)
    sizes = memory.sizes_of(model, None, four_bits, nested)
    sizes = replace(sizes, frozen=sizes.trained, trained=0, head_trained=False)
    return Reference(config, model, sizes)


@functools.cache
def work(reference: Reference, pairs: Pairs, how: How) -> float:
    """Bytes beside the weights while it scores these pairs: nothing is kept from layer to layer but
    hidden states, then those of completions and a tile of the output layer."""
    how = replace(how, checkpointing=True, adapter=None)
    try:
        found = kept(reference.config, pairs, how)
    except Exception:  # of an architecture that cannot be counted, as options.count says
        found = bound(reference.config, pairs, how, each_token(reference.config, how))
    sizes, item = reference.sizes, how.dtype.itemsize
    tokens = sum(map(sum, pairs)) * sizes.hidden * item
    answers = sum(chosen + rejected for _, chosen, rejected in pairs)
    tile, _ = tile_of(how, answers, sizes.hidden)
    return tokens + max(found.forward - found.saved, answers * sizes.hidden * item + tile)


def stands(reference: Reference, setting: Setting) -> float:
    """Bytes on a GPU of its weights, as a config places them."""
    return memory.standing(reference.sizes, setting)["policy"]


def gathered(reference: Reference, setting: Setting) -> float:
    """Bytes of its weights that a GPU has whole while it scores, where they are sharded."""
    if setting.config == "fsdp2":  # TRL's prepare_fsdp has all of it gathered
        item = 2 if setting.half else memory.item_sizes(reference.sizes, setting)[0]
        return reference.sizes.frozen * item
    return memory.gathered(reference.sizes, setting)


def machine(reference: Reference, setting: Setting) -> float:
    """Bytes of its weights that a process keeps in the machine's own memory."""
    return memory.machine(reference.sizes, setting)


def on_gpu(terms: dict[str, float]) -> dict[str, float]:
    """Terms with what CUDA and its allocator hold beside them."""
    found = {name: size for name, size in terms.items() if name not in ("CUDA", "slack")}
    found["CUDA"] = CONTEXT
    return found | {"slack": SLACK * sum(found.values())}


def live(
    reference: Reference, setting: Setting, terms: dict[str, float], needs: float
) -> dict[str, float]:
    """Terms of a step in which it scores each micro-batch, after the policy's forward pass.

    Args:
        terms: of the same step without a reference.
        needs: `work` on the micro-batch.
    """
    own = gathered(reference, setting)
    whole = max(terms["gathered"], own) if setting.config == "fsdp2" else terms["gathered"] + own
    found = terms | {"reference": stands(reference, setting), "gathered": whole}
    return on_gpu(found | {"at work": max(terms["at work"], needs)})


def beforehand(
    reference: Reference, sizes: Sizes, setting: Setting, needs: float
) -> dict[str, float]:
    """Terms of the moment at which it scores all pairs, before step 1: beside the policy, and under
    ZeRO beside the optimizer too.

    Args:
        sizes: the policy's.
        needs: `work` on the longest batch.
    """
    held = memory.standing(sizes, replace(setting, live=False))
    found = {"policy": held["policy"], "gradients": 0.0}
    found["optimizer"] = held["optimizer"] if setting.config in ZERO else 0.0
    found |= {"reference": stands(reference, setting), "communication": 0.0}
    found |= {"gathered": gathered(reference, setting), "activations": 0.0, "at work": needs}
    return on_gpu(found)


def at_peak(
    reference: Reference, sizes: Sizes, setting: Setting, terms: dict[str, float], pairs: Pairs
) -> dict[str, float]:
    """Terms of a run's peak beside it.

    Args:
        sizes: the policy's.
        terms: of a step without a reference.
        pairs: the longest that it scores at once, in a step or beforehand.
    """
    needs = work(reference, pairs, setting.how)
    if setting.live:
        return live(reference, setting, terms, needs)
    scoring = beforehand(reference, sizes, setting, needs)
    return max(terms, scoring, key=lambda moment: sum(moment.values()))
