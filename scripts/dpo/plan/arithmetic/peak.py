"""Bytes on a GPU at the peak of a step, term by term: what stands there all the while (memory.py),
and what a micro-batch adds, counted (counted.py)."""

from __future__ import annotations

from dataclasses import replace

from dpo.plan.arithmetic.counted import How, Kept, Pairs
from dpo.plan.arithmetic.memory import (
    BUCKET,
    SHARDED,
    SUB_GROUP,
    ZERO,
    Setting,
    Sizes,
    gathered,
    optimizer_bytes,
    standing,
)

CONTEXT = 0.6e9  # CUDA's, and NCCL's buffers; no allocator counts it
SLACK = 0.05  # of the rest, that the allocator holds and nobody uses
# Tokens and words of the output layer's tile, on a GPU and on a CPU (trl.kernels.chunked_logprob,
# prefix_sharing/head.py). A GPU's kernels work in the tile; a CPU makes numbers of 4 bytes of each
# of it: 3 at a time forward, and 7 backward.
TILE, TILE_ON_CPU = (4096, 32768), (512, 2048)
MADE_ON_CPU = 3, 7


def gradients_stand(setting: Setting) -> bool:
    """Whether there are gradients before a micro-batch goes backward: those of the one before, or
    what DeepSpeed keeps for them and zeroes."""
    zeroed = setting.config in SHARDED and setting.config in ZERO
    return setting.accumulates or zeroed or (setting.config == "zero1" and setting.half)


def tile_of(how: How, answers: int, hidden: int) -> tuple[float, float]:
    """Bytes at the output layer beside its input, forward and backward: a tile of its logits, and
    the weights and activations that it is made of where they are rounded for it."""
    item = how.dtype.itemsize
    computed = 2 if how.autocast else item
    tokens, words = TILE if how.on_gpu else TILE_ON_CPU
    tokens = min(tokens, answers)
    rounded = (tokens + words) * hidden * (computed if computed < item else 0)
    ahead, back = (0, 0) if how.on_gpu else MADE_ON_CPU
    each = tokens * words
    # On a CPU products in half precision are of float32 copies (_addmm_fp32).
    wide = 0 if how.on_gpu or computed == 4 else 4 * (each + words * hidden)
    back = max(4 * back * each, wide)
    return each * (computed + 4 * ahead) + rounded, each * computed + back + rounded


def peaks(sizes: Sizes, setting: Setting, kept: Kept, pairs: Pairs) -> dict[str, float]:
    """Bytes beside what stands there at the moments of a step that may be its peak: the end of the
    forward pass, the output layer's and the last layer's backward pass, the embeddings', and where
    all gradients are sent at once, that.

    Gradients are among them: from the second micro-batch of a step on they are there all the while,
    and before that they come as activations go.
    """
    how, hidden = setting.how, sizes.hidden
    tokens = sum(chosen + rejected for _, chosen, rejected in pairs)
    answers, item = tokens * hidden, how.dtype.itemsize
    ahead, back = tile_of(how, tokens, hidden)
    stands = gradients_stand(setting)
    whole = standing(sizes, setting)["gradients"]
    before = whole * stands
    summed = 4 if item == 4 else 4 + item  # in float32, and then as the weights are
    head, scored = sizes.head * sizes.head_trained, answers * item
    found = {
        "forward": before + kept.forward + scored + ahead,
        "head": before + kept.saved + scored + back + (answers + head) * summed,
        # The output layer's gradient waits for that of the embeddings where they are one.
        "layers": before + kept.saved + kept.backward + head * item * (sizes.tied or not stands),
        "embeddings": whole + head * item * (sizes.tied + stands),
    }
    if setting.config == "zero1" and setting.half and setting.gpus > 1:
        found["sent"] = whole + 4 * min(sizes.trained, BUCKET)  # engine.py's allreduce_bucket
    return found


def updating(sizes: Sizes, setting: Setting) -> float:
    """Bytes that the optimizer's step makes beside what stands there."""
    config, own = setting.config, sizes.trained / setting.gpus
    made = 0.0
    if config in ("zero3", "zero3_offload"):
        made = 4 * min(sizes.trained, SUB_GROUP) / setting.gpus
    elif config == "zero2" or (config == "zero1" and not setting.half):
        # A copy of all gradients, and one of each in float64 for the norm (stage_1_and_2.py).
        copies = 1 if setting.half else 2
        made = 4 * own * copies + 8 * min(sizes.head * sizes.head_trained, own)
    if setting.optim == "adamw_torch" and setting.how.on_gpu:  # a root of all second moments
        made += optimizer_bytes(sizes, replace(setting, optim="adagrad"))
        made -= optimizer_bytes(sizes, replace(setting, optim="sgd"))
    return made


def terms(sizes: Sizes, setting: Setting, kept: Kept, pairs: Pairs) -> dict[str, float]:
    """Bytes on a GPU at the peak of a step, by what they are; their sum is the peak."""
    found = standing(sizes, setting)
    whole = sum(found.values())
    moments = peaks(sizes, setting, kept, pairs)
    rest, gathers = max(moments.values()), gathered(sizes, setting)
    updates = updating(sizes, setting)
    sent = found["communication"] if setting.config in ZERO else 0.0  # and then let go of
    if whole - sent + updates > whole - found["gradients"] + gathers + rest:
        found |= {"communication": found["communication"] - sent}
        found |= {"gathered": 0.0, "activations": 0.0, "at work": updates}
    else:
        late = max(moments, key=moments.__getitem__) in ("embeddings", "sent")
        found["gradients"] *= 1 if late else gradients_stand(setting)
        activations = 0.0 if late else kept.saved
        found |= {"gathered": gathers, "activations": activations}
        found["at work"] = rest - found["gradients"] - activations
    if setting.how.on_gpu:
        found["CUDA"] = CONTEXT
        found["slack"] = SLACK * sum(found.values())
    return found
