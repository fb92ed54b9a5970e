"""How sure a number is: intervals, paired differences, and which margins are ties."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# How far the same row may come out apart in another batch, or on another number of threads.
NATS_PER_TOKEN = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
NATS_PER_TOKEN |= dict.fromkeys((torch.float32, torch.float64), 1e-4)


@dataclass
class Interval:
    """A mean and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass
class Unanimous(Interval):
    """A difference that is the same for every prompt, so that resamples know of no other: its ends
    are Wilson's, by their number."""


def said(interval: Mapping[str, float] | None, form: str = ".2f") -> str:
    """A mean and its 95% interval: `0.62 (0.55 to 0.69)`; a dash where there is none. What is
    rounded to nothing has no minus."""
    if interval is None:
        return "–"
    texts = [format(interval[key], form) for key in ("mean", "low", "high")]
    none = format(0.0, form)
    mean, low, high = (text if text.strip("-+0.%") else none for text in texts)
    return f"{mean} ({low} to {high})"


def bootstrap(
    values: np.ndarray,
    resamples: int = 10_000,
    weights: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
) -> Interval:
    """Percentile bootstrap of the mean of independent `values`, shape (n,).

    With `weights`, same shape, of the ratio of sums Σ values / Σ weights. With `prompts`, same
    shape, which say what each value belongs to: pairs of one prompt are alike, so that prompts are
    resampled, with all that is of them.
    """
    both = np.stack([values, np.ones(len(values)) if weights is None else weights])
    grouped = by_prompt(both, prompts)
    sums = resampled(grouped, resamples)
    low, high = np.quantile(sums[0] / sums[1], [0.025, 0.975])
    if grouped.shape[1] == 1:  # of one prompt nothing is known of others: at least as wide as this
        low, high = (both[0] / both[1]).min(), (both[0] / both[1]).max()
    return Interval(float(both[0].sum() / both[1].sum()), float(low), float(high))


def by_prompt(values: np.ndarray, prompts: np.ndarray | None) -> np.ndarray:
    """Sums of `values`, shape (rows, n), over what is of one prompt: shape (rows, prompts), in the
    order in which prompts come first. The values themselves where each has its own."""
    if prompts is None:
        return values
    of_value = numbered(prompts)
    return np.stack([np.bincount(of_value, row) for row in values])


