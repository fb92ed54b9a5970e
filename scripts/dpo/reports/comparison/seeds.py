"""Runs that differ in nothing but their seed, as one: what a recipe comes to over its seeds.

The interval of a run is over pairs or prompts, and knows nothing of what another seed of training
would have come to. Here it is the other way round: intervals are Student's, over seeds, and all
runs were measured on the same pairs and prompts.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

from dpo.core.stats import Interval, t_difference, t_interval
from dpo.recipe.arguments import decides
from dpo.reports.comparison.collect import Compared
from dpo.reports.comparison.row import COSTS, Row, within_noise

NOTE = (
    "Over seeds, intervals are Student's, of 95%: seeds are few, so that they are wide. They know "
    "how training varies on these held-out pairs and prompts, and not how the pairs and prompts "
    "do; a run's own interval knows the latter alone."
)


@dataclass
class Group:
    """Runs of several seeds: `runs` by seed, as places among those that are compared; and
    `left_out`, which are in no mean, and why."""

    name: str
    runs: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass
class Over:
    """A metric over the seeds of a group: `values` by seed, their mean with Student's interval,
    their standard deviation, and how far one run's own interval reaches to either side, which is
    None where it has none. Of one seed there is no interval and no deviation."""

    values: dict[str, float]
    interval: Interval | None
    deviation: float | None
    own: float | None

    @property
    def mean(self) -> float:
        return float(np.mean([*self.values.values()]))

    @property
    def ends(self) -> tuple[str, str]:
        """The seeds of the lowest and the highest value."""
        by_value = sorted(self.values, key=self.values.__getitem__)
        return by_value[0], by_value[-1]


def groups(runs: list[Compared]) -> list[Group]:
    """The runs by all that decides what is learned but the seed, where there are several seeds."""
    found: dict[tuple[str, str], Group] = {}
    seeds: dict[tuple[str, str], set[str]] = {}
    for at, run in enumerate(runs):
        others = (key for key in run.differs if decides(key) and key != "seed")
        name = " ".join(f"{key}={run.differs[key]}" for key in others)
        key = (str(run.settings.get("recipe")), name)
        group = found.setdefault(key, Group(name or key[0]))
        seeds.setdefault(key, set()).add(run.seed)
        if not run.report:
            group.left_out.append(f"seed={run.seed} ({run.state})")
        elif run.seed in group.runs:
            group.left_out.append(f"seed={run.seed} once more ({run.folder})")
        else:
            group.runs[run.seed] = at
    several = {key: group for key, group in found.items() if len(seeds[key]) > 1}
    names = [group.name for group in several.values()]
    for (recipe, name), group in several.items():
        if names.count(group.name) > 1:
            group.name = f"{recipe} {name}"
    return [*several.values()]


def over(group: Group, row: Row) -> Over | None:
    """The metric of a row over the seeds of a group; None where no run of it has it, or where it is
    no outcome of training."""
    if not row.numbers or row.name in COSTS:
        return None
    numbers = {seed: row.numbers[at] for seed, at in group.runs.items()}
    values = {seed: number["mean"] for seed, number in numbers.items() if number}
    if not values:
        return None
    each = np.array([*values.values()])
    widths = [n["high"] - n["low"] for n in numbers.values() if n and "low" in n]
    own = float(np.mean(widths)) / 2 if widths else None
    if len(each) < 2:
        return Over(values, None, None, own)
    return Over(values, t_interval(each), float(each.std(ddof=1)), own)


def difference(first: Over, second: Over) -> tuple[Interval, str] | None:
    """By how much one group is above another, and over what that is: paired by the seeds that both
    have, if these are two or more; else between the means of either. None where one has a single
    seed and they share fewer than two."""
    shared = [seed for seed in first.values if seed in second.values]
    if len(shared) > 1:
        differences = np.array([first.values[seed] - second.values[seed] for seed in shared])
        return t_interval(differences), f"over {len(shared)} seeds, paired by seed"
    if min(len(first.values), len(second.values)) < 2:
        return None
    a, b = (np.array([*each.values.values()]) for each in (first, second))
    return t_difference(a, b), f"over {len(a)} and {len(b)} seeds, not paired: they are other ones"


def differences(
    found: list[Group], rows: list[Row]
) -> list[tuple[str, Group, Group, Interval, str]]:
    """Metric, two groups, by how much the first is above the second, and over what; of all that
    can be told."""
    told = []
    for row, (a, b) in itertools.product(rows, itertools.combinations(found, 2)):
        first, second = over(a, row), over(b, row)
        if first and second and (known := difference(first, second)):
            told.append((row.name, a, b, *known))
    return told


def verdicts(found: list[Group], rows: list[Row]) -> dict[str, str]:
    """What the groups come to, in words, by the name of each metric that has a better and a
    worse."""
    said = {}
    for row in rows:
        known = {group.name: (group, of) for group in found if (of := over(group, row))}
        if not row.units or not known:
            continue
        top = max(known, key=lambda name: known[name][1].mean)
        group, best = known.pop(top)
        parts = [_against(group.name, best, other.name, of) for other, of in known.values()]
        said[row.name] = "; ".join(parts) if parts else alone(best)
    return said


def _against(name: str, best: Over, other: str, of: Over) -> str:
    told = difference(best, of)
    if told is None:
        return f"{name} is higher than {other} by {best.mean - of.mean:.3f}, of too few seeds"
    by, how = told
    if by.mean < 0:  # over the seeds that both have it may be the other way round
        return _against(other, of, name, best)
    if not any((by.mean, by.low, by.high)):
        return f"{name} and {other} are the same {how}"
    size = f"{by.mean:.3f} ({by.low:+.3f} to {by.high:+.3f}) {how}"
    if within_noise(by):
        return f"{name} is higher than {other} by {size}: within the noise of seeds"
    return f"{name} is better than {other} by {size}"


def alone(of: Over) -> str:
    """A group that stands alone, in words: its mean, how far seeds differ, and what one run's own
    interval knows."""
    if of.interval is None:
        return f"{of.mean:.3f} of one seed"
    low, high = of.ends
    said = f"{written(of)} over {len(of.values)} seeds, from {of.values[low]:.3f} (seed={low}) to "
    said += f"{of.values[high]:.3f} (seed={high}); their standard deviation is {of.deviation:.3f}"
    if of.own is not None:
        said += f", and one run's own interval, which does not know of it, ± {of.own:.3f}"
    return said


def written(of: Over | None) -> str:
    if of is None:
        return ""
    if of.interval is None:
        return f"{of.mean:.3f} (one seed)"
    return f"{of.mean:.3f} ({of.interval.low:.3f} to {of.interval.high:.3f})"


def spread(of: Over | None) -> str:
    """How far seeds differ, and how far one run's own interval reaches."""
    if of is None or of.interval is None:
        return ""
    own = f"; one run's own interval ± {of.own:.3f}" if of.own is not None else ""
    return f"{_ends(of)}, deviation {of.deviation:.3f}{own}"


