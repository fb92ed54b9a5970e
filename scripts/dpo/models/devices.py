"""On which GPUs a model is put that is asked and not trained: on one where it fits.

Spread over several, a model computes on one of them at a time, its prompts are not shared
(backbone.py), and every GPU has to be free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

ROOM = 0.75  # of the memory; the rest is for activations, and the keys and values of what is read


def weight_bytes(
    config: PretrainedConfig, dtype: str = "auto", kind: Any = AutoModelForCausalLM, **how: Any
) -> int:
    """Size of a model's weights in a dtype ("auto": its own), from its shape: no file is read.
    Weights in fewer bits, such as 4, count as if they were whole."""
    with torch.device("meta"):
        model = kind.from_config(config, **how)
    given = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
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
