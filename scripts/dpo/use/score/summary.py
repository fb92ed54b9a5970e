"""What the scores of a file come to, in one pass and constant memory.

Intervals are of a Poisson bootstrap over prompts (Chamandy et al. 2012, "Estimating uncertainty for
massive data streams"): in each resample a prompt counts as often as a Poisson variable of mean 1
says, which is drawn by the prompt itself, so that all of its rows count alike, wherever they stand,
and nothing but sums need be kept.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from dpo.core import stats
from dpo.core.stats import Interval
from dpo.evaluation.pairs import ALIKE
from dpo.use.score.sections import NAMES, SECTIONS, TOTALS

RESAMPLES = 1000
ROWS = 256  # at a time
BINS = 10  # of the probability that the policy's reward gives to the order that it prefers
MOST = 100  # values of a column that are told apart; a new one after them is of OTHERS
OTHERS = "(other values)"
LENGTHS = ("chosen is longer", "about equal", "chosen is shorter")
COUNT, RIGHT, MARGIN, LONGER, MARGIN2, LONGER2, BOTH, SAID = range(8)  # columns of Sums


class Sums:
    """Sums over rows, and over each of the resamples of their prompts: of 1, whether the order is
    right, the margin, by how much chosen is longer, products of the two, and the probability of
    the order that is preferred."""

    def __init__(self) -> None:
        self.all, self.resampled = np.zeros(8), np.zeros((RESAMPLES, 8))

    def add(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Rows of these values, shape (rows, 8), that count so often, shape (rows, RESAMPLES)."""
        self.all += values.sum(axis=0)
        self.resampled += weights.T @ values

    @property
    def count(self) -> int:
        return int(self.all[COUNT])

    def means(self, column: int) -> np.ndarray:
        """Of each resample, NaN of one in which no row counts; shape (RESAMPLES,)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.resampled[:, column] / self.resampled[:, COUNT]

    def prompts(self) -> float:
        """About how many prompts the rows are of, as many rows each: n² / Σ nₚ², since Σ nₚ² is
        the variance of a resample's rows. Never more than there are rows."""
        spread = self.resampled[:, COUNT].var()
        return min(self.all[COUNT] ** 2 / spread, self.all[COUNT]) if spread else 1.0

    def mean(self, column: int) -> Interval:
        return interval(float(self.all[column] / self.all[COUNT]), self.means(column))

    def accuracy(self) -> Interval:
        """The share of rows in the right order; where all prompts are alike, so that resamples say
        nothing, by their number, as `stats.share` has it."""
        found = self.mean(RIGHT)
        if found.high - found.low < 1e-12:
            edge = self.prompts() / (self.prompts() + 1.96**2)
            found.low, found.high = found.mean * edge, 1 - (1 - found.mean) * edge
        return found

    def correlation(self) -> Interval | None:
        """Of the margin with by how much chosen is longer (of completions: of reward and length);
        None where one of them is always the same."""
        with np.errstate(invalid="ignore", divide="ignore"):
            whole, each = (pearson(sums) for sums in (self.all[None], self.resampled))
        return interval(float(whole[0]), each) if np.isfinite(whole[0]) else None


def pearson(sums: np.ndarray) -> np.ndarray:
    """Correlations of margin and length, of sums of shape (n, 8): shape (n,)."""
    n, x, y = sums[:, COUNT], sums[:, MARGIN], sums[:, LONGER]
    spread = (n * sums[:, MARGIN2] - x**2) * (n * sums[:, LONGER2] - y**2)
    return np.where(spread > 0, (n * sums[:, BOTH] - x * y) / np.sqrt(spread), np.nan)


