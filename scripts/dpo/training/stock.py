"""Stock DPOTrainer: its types as they are here, and what it does that is left out.

TRL and transformers do some things at every start or step that take time and change nothing here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from dpo.core.environment import Launch


class Declared(DPOTrainer):
    """DPOTrainer, with the types that its attributes have here once it is built: its libraries
    declare them wider, or not at all. What FastDPOTrainer adds is declared where it is set."""

    args: DPOConfig
    model: PreTrainedModel
    # What wraps them looks every attribute up in what it wraps.
    model_wrapped: Any
    ref_model: Any
    accelerator: Any
    processing_class: Any
    train_dataset: Dataset
    eval_dataset: Any
    optimizer: Any
    # of FastDPOTrainer, for the functions that it hands itself to
    adapter: Path | None
    settled: Any
    monitors: Any
    throughput: Any
    batch: dict[str, Any] | None
    pairs: list[list[float]]
    launch: Launch
    by_name: bool
    load_reference: Callable[[], PreTrainedModel] | None
    began_with: PreTrainedConfig
    pairs_per_step: int
    keep_scores: Callable[[], str | None]
    _make_ready: Callable[[], None]
    started: float
    about: dict[str, Any]
    composition_matters: bool
    right: Callable[..., Any]
    save_alone: Callable[[], None]
    _micro_batches: list[int]
    _data_workers_explained: Callable[..., Any]


@contextmanager
def unhashed() -> Iterator[None]:
    """A DPOTrainer that is built in here does not hash all its weights, which it does in every
    process: the hash names TRL's cache of the reference, and reference.py has its own."""
    hash_module, dpo_trainer.hash_module = dpo_trainer.hash_module, lambda model: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = hash_module


def may_leave_unused(model: PreTrainedModel) -> bool:
    """Whether a step can leave weights without a gradient: a router's experts that no token goes
    to, or the towers of a model that reads more than text. For others DDP need not look for such,
    in a walk over every step's graph."""
    towers = model.config.get_text_config() is not model.config
    return towers or any("expert" in name for name, _ in model.named_modules())


def no_dropout_without_gradients(model: nn.Module) -> None:
    """From here on a forward of `model` without gradients has no dropout, in training too.

    Such a forward scores the reference: the model without its adapter, with the adapter it began
    with, or before it is trained. TRL leaves the model in training mode for it. Checkpointing,
    which computes layers without gradients, does so inside a forward that has them.
    """
    training: list[nn.Module] = []

    def switch_off(module: nn.Module, inputs: tuple) -> None:
        if module.training and not torch.is_grad_enabled():
            training.extend(part for part in module.modules() if part.training)
            for part in training:
                part.training = False

    def switch_on(module: nn.Module, inputs: tuple, outputs: object) -> None:
        while training:
            training.pop().training = True

    model.register_forward_pre_hook(switch_off)
    model.register_forward_hook(switch_on, always_call=True)


def no_dropout(model: nn.Module) -> None:
    """Turn off the dropout that is no module, as models have it in their attention and OPT
    everywhere: a number that they hand to a function. TRL's disable_dropout sees modules alone."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and name.endswith(("dropout", "layerdrop")):
                setattr(module, name, 0.0)
