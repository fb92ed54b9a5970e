"""Bytes that stand on a GPU from micro-batch to micro-batch, by the arithmetic of each config."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from dpo.plan.arithmetic.counted import How

SHARDED = ("fsdp2", "zero3", "zero3_offload")  # the weights too
ZERO = ("zero1", "zero2", "zero3", "zero3_offload")
# States that an optimizer keeps of each number that is trained, by what transformers' name of it
# begins with; others are taken for AdamW. Adafactor keeps one to a row and one to a column.
STATES = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
ADAMW = 2
# Numbers, by DeepSpeed's defaults (runtime/zero/config.py): each of the two buffers that gradients
# are sent from (reduce_bucket_size, overlap_comm), weights that ZeRO-3 keeps gathered
# (stage3_max_live_parameters, stage3_max_reuse_distance), and the largest tensor of which every GPU
# keeps a copy (stage3_param_persistence_threshold; "auto" is ten times the hidden size, but the
# engine that scores a reference has the default, and what it has marked stays marked), weights that
# ZeRO-3 updates at once (sub_group_size).
BUCKET, LIVE, PERSISTENT, SUB_GROUP = 5e8, 1e9, 1e5, 1e9


@dataclass(frozen=True)
class Sizes:
    """Numbers in a model.

    Attributes:
        frozen, trained: those that training leaves as they are, and changes.
        head: of the output layer, and of the embeddings.
        head_trained: whether the output layer is trained.
        layer: of the largest layer.
        vocabulary, hidden: of the output layer.
        tied: the embeddings are the output layer.
        persistent: of the tensors that ZeRO-3 leaves whole on every GPU.
        quantized: of the frozen ones, those kept in 4 bits.
        nested: whether the scales of these are quantized too.
    """

    frozen: int
    trained: int
    head: int
    head_trained: bool
    layer: int
    vocabulary: int
    hidden: int
    tied: bool
    persistent: int
    quantized: int = 0
    nested: bool = False


def sizes_of(
    model: PreTrainedModel, adapter=None, four_bits: bool = False, nested: bool = False
) -> Sizes:
    """Of a model on the meta device, on which the adapter is put if there is one."""
    total = sum(p.numel() for p in model.parameters())
    layers = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    largest = max(
        (sum(p.numel() for p in layer.parameters()) for part in layers for layer in part),
        default=total,
    )
    head = model.get_output_embeddings()
    packed = [
        part.weight
        for part in model.modules()
        if four_bits and isinstance(part, torch.nn.Linear) and part is not head
    ]
    trained, head_trained = total, True
    if adapter is not None:
        from peft import get_peft_model

        made = get_peft_model(model, copy.deepcopy(adapter))
        trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
        head_trained = any(p.requires_grad for p in made.get_output_embeddings().parameters())
    least = max(PERSISTENT, 10 * head.weight.shape[1])
    whole = {id(p): p.numel() for p in model.parameters()}  # the adapter's too
    for weight in packed:
        del whole[id(weight)]
    return Sizes(
        total if adapter is not None else 0,
        trained,
        head.weight.numel(),
        head_trained,
        largest,
        *head.weight.shape,
        tied=head.weight is model.get_input_embeddings().weight,
        persistent=sum(size for size in whole.values() if size <= least),
        quantized=sum(weight.numel() for weight in packed),
        nested=nested,
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
        loaded: dtype that the model is loaded in.
    """

    config: str
    gpus: int
    live: bool
    accumulates: bool
    optim: str
    how: How
    half: bool
    loaded: torch.dtype


def states(optim: str, itemsize: int) -> float:
    """Bytes of an optimizer's states for each number that is trained.

    Args:
        itemsize: bytes of the number; torch's optimizers keep states as they keep the number.
    """
    name = optim.removeprefix("paged_")
    kept = next((many for known, many in STATES.items() if name.startswith(known)), ADAMW)
    if name.endswith("8bit"):
        return kept * (1 + 4 / 256)  # a float32 scales 256 of them
    bitsandbytes = name.endswith("32bit") or name in ("ademamix", "rmsprop_bnb")
    return kept * (4 if bitsandbytes else itemsize)


def optimizer_bytes(sizes: Sizes, setting: Setting) -> float:
    """Bytes that a process keeps of an optimizer's states."""
    optim, own = setting.optim, item_sizes(sizes, setting)[1]
    if setting.config in ZERO:  # on flat float32 copies of the weights, which have no columns
        each = 4 if optim == "adafactor" else states(optim, 4)
        return (4 + each) * sizes.trained / setting.gpus
    found = states(optim, own) * sizes.trained
    if optim.endswith("8bit") and not sizes.frozen:  # Trainer keeps those of embeddings in float32
        found += sizes.head * (states(optim.replace("8bit", "32bit"), 4) - states(optim, own))
    return found / (setting.gpus if setting.config in SHARDED else 1)


def item_sizes(sizes: Sizes, setting: Setting) -> tuple[int, int]:
    """Bytes of a number that is not trained, such as a live reference's, and of one that is."""
    config, loaded = setting.config, setting.loaded.itemsize
    if config in ZERO and setting.half:  # DeepSpeed casts all of it
        return 2, 2
    if sizes.quantized:  # TRL casts the adapter on it to bfloat16
        return loaded, 2
    if config in ZERO and config in SHARDED:  # zero.Init makes weights in DeepSpeed's own dtype
        return 4, 4
    if config == "fsdp2" and setting.half:  # accelerate casts what is trained to float32
        return loaded, 4
    return loaded, 4 if sizes.frozen else loaded  # peft keeps an adapter in float32


