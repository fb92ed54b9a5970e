"""Bytes of a training step on one GPU, term by term: what stands there all the while, by the
arithmetic of each launch config, and what a micro-batch adds, counted (counted.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from dpo.plan.counted import How, Kept, Pairs

SHARDED = ("fsdp2", "zero3", "zero3_offload")  # the weights too
ZERO = ("zero1", "zero2", "zero3", "zero3_offload")
# Bytes of an optimizer's states for each number of 4 bytes that is trained; of one of 2 bytes
# torch's own take half. Others are taken for AdamW.
STATES = {"sgd": 0, "adafactor": 0, "rmsprop": 4, "adagrad": 4, "lion_32bit": 4, "lion_8bit": 1}
STATES |= {"paged_lion_8bit": 1, "paged_lion_32bit": 4}
STATES |= {"adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "rmsprop_bnb": 4}
ADAMW = 8
# What DeepSpeed's own defaults and its "auto" leave to it, in numbers.
BUCKET, LIVE = 5e8, 1e9  # of ZeRO-1 and 2, two with overlap_comm; weights that ZeRO-3 keeps gathered
CONTEXT = 0.6e9  # CUDA's, and NCCL's buffers; no allocator counts it
SLACK = 0.05  # of the rest, that the allocator holds and nobody uses
TILE = 4096 * 32768, 512 * 2048  # numbers of the head's tile, on a GPU and on a CPU


@dataclass(frozen=True)
class Sizes:
    """Numbers in a model.

    Attributes:
        frozen, trained: those that training leaves as they are, and changes.
        head: of the output layer, and of the embeddings.
        head_trained: whether the output layer is trained.
        layer: of the largest layer.
        vocabulary, hidden: of the output layer.
        quantized: of the frozen ones, those kept in 4 bits.
    """

    frozen: int
    trained: int
    head: int
    head_trained: bool
    layer: int
    vocabulary: int
    hidden: int
    quantized: int = 0


def sizes_of(model: PreTrainedModel, adapter=None, four_bits: bool = False) -> Sizes:
    """Of a model on the meta device, on which the adapter is put if there is one."""
    total = sum(p.numel() for p in model.parameters())
    layers = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    largest = max(
        (sum(p.numel() for p in layer.parameters()) for part in layers for layer in part),
        default=total,
    )
    head = model.get_output_embeddings()
    linear = sum(
        part.weight.numel()
        for part in model.modules()
        if isinstance(part, torch.nn.Linear) and part is not head
    )
    trained, head_trained = total, True
    if adapter is not None:
        import copy

        from peft import get_peft_model

        made = get_peft_model(model, copy.deepcopy(adapter))
        trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
        head_trained = any(p.requires_grad for p in made.get_output_embeddings().parameters())
    return Sizes(
        total if adapter is not None else 0,
        trained,
        head.weight.numel(),
        head_trained,
        largest,
        *head.weight.shape,
        quantized=linear * four_bits,
    )


@dataclass(frozen=True)
class Setting:
    """Where and how a model is trained, beside how a micro-batch is computed.

    Attributes:
        config: of accelerate_configs/.
        gpus: over which it shards.
        live: the reference is in memory while the policy trains.
        accumulates: a step has several micro-batches.
        optim: the optimizer, by transformers' name.
        how: of the micro-batch.
        half: numbers that are sent and gathered are bfloat16.
    """

    config: str
    gpus: int
    live: bool
    accumulates: bool
    optim: str
    how: How
    half: bool


def states(optim: str, itemsize: int) -> float:
    """Bytes of an optimizer's states for each number that is trained.

    Args:
        itemsize: bytes of the number; torch's optimizers keep states as they keep the number.
    """
    found = STATES.get(str(optim), ADAMW)
    return found * itemsize / 4 if "8bit" not in str(optim) and "bnb" not in str(optim) else found


def standing(sizes: Sizes, setting: Setting) -> dict[str, float]:
    """Bytes on a GPU that stand there from step to step, by what they are."""
    config, gpus = setting.config, setting.gpus
    zero, sharded = config in ZERO, config in SHARDED
    offloaded = config == "zero3_offload"
    own = setting.how.dtype.itemsize  # as the model is loaded
    item = (2 if setting.half else 4) if zero else own
    if config == "fsdp2" and setting.half:
        item = 4
    trained_item = 4 if sizes.frozen and not zero else item  # peft keeps an adapter in float32
    parts = gpus if sharded else 1
    frozen = (sizes.frozen - sizes.quantized) * item + 0.5 * sizes.quantized * (1 + 1 / 32)
    weights = (frozen + sizes.trained * trained_item) / parts
    reference = (frozen or sizes.trained * item) / parts * (setting.live and not sizes.frozen)
    if zero:
        gradient = 4 * sizes.trained / gpus  # float32 sums
        if config == "zero1":
            gradient = sizes.trained * (item + 4)
        masters = 4 if setting.half or config in ("zero1", "zero2") else 0
        optimizer = (masters + states(setting.optim, 4)) * sizes.trained / gpus
    else:
        gradient = sizes.trained * trained_item / parts
        optimizer = states(setting.optim, trained_item) * sizes.trained / parts
    communication = 0.0
    if config == "ddp" and gpus > 1:
        communication = sizes.trained * trained_item  # its buckets are a second copy of gradients
    if config in ("zero1", "zero2"):
        bucket = min(BUCKET, sizes.trained)
        communication = 2 * bucket * item
    if offloaded:
        weights = gradient = optimizer = reference = 0.0
    return {
        "policy": weights,
        "gradients": gradient,
        "optimizer": optimizer,
        "reference": reference,
        "communication": communication,
    }


def peaks(sizes: Sizes, setting: Setting, kept: Kept, pairs: Pairs) -> dict[str, float]:
    """Bytes beside what stands there at the moments of a step that may be its peak: the end of the
    forward pass, the output layer's and the last layer's backward pass, and the embeddings'.

    Gradients are among them: from the second micro-batch of a step on they are there all the while,
    and before that they come as activations go.
    """
    how, hidden = setting.how, sizes.hidden
    answers = sum(chosen + rejected for _, chosen, rejected in pairs) * hidden
    item, computed = how.dtype.itemsize, 2 if how.autocast else how.dtype.itemsize
    tile = computed * min(TILE[not how.on_gpu], answers // hidden * sizes.vocabulary)
    gradients = standing(sizes, setting)["gradients"]
    before = gradients if setting.accumulates else 0
    head = sizes.head * (4 if item == 4 else 4 + item) * sizes.head_trained
    kept_head = 0 if setting.accumulates else sizes.head * item * sizes.head_trained
    scored = answers * item
    return {
        "forward": before + kept.forward + scored + tile,
        "head": before
        + kept.saved
        + scored
        + answers * (4 if item == 4 else 4 + item)
        + head
        + tile,
        "layers": before + kept_head + kept.saved + kept.backward,
        "embeddings": gradients + sizes.head * item * sizes.head_trained,
    }


def terms(sizes: Sizes, setting: Setting, kept: Kept, pairs: Pairs) -> dict[str, float]:
    """Bytes on a GPU at the peak of a step, by what they are; their sum is the peak."""
    found = standing(sizes, setting)
    moments = peaks(sizes, setting, kept, pairs)
    rest = max(moments.values())
    if max(moments, key=moments.__getitem__) == "embeddings":
        activations = 0.0
    else:
        found["gradients"] *= setting.accumulates
        activations = kept.saved
    found["activations"] = activations
    found["at work"] = rest - found["gradients"] - activations
    if setting.how.on_gpu:
        found["CUDA"] = CONTEXT
        found["slack"] = SLACK * sum(found.values())
    return found


def machine(sizes: Sizes, setting: Setting) -> float:
    """Bytes of a machine's own memory that hold what is offloaded."""
    if setting.config != "zero3_offload":
        return 0.0
    return (sizes.frozen + sizes.trained) * 2 + sizes.trained * 16
