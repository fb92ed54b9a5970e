"""One way to train a recipe, whether it fits, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dpo.plan.arithmetic.hours import Cost

SURE = 0.9  # of the memory: a plan may be off by as much as it leaves free


@dataclass(frozen=True)
class Option:
    """One way to train a recipe.

    Attributes:
        config: of accelerate_configs/.
        live: the reference is in memory beside the policy, and not scored beforehand.
        checkpointing: activations are computed again in the backward pass.
        micro, accumulation: pairs at a time, and micro-batches of a step, on each GPU.
        terms: bytes on a GPU at the peak of a step, by what they are.
        machine: bytes of each machine's own memory.
        cost: of the whole run.
        stands: bytes on a GPU that stand there from micro-batch to micro-batch, by what they are.
        disk: bytes of a checkpoint.
    """

    config: str
    live: bool
    checkpointing: bool
    micro: int
    accumulation: int
    terms: dict[str, float]
    machine: float
    cost: Cost
    stands: dict[str, float]
    disk: float

    @property
    def peak(self) -> float:
        return sum(self.terms.values())

    @property
    def order(self) -> tuple[bool, float, float]:
        """By which the one to take comes first: offloading needs a compiler and a fast bus, of
        which a plan knows nothing."""
        return self.machine > 0, self.cost.compared, self.peak

    def filled(self, memory: float, machine: float = math.inf) -> float:
        """The share that it takes of a GPU's memory or of the machine's, whichever is larger."""
        return max(self.peak / memory, self.machine / machine)


def first_of(options: Iterable[Option], memory: float) -> Option:
    """The first that needs no more bytes, or the one with the least where none does: not always the
    one with the fewest pairs at a time."""
    tried = []
    for option in options:
        if option.peak <= memory:
            return option
        tried.append(option)
    return min(tried, key=lambda option: option.peak)


def best(options: list[Option], memory: float, machine: float = math.inf) -> Option | None:
    """The fastest that leaves as much of the memory free as a plan may be wrong by; one that
    offloads only where no other does.

    Args:
        memory, machine: bytes of a GPU, and of the machine itself.
    """
    fits = [option for option in options if option.filled(memory, machine) <= SURE]
    return min(fits, key=lambda option: option.order, default=None)