def numbered(prompts: np.ndarray) -> np.ndarray:
    """0 for the prompt that comes first, 1 for the next one, and so on; shape as given."""
    _, first, found = np.unique(prompts, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[found]


def resampled(values: np.ndarray, resamples: int = 10_000) -> np.ndarray:
    """Means of resamples of `values`, shape (rows, n): shape (rows, resamples). A resample picks
    the same for all rows, so that what one row's mean has over another's is paired."""
    rows, count = values.shape
    draw, part = np.random.default_rng(0), 100  # resamples at a time, or memory would be their sum
    means = np.empty((rows, resamples))
    for start in range(0, resamples, part):
        picks = draw.integers(0, count, size=(min(part, resamples - start), count))
        means[:, start : start + part] = values[:, picks].mean(axis=2)
    return means


def paired(
    values: np.ndarray,
    resamples: int = 10_000,
    prompts: np.ndarray | None = None,
    *,
    shares: bool = False,
) -> list[list[Interval]]:
    """Paired differences between the means of the rows of `values`, shape (rows, n): `[i][j]` is
    row i less row j. `prompts`, shape (n,), as for `bootstrap`. `shares` are of right and wrong, as
    for `share`: of other values from 0 to 1 nothing is known that resamples do not say."""
    counted = np.concatenate([values, np.ones((1, values.shape[1]))])
    grouped = by_prompt(counted, prompts)
    *sums, counts = resampled(grouped, resamples)
    means = np.stack(sums) / counts

    def less(i: int, j: int) -> Interval:
        difference = values[i] - values[j]
        if shares and np.ptp((grouped[i] - grouped[j]) / grouped[-1]) < 1e-12:  # as in `share`
            found = share((1 + difference) / 2, prompts)
            return Unanimous(float(difference.mean()), 2 * found.low - 1, 2 * found.high - 1)
        low, high = np.quantile(means[i] - means[j], [0.025, 0.975])
        if grouped.shape[1] == 1:  # as in `bootstrap`
            low, high = difference.min(), difference.max()
        return Interval(float(difference.mean()), float(low), float(high))

    rows = range(len(values))
    table = [[Interval(0.0, 0.0, 0.0) for _ in rows] for _ in rows]
    for i in rows:
        for j in range(i):
            found = table[i][j] = less(i, j)
            table[j][i] = type(found)(-found.mean, -found.high, -found.low)
    return table


@functools.cache
def t_quantile(dof: int, within: float = 0.95) -> float:
    """How many standard errors from zero Student's t of `dof` degrees of freedom stays, in this
    share of cases: its distribution (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), inverted."""
    angle = np.linspace(0, np.pi / 2, 200_001)[:-1]  # atan(t / √dof)
    cosine, even = np.cos(angle), dof % 2 == 0
    term = np.ones_like(angle) if even else cosine.copy()
    total = term.copy() if dof > 1 else np.zeros_like(angle)
    for k in range(2 if even else 3, dof - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = np.sin(angle) * total if even else 2 / np.pi * (angle + np.sin(angle) * total)
    return float(np.tan(np.interp(within, inside, angle)) * np.sqrt(dof))


def t_interval(values: np.ndarray) -> Interval:
    """Mean of a few independent values, shape (n,), n at least 2, with Student's 95% interval."""
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    half = t_quantile(len(values) - 1) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


def t_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """How the mean of some independent values differs from that of others, shapes (n,) and (m,),
    both at least 2: Welch's 95% interval, its degrees of freedom rounded down."""
    parts = [values.var(ddof=1) / len(values) for values in (first, second)]
    mean = float(first.mean() - second.mean())
    if not sum(parts):
        return Interval(mean, mean, mean)
    each = zip(parts, (first, second), strict=True)
    dof = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in each)
    half = t_quantile(max(int(dof), 1)) * float(np.sqrt(sum(parts)))
    return Interval(mean, mean - half, mean + half)


def share(values: np.ndarray, prompts: np.ndarray | None = None) -> Interval:
    """`bootstrap` of values from 0 to 1. Where all prompts are equal, every resample says so too:
    then the interval is Wilson's (1927) for all right or all wrong, which knows how few they may
    be, and so much of it for what lies between."""
    sums, counts = by_prompt(np.stack([values, np.ones(len(values))]), prompts)
    resamples = 10_000 if np.ptp(sums / counts) >= 1e-12 else 1  # which no resample would widen
    return _if_unanimous(bootstrap(values, resamples, prompts=prompts), sums / counts)


def _if_unanimous(found: Interval, of_prompt: np.ndarray) -> Interval:
    """The interval that `share` speaks of, where all prompts are equal; else the one found."""
    if np.ptp(of_prompt) < 1e-12:
        edge = len(of_prompt) / (len(of_prompt) + 1.96**2)
        found.low, found.high = found.mean * edge, 1 - (1 - found.mean) * edge
    return found


def win_rate(preferred: np.ndarray) -> Interval:
    """Share of comparisons that the first of two models wins, a tie half.

    Args:
        preferred: shape (prompts, samples): 1, 0.5 or 0, NaN where there is no verdict. Answers to
            one prompt are alike, so that the prompt is what is resampled.
    """
    judged = preferred[~np.isnan(preferred).all(axis=1)]
    return share(np.nanmean(judged, axis=1))


def length_controlled(
    preferred: np.ndarray, longer: np.ndarray, resamples: int = 1000
) -> Interval | None:
    """The win rate that would be if both models' answers were of one length (Dubois et al. 2024,
    arXiv 2404.04475): a logistic regression of the verdict on the tanh of the standardised
    difference of lengths, read off where the difference is zero.

    The paper's term for the prompt's difficulty is left out: it takes the verdicts of many models.

    Args:
        preferred: shape (prompts, samples), as for `win_rate`.
        longer: by how much the first model's answer is longer, same shape.

    Returns:
        With a 95% bootstrap interval over prompts; None where lengths do not differ.
    """
    spread = longer[~np.isnan(preferred)].std()
    if spread == 0:
        return None
    inputs = np.tanh(longer / spread)
    rows = np.flatnonzero(~np.isnan(preferred).all(axis=1))
    picks = np.random.default_rng(0).choice(rows, size=(resamples, len(rows)))
    rates = _at_equal_length(preferred[picks], inputs[picks])
    low, high = np.quantile(rates, [0.025, 0.975])
    (mean,) = _at_equal_length(preferred[rows][None], inputs[rows][None])
    found = Interval(float(mean), float(low), float(high))
    return _if_unanimous(found, np.nanmean(preferred[rows], axis=1))


def mean_at_equal_length(
    rewards: np.ndarray, tokens: np.ndarray, resamples: int = 2000
) -> Interval:
    """How much more reward one model's answers have than another's of the same length: the model's
    coefficient in the least squares of reward on which of the two answered and on length.

    Args:
        rewards: of the answers of the one and of the other, shape (2, prompts, samples).
        tokens: of the same answers.

    Returns:
        With a 95% bootstrap interval over prompts. Where lengths do not differ, the plain
        difference.
    """
    first = np.zeros_like(rewards)
    first[0] = 1
    design = np.stack([first, np.ones_like(first), tokens], axis=-1)
    # Sums over a prompt's answers: a resample of prompts sums these.
    left = np.einsum("mpsi,mpsj->pij", design, design)
    right = np.einsum("mpsi,mps->pi", design, rewards)

    def gain(picks: np.ndarray) -> np.ndarray:
        sums = left[picks].sum(axis=1), right[picks].sum(axis=1)
        return (np.linalg.pinv(sums[0], hermitian=True) @ sums[1][..., None])[:, 0, 0]

    count = rewards.shape[1]
    draws = np.random.default_rng(0).integers(0, count, size=(resamples, count))
    low, high = np.quantile(gain(draws), [0.025, 0.975])
    return Interval(float(gain(np.arange(count)[None])[0]), float(low), float(high))


def _at_equal_length(preferred: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """σ(θ) of the logistic regressions σ(θ + φ input), one for each first index, by Newton's
    method. A ridge of one observation's weight keeps separated samples finite."""
    labels, x = (values.reshape(len(values), -1) for values in (preferred, inputs))
    weight = ~np.isnan(labels)
    labels = np.nan_to_num(labels)
    design = np.stack([np.ones_like(x), x], axis=-1) * weight[..., None]
    ridge = 0.25 * np.eye(2)
    found = np.zeros((len(labels), 2))
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.einsum("rnk,rk->rn", design, found)))
        gradient = np.einsum("rnk,rn->rk", design, labels - p) - found @ ridge
        curve = np.einsum("rnk,rn,rnl->rkl", design, p * (1 - p), design) + ridge
        step = np.linalg.solve(curve, gradient[..., None])[..., 0]
        found += step
        if np.abs(step).max() < 1e-9:
            break
    return 1 / (1 + np.exp(-found[:, 0]))


def numerics(model: Any) -> torch.dtype:
    """What a model, or attention on a tensor, computes in here and now: autocast's dtype, or that
    of its weights."""
    device = model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return model.dtype


def width(beta: float, nats_per_token: float, tokens: np.ndarray) -> np.ndarray:
    """How far from zero a margin of β × nats may be and still be none, shape as `tokens`.

    Args:
        nats_per_token: what rounding may make of one token's log-probability.
        tokens: of both answers of each pair. Rounding errs to both sides, token by token, so that
            the sum errs by the root of their number.
    """
    return beta * nats_per_token * np.sqrt(tokens)


def settled(margins: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The margins, ties set to zero."""
    return np.where(np.abs(margins) <= width, 0.0, margins)


def accuracy(margins: np.ndarray) -> np.ndarray:
    """1 if the implicit reward prefers the chosen answer, 0 if not, 0.5 on ties (all pairs, as long
    as the policy is its reference).

    Args:
        margins: settled ones.
    """
    return (margins > 0) + 0.5 * (margins == 0)
