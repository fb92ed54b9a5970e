"""No dropout where nothing is learned, as the reference is scored as it is; nor where the recipe
turns it off."""

from __future__ import annotations

import torch
from torch import nn


def off_without_gradients(model: nn.Module) -> None:
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


def off(model: nn.Module) -> None:
    """Turn off the dropout that is no module, as models have it in their attention and OPT
    everywhere: a number that they hand to a function. TRL's disable_dropout sees modules alone."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and name.endswith(("dropout", "layerdrop")):
                setattr(module, name, 0.0)
