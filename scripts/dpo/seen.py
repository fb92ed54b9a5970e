"""What gates and monitors see of a run, which goes on as if nobody had looked."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

SAMPLE = 256  # elements of a tensor, at most


@contextmanager
def gathered(accelerator: Accelerator) -> Iterator[list[Tensor]]:
    """What `accelerator.gather` returns, kept. TRL gathers the numbers of all pairs for its means,
    the last six times in this order: rewards of the chosen and the rejected, accuracies, margins,
    log-probabilities of the chosen and the rejected; each of shape (pairs of all processes,)."""
    kept: list[Tensor] = []
    gather = accelerator.gather

    def keeping(tensor):
        kept.append(gather(tensor))
        return kept[-1]

    accelerator.gather = keeping
    try:
        yield kept
    finally:
        del accelerator.gather


def per_pair(
    accelerator: Accelerator, numbers: list[Tensor], completion_mask: Tensor, loss: Tensor
) -> list[list[float]]:
    """What TRL has gathered, for each pair of all processes, in one transfer from the device:
    rewards of chosen and rejected, tokens of each, the loss of its process, log-probabilities of
    each.

    Args:
        numbers: as `gathered` kept them.
        completion_mask: of this process, shape (2B, length), chosen rows first.
        loss: of this process's pairs, a scalar.
    """
    lengths = completion_mask.sum(1).view(2, -1)
    own = torch.stack([*lengths, loss.detach().float().expand(lengths.shape[1])], dim=1)
    rewards, logps = (torch.stack(two, dim=1) for two in (numbers[-6:-4], numbers[-2:]))
    return torch.cat([rewards, accelerator.gather(own), logps], dim=1).tolist()


@contextmanager
def own_draws(device: torch.device) -> Iterator[None]:
    """Give the run's random generators back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def local(tensor: Tensor) -> Tensor:
    """The part of a parameter, or of its gradient, that this process holds: all, or its shard under
    ZeRO-3 or FSDP."""
    part = getattr(tensor, "ds_tensor", tensor).detach()
    return part.to_local() if hasattr(part, "to_local") else part


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: local(p) for name, p in model.named_parameters() if p.requires_grad}


def sampled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some elements of every tensor, evenly spaced."""
    flat = {name: weight.flatten() for name, weight in weights.items() if weight.numel()}
    return {name: w[:: math.ceil(len(w) / SAMPLE)].clone() for name, w in flat.items()}
