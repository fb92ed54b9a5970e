"""What TRL and transformers do at every start or step that takes time and changes nothing here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from trl.trainer import dpo_trainer


@contextmanager
def unhashed() -> Iterator[None]:
    """A DPOTrainer that is built in here does not hash all its weights, which it does in every
    process: the hash names TRL's cache of the reference, and reference.py has its own."""
    hash_module, dpo_trainer.hash_module = dpo_trainer.hash_module, lambda model: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = hash_module


def may_leave_unused(model: torch.nn.Module) -> bool:
    """Whether a step can leave weights without a gradient: a router's experts that no token goes
    to, or the towers of a model that reads more than text. For others DDP need not look for such,
    in a walk over every step's graph."""
    towers = model.config.get_text_config() is not model.config
    return towers or any("expert" in name for name, _ in model.named_modules())
