"""How sure a number is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Interval:
    """A mean and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, resamples: int = 10_000) -> Interval:
    """Percentile bootstrap of the mean of independent `values`, shape (n,)."""
    picks = np.random.default_rng(0).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