def interval(mean: float, resampled: np.ndarray) -> Interval:
    """A mean with the 95% of its resamples, those that are NaN left out."""
    known = resampled[np.isfinite(resampled)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (mean, mean)
    return Interval(mean, float(low), float(high))


def weights_of(prompts: list[str]) -> np.ndarray:
    """How often each prompt, by its digest, counts in each resample: shape (prompts, RESAMPLES)."""
    drawn = {p: np.random.default_rng(int(p, 16)).poisson(1, RESAMPLES) for p in {*prompts}}
    return np.array([drawn[prompt] for prompt in prompts], dtype=float)


class Groups:
    """Sums by the values of a column, in the order in which they come; of the hundred first."""

    def __init__(self) -> None:
        self.sums: dict[str, Sums] = {}

    def add(self, names: list[str], values: np.ndarray, weights: np.ndarray) -> None:
        for name in dict.fromkeys(names):
            here = np.array([each == name for each in names])
            known = name in self.sums or len(self.sums) < MOST or name.lower() in NAMES
            self.sums.setdefault(name if known else OTHERS, Sums()).add(values[here], weights[here])


def summarise(
    lines: Iterator[tuple[dict[str, Any], dict[str, Any]]], pairs: bool, by: list[str]
) -> dict[str, Any]:
    """What the lines of scores come to.

    Args:
        lines: each with the columns `by` of the row that it is of.
        by: columns of the file whose values are told apart.
    """
    rows, ties, aside = 0, 0, dict[str, int]()
    whole, lengths, bins = Sums(), Groups(), [Sums() for _ in range(BINS)]
    columns = {name: Groups() for name in by}
    while block := [*islice(lines, ROWS)]:
        rows += len(block)
        for line, _ in block:
            if reason := line.get("reason"):
                aside[reason] = aside.get(reason, 0) + 1
        scored = [(line, row) for line, row in block if "reason" not in line]
        if not scored:
            continue
        found = [values_of(line) if pairs else values_alone(line) for line, _ in scored]
        values = np.concatenate(found)
        weights = weights_of([line["prompt"] for line, _ in scored])
        weights = np.repeat(weights, [len(each) for each in found], axis=0)
        whole.add(values, weights)
        if not pairs:
            continue
        ties += int((values[:, MARGIN] == 0).sum())
        lengths.add([by_length(line) for line, _ in scored], values, weights)
        at = np.minimum((values[:, SAID] - 0.5) * 2 * BINS, BINS - 1).astype(int)
        for number in np.unique(at):
            bins[number].add(values[at == number], weights[at == number])
        for name, groups in columns.items():
            groups.add([named(row.get(name)) for _, row in scored], values, weights)
    result = {"rows": rows, "scored": rows - sum(aside.values()), "set_aside": aside}
    if not whole.count:
        return result
    if not pairs:
        return result | {"completions": whole.count, **of_completions(whole)}
    result |= {"ties": ties, **of_pairs(whole), "length_correlation": of(whole.correlation())}
    there = [name for name in LENGTHS if name in lengths.sums]
    result["by_length"] = [{"name": name} | of_pairs(lengths.sums[name]) for name in there]
    result["calibration"] = calibration(bins)
    result["by"] = {
        column: [{"name": name} | of_pairs(each) for name, each in groups.sums.items()]
        for column, groups in columns.items()
    }
    known = [found for groups in columns.values() if (found := sections(groups.sums))]
    return result | ({"reward_bench": known[0]} if known else {})


def of(found: Interval | None) -> dict[str, float] | None:
    return found and asdict(found)


def of_pairs(sums: Sums) -> dict[str, Any]:
    return {"count": sums.count, "accuracy": of(sums.accuracy()), "margin": of(sums.mean(MARGIN))}


def of_completions(sums: Sums) -> dict[str, Any]:
    found = {"reward": of(sums.mean(MARGIN)), "tokens": of(sums.mean(LONGER))}
    return found | {"length_correlation": of(sums.correlation())}


def values_of(line: dict[str, Any]) -> np.ndarray:
    """The columns of Sums of a pair: shape (1, 8)."""
    margin, longer = line["margin"], line["tokens_chosen"] - line["tokens_rejected"]
    said = 1 / (1 + np.exp(-abs(margin)))
    right = float(stats.accuracy(np.array(margin)))
    return np.array([[1, right, margin, longer, margin**2, longer**2, margin * longer, said]])


def values_alone(line: dict[str, Any]) -> np.ndarray:
    """The columns of Sums of completions, reward and length in the place of margin and how much
    longer: shape (completions, 8)."""
    each = zip(line["reward"], line["tokens"], strict=True)
    return np.array([[1, 0, r, n, r**2, n**2, r * n, 0] for r, n in each], dtype=float)


def by_length(line: dict[str, Any]) -> str:
    """Which of the two answers is the longer one, by more than a tenth."""
    chosen, rejected = line["tokens_chosen"], line["tokens_rejected"]
    longer = (chosen - rejected) / max(chosen, rejected)
    return LENGTHS[1 if abs(longer) <= ALIKE else 0 if longer > 0 else 2]


def named(value: Any) -> str:
    """A value in words; one of RewardBench's subsets as that writes it."""
    return "(none)" if value is None else NAMES.get(str(value).strip().lower(), str(value))


def calibration(bins: list[Sums]) -> dict[str, Any]:
    """Whether σ(margin) is the share that is right (Guo et al. 2017, arXiv 1706.04599): in bins of
    the probability of the order that is preferred, from a half to 1, what it says on average and
    how often it is right, with the expected calibration error, the mean distance of the two."""
    filled = [(number, sums) for number, sums in enumerate(bins) if sums.count]
    apart = [abs(sums.all[SAID] - sums.all[RIGHT]) for _, sums in filled]
    return {
        "expected_error": float(sum(apart) / sum(sums.count for _, sums in filled)),
        "bins": [
            {
                "from": 0.5 + number / 2 / BINS,
                "to": 0.5 + (number + 1) / 2 / BINS,
                "count": sums.count,
                "said": float(sums.all[SAID] / sums.count),
                "right": of(sums.accuracy()),
            }
            for number, sums in filled
        ],
    }


def sections(groups: dict[str, Sums]) -> dict[str, Any] | None:
    """RewardBench's score and its sections, of those subsets that are there, with how many of its
    rows they are; None without any."""
    found, means = {}, []
    for name, subsets in SECTIONS.items():
        there = {subset: weight for subset, weight in subsets.items() if subset in groups}
        if there:
            share = np.array([*there.values()]) / sum(there.values())
            mean = share @ [groups[subset].accuracy().mean for subset in there]
            means.append(share @ np.array([groups[subset].means(RIGHT) for subset in there]))
            missing = [subset for subset in subsets if subset not in there]
            whole = interval(float(mean), means[-1])
            rows = {"rows": sum(groups[subset].count for subset in there), "of": TOTALS[name]}
            found[name] = {"accuracy": of(whole), "missing": missing, **rows}
    if not found:
        return None
    mean = float(np.mean([section["accuracy"]["mean"] for section in found.values()]))
    whole = interval(mean, np.mean(means, axis=0))
    return {"score": of(whole), "sections": found}