def lines(found: list[Group], rows: list[Row]) -> list[tuple[str, list[str]]]:
    """The table of the groups: a name and a cell for each group, line by line."""
    body = [
        ("seeds", [", ".join(group.runs) for group in found]),
        ("left out", ["; ".join(group.left_out) for group in found]),
    ]
    for row in rows:
        each = [over(group, row) for group in found]
        body.append((row.name, [*map(written, each)]))
        body.append(("— its spread", [*map(spread, each)]))
        body.append(("— against the first", _against_first(each)))
    return [(name, cells) for name, cells in body if any(cells)]


def _ends(of: Over | None) -> str:
    return " to ".join(f"{of.values[seed]:.3f}" for seed in of.ends) if of else ""


def _against_first(each: list[Over | None]) -> list[str]:
    cells = [""]
    for of in each[1:]:
        told = difference(of, each[0]) if of and each[0] else None
        cells.append("")
        if told:
            by, how = told
            noise = ", within noise" if within_noise(by) else ""
            cells[-1] = f"{by.mean:+.3f} ({by.low:+.3f} to {by.high:+.3f}) {how}{noise}"
    return cells


def along(
    group: Group, runs: list[Compared], name: str, split: str
) -> tuple[list[int], np.ndarray]:
    """A metric of each run of a group at the steps that all of them have: the steps, and the
    values, shape (runs, steps)."""
    each = [points(runs[at], name, split) for at in group.runs.values()]
    curves = [{point["step"]: point[name] for point in of} for of in each]
    steps = [s for s in curves[0] if all(s in of for of in curves)] if curves else []
    return steps, np.array([[of[step] for step in steps] for of in curves], dtype=float)


def points(run: Compared, name: str, split: str) -> list[dict]:
    """The points of a run's curve; the metrics of drift lie in its entries alone."""
    if name.startswith("eval_"):
        return [entry for entry in run.entries if name in entry] if split == "held_out" else []
    return run.curves[split]
