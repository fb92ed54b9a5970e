"""What gates and monitors see of a run, which goes on as if nobody had looked."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLE = 256  # elements of a tensor, at most


def gather_pairs(accelerator: Any, rows: Tensor, pairs: np.ndarray | None) -> Tensor:
    """A row for each pair of all processes, from those of this process's micro-batch.

    Args:
        rows: shape (pairs here, …); or a scalar, one of each process.
        pairs: how many pairs of each process count, shape (processes,); `layout` says why they
            may differ, and be 0 where there is a row all the same. None if they do not.
    """
    if pairs is None or pairs.min() == pairs.max() or not rows.dim():
        return accelerator.gather(rows)
    most = max(pairs.max(), 1)
    padded = torch.cat([rows, rows[:1].expand(most - len(rows), *rows.shape[1:])])
    of_all = accelerator.gather(padded).split(int(most))
    return torch.cat([part[:count] for part, count in zip(of_all, pairs.tolist(), strict=True)])


@contextmanager
def gathered(accelerator: Any, pairs: np.ndarray | None = None) -> Iterator[list[Tensor]]:
    """What `accelerator.gather` returns, kept. TRL gathers the numbers of all pairs for its means,
    the last six times in this order: rewards of the chosen and the rejected, accuracies, margins,
    log-probabilities of the chosen and the rejected; each of shape (pairs of all processes,).

    Args:
        pairs: as `gather_pairs` takes them, of this micro-batch.
    """
    kept: list[Tensor] = []
    stock = accelerator.gather

    def keeping(tensor):
        accelerator.gather = stock
        kept.append(gather_pairs(accelerator, tensor, pairs))
        accelerator.gather = keeping
        return kept[-1]

    accelerator.gather = keeping
    try:
        yield kept
    finally:
        accelerator.gather = stock


def per_pair(
    accelerator: Any,
    numbers: list[Tensor],
    masks: tuple[Tensor, Tensor],
    loss: Tensor,
    pairs: np.ndarray | None = None,
) -> list[list[float]]:
    """What TRL has gathered, for each pair of all processes, in one transfer from the device:
    rewards of chosen and rejected, tokens of each, the loss of its process, log-probabilities of
    each, tokens of the prompt.

    Args:
        numbers: as `gathered` kept them.
        masks: of all tokens of this process and of its completions, shape (2B, length), chosen
            rows first.
        loss: of this process's pairs, a scalar.
        pairs: of each process, as `gather_pairs` takes them.
    """
    whole, lengths = (mask.sum(1).view(2, -1) for mask in masks)
    loss = loss.detach().float().expand(lengths.shape[1])
    own = torch.stack([*lengths, loss, whole[0] - lengths[0]], dim=1)
    rewards, logps = (torch.stack(two, dim=1) for two in (numbers[-6:-4], numbers[-2:]))
    own = gather_pairs(accelerator, own, pairs)
    return torch.cat([rewards, own[:, :3], logps, own[:, 3:]], dim=1).tolist()


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
    part: Any = getattr(tensor, "ds_tensor", tensor).detach()
    return part.to_local() if hasattr(part, "to_local") else part


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: local(p) for name, p in model.named_parameters() if p.requires_grad}


def sampled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some elements of every tensor, evenly spaced."""
    flat = {name: weight.flatten() for name, weight in weights.items() if weight.numel()}
    return {name: w[:: math.ceil(len(w) / SAMPLE)].clone() for name, w in flat.items()}
