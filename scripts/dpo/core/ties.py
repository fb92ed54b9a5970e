"""When a policy has no view of a pair: its margin is no more than rounding makes of none.

Accuracy counts such a pair as half right, whoever counts it: what is logged as a run trains, its
report, `make evaluate` and `make compare`.
"""

from __future__ import annotations

import numpy as np
import torch


def numerics(model: torch.nn.Module) -> torch.dtype:
    """What a model computes in here and now: autocast's dtype, or that of its weights."""
    device = model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return model.dtype


def width(beta: float, nats_per_token: float, tokens: np.ndarray) -> np.ndarray:
    """How far from zero a margin of β × nats may be and still be none, shape as `tokens`.

    Args:
        nats_per_token: what rounding may make of one token's log-probability (reference.py).
        tokens: of both answers of each pair. Rounding errs to both sides, token by token, so that
            the sum errs by the root of their number.
    """
    return beta * nats_per_token * np.sqrt(tokens)


def settled(margins: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The margins, ties set to zero."""
    return np.where(np.abs(margins) <= width, 0.0, margins)


def accuracy(margins: np.ndarray) -> np.ndarray:
    """1 where the implicit reward prefers the chosen answer, 0 where not, ½ where it has no view
    (everywhere, as long as the policy is its reference).

    Args:
        margins: settled ones.
    """
    return (margins > 0) + 0.5 * (margins == 0)