def packed(sizes: Sizes) -> tuple[float, float]:
    """Bytes of the weights in 4 bits, and of their scales, one to a block of 64 numbers."""
    scale = 1 + 4 / 256 if sizes.nested else 4
    return sizes.quantized / 2, sizes.quantized / 64 * scale


def held(sizes: Sizes, setting: Setting) -> dict[str, float]:
    """Bytes that a process keeps from one micro-batch to the next, wherever they lie, by what they
    are."""
    config, gpus, trained = setting.config, setting.gpus, sizes.trained
    zero, parts = config in ZERO, gpus if config in SHARDED else 1
    item, trained_item = item_sizes(sizes, setting)
    weights = (sizes.frozen - sizes.quantized) * item + trained * trained_item
    bits, scales = packed(sizes)  # FSDP leaves them whole: accelerate has it ignore integers
    own = setting.live and not sizes.frozen
    if zero:
        gradient = 4 / gpus
        if config == "zero1" and setting.half:
            gradient = 2 + 4  # bf16_optimizer.py: kept beside their sums, zeroed and not freed
        elif config == "zero1" and setting.accumulates:
            gradient = 4  # sent after the last micro-batch (stage_1_and_2.py)
        elif config == "zero2" and setting.accumulates and trained_item == 4:
            gradient = 2 * 4 / gpus  # those of a micro-batch beside their sum (all_grad_tensors)
    else:
        gradient = trained_item / parts
    sent = 0.0
    if config == "ddp" and gpus > 1:
        sent = trained * trained_item  # a second copy of gradients: gradient_as_bucket_view is off
    elif config == "zero2":
        sent = 2 * BUCKET * trained_item  # two whole buffers, however small the model
    elif config == "zero1" and not setting.half:
        sent = 2 * BUCKET * 4
    elif zero and config in SHARDED:
        sent = sizes.hidden**2 * (2 if setting.half else 4)  # reduce_bucket_size by "auto"
    return {
        "policy": weights / parts + bits / (parts if zero else 1) + scales,
        "gradients": trained * gradient,
        "optimizer": optimizer_bytes(sizes, setting),
        "reference": trained * item / parts * own,
        "communication": sent,
    }


def standing(sizes: Sizes, setting: Setting) -> dict[str, float]:
    """Bytes on a GPU that stand there from micro-batch to micro-batch, by what they are: gradients
    as they are before the last one of a step has gone backward, or after the only one."""
    found = held(sizes, setting)
    if setting.config == "zero3_offload":
        found |= dict.fromkeys(("policy", "gradients", "optimizer", "reference"), 0.0)
    if setting.config == "zero3_offload" or (setting.config == "zero3" and setting.gpus > 1):
        whole = sizes.persistent * item_sizes(sizes, setting)[0]
        found["policy"] += whole
        found["reference"] += whole * (setting.live and not sizes.frozen)
    return found


def streamed(sizes: Sizes, config: str) -> float:
    """Bytes of weights that each GPU gets in a micro-batch where they are offloaded: all of them
    in half precision, forward and backward."""
    return 4 * (sizes.frozen + sizes.trained) if config == "zero3_offload" else 0


def machine(sizes: Sizes, setting: Setting) -> float:
    """Bytes of the machine's own memory in which a process keeps what is offloaded."""
    if setting.config != "zero3_offload":
        return 0.0
    found = held(sizes, setting)
    # stage3.py has the gradients of a step there twice: their sums, and what the optimizer reads.
    return sum(found.values()) - found["communication"] + found["gradients"]


def gathered(sizes: Sizes, setting: Setting) -> float:
    """The most bytes of weights that a GPU has whole at any one time where they are sharded, and of
    buffers that they come and gradients leave by, beside `standing`."""
    if setting.config not in SHARDED or (setting.config == "zero3" and setting.gpus == 1):
        return 0.0  # a single process has the weights where it computes
    item, trained_item = item_sizes(sizes, setting)
    own = setting.live and not sizes.frozen  # a reference beside the policy
    bits, _ = packed(sizes)
    every = sizes.frozen + sizes.trained
    if setting.config == "fsdp2":
        # accelerate's utils/fsdp_utils.py keeps the output layer from the end of the forward pass
        # to the beginning of the backward; torch's _fully_shard/_fsdp_param_group.py has a layer,
        # the next, and a buffer that one comes by. The gradients of one leave in float32.
        computed = 2 if setting.half else trained_item
        sent = 0 if sizes.frozen else 4 if setting.half else trained_item
        layers = (sizes.head + 3 * sizes.layer) * computed + sizes.layer * sent
        # TRL's prepare_fsdp has a live reference gathered whole while it scores.
        return max(layers, own * every * (2 if setting.half else item))
    # A layer that is asked for is fetched beyond the limit (partitioned_param_coordinator.py).
    whole = min(every, LIVE + max(sizes.head, sizes.layer))
    each = ((every - sizes.quantized) * item + bits) / every
    return max(whole * each - sizes.persistent * item, 0.0) * (1 + own)
