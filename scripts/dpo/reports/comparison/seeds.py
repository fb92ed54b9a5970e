"""Runs that differ in nothing but their seed, as one: what a recipe comes to over its seeds.

The interval of a run is over pairs or prompts, and knows nothing of what another seed of training
would have come to. Here it is the other way round: intervals are Student's, over seeds, and all
runs were measured on the same pairs and prompts.
"""

import itertools
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from dpo.core.stats import Interval, t_difference, t_interval
from dpo.recipe.arguments import decides
from dpo.reports.comparison.collect import Compared
from dpo.reports.comparison.row import COSTS, Row, within_noise

NOTE = (
    "Over seeds, intervals are Student's, of 95%: seeds are few, so that they are wide. They know "
    "how training varies on these held-out pairs and prompts, and not how the pairs and prompts "
    "do; a run's own interval knows the latter alone. They are cut at nothing: of few seeds an end "
    "may lie where no result can."
)


MANY = "The highest of many groups is among the lucky ones: another seed would show it lower."
AT_ONCE = 3  # groups that are named one by one


@dataclass
class Group:
    """Runs of several seeds: `runs` by seed, as places among those that are compared; `left_out`,
    which are in no mean, and why; and `of`, the pairs and prompts that they were measured on."""

    name: str
    runs: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    of: Hashable = None


@dataclass
class Over:
    """A metric over the seeds of a group: `values` by seed, their mean with Student's interval,
    their standard deviation, and how far one run's own interval reaches to either side, which is
    None where it has none. Of one seed there is no interval and no deviation, and of seeds that all
    came to the same no interval. `of` as of the group."""

    values: dict[str, float]
    interval: Interval | None
    deviation: float | None
    own: float | None
    of: Hashable

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
    for group in several.values():
        _leave_out_others(group, runs)
    names = [group.name for group in several.values()]
    for (recipe, name), group in several.items():
        if names.count(group.name) > 1:
            group.name = f"{recipe} {name}"
    return [*several.values()]


def _leave_out_others(group: Group, runs: list[Compared]) -> None:
    """Seeds that were measured on other pairs or prompts than most are not of one mean."""
    of = {seed: _measured_on(runs[at]) for seed, at in group.runs.items()}
    group.of = Counter(of.values()).most_common(1)[0][0] if of else None
    for seed, others in of.items():
        if others != group.of:
            del group.runs[seed]
            group.left_out.append(f"seed={seed} (measured on other pairs or prompts)")


def _measured_on(run: Compared) -> Hashable:
    pairs, prompts = (run.report.get(key) or {} for key in ("pairs", "prompts"))
    how = ("count", "samples", "temperature", "max_new_tokens", "seed")
    return pairs.get("digest"), pairs.get("count"), *map(prompts.get, how)


def alike(values: np.ndarray) -> bool:
    """Whether values are the same but for rounding: a deviation of 0, out of a few that happen to
    agree, as counts of a few pairs do, would be an interval of no width."""
    return bool(np.ptp(values) <= 1e-9)


def over(group: Group, row: Row) -> Over | None:
    """The metric of a row over the seeds of a group; None where no run of it has it, or where it is
    no outcome of training."""
    if not row.numbers or row.name in COSTS:
        return None
    of = {seed: u.of for seed, at in group.runs.items() if row.units and (u := row.units[at])}
    most = Counter(of.values()).most_common(1)[0][0] if of else None  # evaluated alike
    those = {seed: at for seed, at in group.runs.items() if of.get(seed, most) == most}
    numbers = {seed: number for seed, at in those.items() if (number := row.numbers[at])}
    values = {seed: number["mean"] for seed, number in numbers.items()}
    each = np.array([*values.values()])
    if not values:
        return None
    widths = [n["high"] - n["low"] for n in numbers.values() if "low" in n]
    own = float(np.mean(widths)) / 2 if widths else None
    if len(each) < 2:
        return Over(values, None, None, own, group.of)
    interval = None if alike(each) else t_interval(each)
    return Over(values, interval, float(each.std(ddof=1)), own, group.of)


def difference(first: Over, second: Over) -> tuple[Interval, str] | None:
    """By how much one group is above another, and over what that is: paired by the seeds that both
    have, if these are all of one group, or three; else between the means of either. None where
    there is no interval to it (`why_not`)."""
    if first.of != second.of:
        return None
    shared = [seed for seed in first.values if seed in second.values]
    fewer = min(len(first.values), len(second.values))
    if len(shared) == fewer > 1 or len(shared) > 2:
        differences = np.array([first.values[seed] - second.values[seed] for seed in shared])
        if alike(differences) and differences.any():
            return None
        return t_interval(differences), f"over {len(shared)} seeds, paired by seed"
    if fewer < 2:
        return None
    a, b = (np.array([*each.values.values()]) for each in (first, second))
    if alike(a) and alike(b):
        return None
    return t_difference(a, b), f"over {len(a)} and {len(b)} seeds, not paired: they are other ones"


def why_not(first: Over, second: Over) -> str:
    """Why `difference` tells nothing of two groups."""
    if first.of != second.of:
        return "they were not measured on the same pairs or prompts"
    if min(len(first.values), len(second.values)) < 2:
        return "there are too few seeds to tell"
    return "it is the same for every seed, which has no interval"


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
        if len(known) > AT_ONCE:
            said[row.name] = _among(group.name, best, {n: of for n, (_, of) in known.items()})
            continue
        parts = [_against(group.name, best, other.name, of) for other, of in known.values()]
        said[row.name] = "; ".join(parts) if parts else alone(best)
    return said


def _among(name: str, best: Over, others: dict[str, Over]) -> str:
    told = {other: difference(best, of) for other, of in others.items()}
    better = [other for other, known in told.items() if known and known[0].low > 0]
    said = f"{name} is highest, {written(best)}; beyond the noise of seeds it is better than "
    rest = [other for other in others if other not in better]
    said += ", ".join(better) if rest else f"all {len(better)} others"
    return said if better else f"{name} is highest, {written(best)}, and not beyond noise"


def _against(name: str, best: Over, other: str, of: Over) -> str:
    told = difference(best, of)
    if told is None:
        by = f"{best.mean - of.mean:.3f}: {why_not(best, of)}"
        return f"{name} is higher than {other} by {by}"
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
    """A group that stands alone: its mean, how far seeds differ, and one run's own interval."""
    said = written(of)
    if of.interval:
        low, high = of.ends
        said += f" over {len(of.values)} seeds, from {of.values[low]:.3f} (seed={low}) to "
        said += f"{of.values[high]:.3f} (seed={high}); their deviation is {of.deviation:.3f}"
    if of.own is not None:
        said += f", and one run's own interval, which does not know of it, ± {of.own:.3f}"
    return said


def written(of: Over | None) -> str:
    if of is None:
        return ""
    if of.interval is None:
        how = "one seed" if len(of.values) == 1 else f"the same for all {len(of.values)} seeds"
        return f"{of.mean:.3f} ({how})"
    return f"{of.mean:.3f} ({of.interval.low:.3f} to {of.interval.high:.3f})"


def note(found: list[Group]) -> str:
    return f"{NOTE} {MANY}" if len(found) > AT_ONCE else NOTE


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
