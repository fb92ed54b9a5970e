"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, section 3).

A logistic regression of the preferences on the difference of lengths, on how hard the instruction
is, and on the model, read off where lengths are equal. As in the suite's own package
(alpaca_eval/metrics/glm_winrate.py, `length_controlled_v1`, commit cd543a1): the difference is
standardised and put through tanh; GPT-4 Turbo told to be brief and to be verbose, against itself,
takes part with a weight of 0.1 each, all but the model's own coefficient shared; the sum of the
coefficients' sizes is a penalty, whose weight is chosen by cross-validation.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpo.core.refusal import Refusal
from dpo.evaluation.published.suite import SIDES, interval

COLUMNS = ("index", "instruction_difficulty", "std_delta_len", "preference")
ROUNDING = 1e-6  # of preferences
WEIGHT = 0.1  # 0.2, over two models
STRENGTHS = np.logspace(-4, 4, 10)  # of the data against the penalty
FOLDS = 5
RESAMPLES = 200


@dataclass
class Calibration:
    """What is known of other models' answers.

    Attributes:
        difficulty: of each instruction, shape (instructions,).
        inputs: of GPT-4 Turbo told to be brief and verbose, shape (rows, 3), as `inputs_of` has it.
        preferred: shape (rows,).
    """

    difficulty: np.ndarray
    inputs: np.ndarray
    preferred: np.ndarray


def read(path: Path, count: int) -> Calibration:
    """The calibration of so many instructions, of df_gamed.csv of the suite's data set.

    Raises:
        Refusal: a column or an instruction is not there, or a value is none of its column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [*csv.DictReader(file)]
        values = np.array([[float(row[name].strip() or "nan") for name in COLUMNS] for row in rows])
        index, difficulty, shorter, preferred = values.T
    except (AttributeError, KeyError, ValueError, csv.Error) as error:
        why = f"no table with {', '.join(COLUMNS)} ({type(error).__name__}: {error})"
        raise Refusal(f"{path} is {why}: download it anew") from error
    of = dict(zip(index[::-1], difficulty[::-1], strict=True))  # of several rows, the first
    lacking = [at for at in range(count) if not np.isfinite(of.get(at, np.nan))]
    if lacking:
        raise Refusal(f"{path} lacks {len(lacking)} of {count} instructions: download it anew")
    known = ~np.isnan(preferred)
    likely = (preferred > -ROUNDING) & (preferred < 1 + ROUNDING)
    odd = np.flatnonzero(known & ~(likely & np.isfinite(shorter + difficulty)))
    if len(odd) or not known.any():
        why = f"in row {odd[0] + 1} no number, or no preference" if len(odd) else "no preference"
        raise Refusal(f"{path} has {why} from 0 to 1: download it anew")
    inputs = np.stack([np.tanh(shorter), difficulty, np.zeros(len(rows))], axis=1)
    return Calibration(np.array([of[at] for at in range(count)]), inputs[known], preferred[known])


def inputs_of(shorter: np.ndarray, difficulty: np.ndarray) -> np.ndarray:
    """What the regression knows of a model's answers: tanh of the standardised difference of
    lengths, the difficulty, and that they are the model's, shape (n, 3)."""
    spread = shorter.std(ddof=1) if len(shorter) > 1 else 0.0
    standardised = shorter / spread if spread else np.zeros(len(shorter))
    return np.stack([np.tanh(standardised), difficulty, np.ones(len(shorter))], axis=1)


def both(
    preferred: dict[str, np.ndarray], shorter: dict[str, np.ndarray], by: Calibration
) -> dict[str, dict | None]:
    """The win rates of both sides and the policy's less the other's, with 95% bootstrap intervals
    over instructions: the same are drawn for both.

    Args:
        preferred: shape (n,), NaN where there is no verdict.
        shorter: by how many characters a model's answer is shorter than the baseline's, likewise.
    """
    count = len(next(iter(preferred.values())))
    picks = np.random.default_rng(0).integers(0, count, size=(RESAMPLES, count))
    picks = np.concatenate([np.arange(count)[None], picks])
    rates = {
        side: rates_of(of, inputs_of(shorter[side], by.difficulty[:count]), by, picks)
        for side, of in preferred.items()
        if not np.isnan(of).all()
    }
    if len(rates) == len(preferred):
        rates["difference"] = rates["policy"] - rates["against"]
    names = (*SIDES, "difference")
    return {name: interval(rates[name]) if name in rates else None for name in names}


