"""Intervals against distributions whose answer is known."""

import numpy as np

from dpo.intervals import bootstrap


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """95% intervals of 400 samples of a known distribution: 91 to 99% of them hold its mean."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        interval = bootstrap(rng.exponential(size=120), resamples=1000)
        held += interval.low <= 1.0 <= interval.high
    assert 0.91 < held / 400 < 0.99
