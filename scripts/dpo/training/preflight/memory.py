"""Out of memory: which batch did it, and what to change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import Any

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from trl import DPOConfig

from dpo.core.machine import peak_memory_gb
from dpo.core.refusal import Refusal
from dpo.core.signals import tell_full
from dpo.runs import checkpoints
from dpo.training.stock import Declared

# What cuBLAS, the driver and NCCL say, beside torch's own allocator, where a GPU is full.
FULL = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "Cuda failure 2 'out of memory'")

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}


@contextmanager
def explained(trainer: Declared, doing: str | None = None) -> Iterator[None]:
    """Say which batch of `trainer` ran out of memory, and what to change, with a whole checkpoint
    behind it where one can be written.

    Of several processes only those that ran out know; torchrun ends the others.

    Args:
        doing: what is going on, for the message; by default the step that is trained.

    Raises:
        Refusal: the device's memory, or the machine's, was not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        out = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        out |= any(words in str(error) for words in FULL)
        if not out and not should_reduce_batch_size(error):
            raise
        on_gpu = trainer.accelerator.device.type == "cuda"
        most = torch.cuda.max_memory_allocated() if on_gpu else peak_memory_gb() * 1e9
        elsewhere = 0.0
        if on_gpu:  # what is not PyTorch's: this process's context, and other processes
            free, total = torch.cuda.mem_get_info()
            elsewhere = total - free - torch.cuda.memory_reserved()
        asked = asked_for(str(error))
        tell_full(trainer.launch.told_in, allocated=most, asked=asked, elsewhere=elsewhere)
        if doing is None and trainer.settled.unlogged:
            clear_frames(error.__traceback__)  # they hold the activations
            trainer.save_alone()
        doing = doing or f"step {trainer.state.global_step + 1}"
        batch = f", {described(trainer.batch)}" if trainer.batch else ""
        device, total = trainer.accelerator.device, psutil.virtual_memory().total
        if device.type == "cuda":
            total = torch.cuda.mem_get_info(device)[1]
        had = f"{device} has {total / 1e9:.1f} GB"
        ways = smaller_scoring(trainer.args, doing) or same_run(trainer.args)
        same, other = "; or ".join(ways), "; or ".join(another_run(trainer.args, trainer.model))
        whole = checkpoints.last_whole(Path(trainer.args.output_dir))
        if same:
            same = f" Change {same}, and the same command goes on from {whole or 'the start'}."
        raise Refusal(
            f"out of memory, {doing}{batch}; {had}.{same} Or change {other}, and train anew with "
            "--restart. make plan RECIPE= shows what each way needs"
        ) from None


def asked_for(message: str) -> float:
    """Bytes that were asked for when there were none, as PyTorch says it of a GPU and of a CPU; 0
    where it does not."""
    found = re.search(r"ried to allocate ([\d.]+) ?(GiB|MiB|KiB|bytes)", message)
    return float(found[1]) * UNITS[found[2]] if found else 0.0


def described(batch: dict[str, Any]) -> str:
    """The size of a batch of TRL's collator: (2B, L), chosen rows first."""
    tokens, completions = (batch[key].sum(1) for key in ("attention_mask", "completion_mask"))
    pairs = len(tokens) // 2
    prompt, chosen, rejected = (
        int(part.sum())
        for part in ((tokens - completions)[:pairs], completions[:pairs], completions[pairs:])
    )
    return (
        f"with {pairs} pairs of {prompt} prompt, {chosen} chosen and {rejected} rejected tokens, "
        f"the longest row {int(tokens.max())}"
    )


def smaller_scoring(args: DPOConfig, doing: str) -> list[str]:
    """Which batch to lower where pairs are scored and nothing is trained; [] elsewhere."""
    if not doing.startswith("scoring"):
        return []
    key = "precompute_ref_batch_size" if "reference" in doing else "per_device_eval_batch_size"
    batch = getattr(args, key) or args.per_device_train_batch_size
    return [f"{key} to {batch // 2}"] if batch > 1 else []


def same_run(args: DPOConfig) -> Iterator[str]:
    """What needs less memory and changes nothing that is learned."""
    micro, share = args.per_device_train_batch_size, args.gradient_accumulation_steps
    batch = micro * share * args.world_size
    if fewer := next((n for n in range(micro - 1, 0, -1) if micro * share % n == 0), None):
        yield (
            f"per_device_train_batch_size to {fewer} and gradient_accumulation_steps to "
            f"{batch // fewer}, the same {batch} pairs a step"
        )
    if not args.gradient_checkpointing:
        yield "gradient_checkpointing to true"


def another_run(args: DPOConfig, model: torch.nn.Module) -> Iterator[str]:
    """What needs less memory and does not fit the checkpoints that there are."""
    if args.device.type == "cuda" or args.world_size > 1:
        yield "CONFIG to zero2, zero3 or zero3_offload"
    if not hasattr(model, "peft_config"):
        yield "use_peft to true"
    yield f"max_length to less than {args.max_length or 'the longest row'}"