def rates_of(
    preferred: np.ndarray, inputs: np.ndarray, by: Calibration, picks: np.ndarray
) -> np.ndarray:
    """The length-controlled win rate of each resample of instructions, shape (resamples,); the
    penalty is that of the first."""
    weights = np.concatenate([np.full(len(by.preferred), WEIGHT), np.ones(len(preferred))])
    all_inputs = np.concatenate([by.inputs, inputs])
    labels = np.concatenate([by.preferred, preferred])
    known = ~np.isnan(labels)
    strength = chosen(all_inputs[known], labels[known], weights[known])
    rates = []
    for some in np.array_split(picks, -(-len(picks) // 20)):  # or memory would be their sum
        theirs = np.tile(np.arange(len(by.preferred)), (len(some), 1))
        rows = np.concatenate([theirs, len(by.preferred) + some], axis=1)
        counted = np.where(known[rows], weights, 0.0)
        found = fit(all_inputs[rows], np.nan_to_num(labels[rows]), counted, strength)
        _, hard, own = found.T
        rates.append(sigmoid(hard[:, None] * inputs[some][..., 1] + own[:, None]).mean(axis=1))
    return np.concatenate(rates)


def chosen(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The strength whose fits foretell what was held out best, over five folds."""
    count = len(labels)
    fold = np.arange(count)[::-1] % FOLDS
    held_out = fold == np.arange(FOLDS)[:, None]
    x, y = np.broadcast_to(inputs, (FOLDS, *inputs.shape)), np.broadcast_to(labels, (FOLDS, count))
    scores = []
    for strength in STRENGTHS:
        found = fit(x, y, np.where(held_out, 0.0, weights), strength)
        p = np.clip(sigmoid(np.einsum("rnk,rk->rn", x, found)), 1e-15, 1 - 1e-15)
        loss = -(y * np.log(p) + (1 - y) * np.log(1 - p)) * weights
        scores.append(((loss * held_out).sum(axis=1) / held_out.sum(axis=1)).mean())
    return float(STRENGTHS[np.argmin(scores)])


def fit(x: np.ndarray, y: np.ndarray, w: np.ndarray, strength: float) -> np.ndarray:
    """The coefficients θ, shape (fits, k), that make Σ|θ| + strength Σ w loss the least, the loss
    being that of the logistic regressions σ(x θ) of y: Newton's method, each step a lasso of its
    own, by coordinate descent, and halved until it helps.

    Args:
        x: shape (fits, n, k).
        y: from 0 to 1, shape (fits, n).
        w: same shape.
    """
    found = np.zeros((len(x), x.shape[2]))

    def objective(at: np.ndarray) -> np.ndarray:
        z = np.einsum("rnk,rk->rn", x, at)
        return np.abs(at).sum(1) + strength * (w * (np.logaddexp(0, z) - y * z)).sum(1)

    value = objective(found)
    for _ in range(100):
        p = sigmoid(np.einsum("rnk,rk->rn", x, found))
        gradient = strength * np.einsum("rnk,rn->rk", x, w * (p - y))
        curve = strength * np.einsum("rnk,rn,rnl->rkl", x, w * p * (1 - p), x)
        curve += 1e-9 * np.eye(x.shape[2])
        step = lasso(gradient, curve, found) - found
        length = np.ones((len(x), 1))
        for _ in range(20):
            worse = objective(found + length * step) > value + 1e-12 * np.abs(value)
            if not worse.any():
                break
            length[worse] /= 2
        found = found + length * step
        value = objective(found)
        if np.abs(length * step).max() < 1e-7:
            break
    return found


def lasso(gradient: np.ndarray, curve: np.ndarray, start: np.ndarray) -> np.ndarray:
    """What makes Σ|u| + gradient (u - start) + ½ (u - start)ᵀ curve (u - start) the least."""
    found = start.copy()
    for _ in range(100):
        before = found.copy()
        for k in range(start.shape[1]):
            slope = gradient[:, k] + np.einsum("rl,rl->r", curve[:, k], found - start)
            size = curve[:, k, k]
            goal = size * found[:, k] - slope
            found[:, k] = np.sign(goal) * np.maximum(np.abs(goal) - 1, 0) / size
        if np.abs(found - before).max() < 1e-10:
            break
    return found


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))
