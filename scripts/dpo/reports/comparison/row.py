"""A metric of several runs, by how much the runs differ in it beyond noise, and that in words."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from dpo.core import stats
from dpo.core.stats import Interval, Unanimous
from dpo.reports.comparison.collect import Compared, seeds_alone

COSTS = ("minutes", "peak memory, GB")
FEW = 30  # pairs or prompts: of fewer, bootstrap intervals come out too narrow
POWER = (1.96 + 0.84) / 1.96  # of the half width of a 95% interval: what is found in 80% of cases


@dataclass
class Units:
    """What a metric is the mean of, shape (n,), one for each held-out pair or prompt; NaN where
    there is none.

    Those with the same `of` are of the same pairs or prompts. `prompts`, shape (n,): which prompt
    each pair is of. `shares` are of right and wrong, as for `stats.paired`. Where `said`, which is
    all that was measured, is the same in two runs, the runs are the same as far as was measured.
    """

    of: Hashable
    values: np.ndarray
    prompts: np.ndarray | None = None
    shares: bool = False
    said: Hashable = None


@dataclass
class Row:
    """A metric of every run: `values` as text, "" where a run has none, and `numbers` as `mean`,
    with `low` and `high` where it has an interval.

    `units` where runs can be held against each other: then `between[i][j]` is how run i differs
    from run j, paired, None where they have nothing in common. `gained` says which runs are better
    than `over` beyond noise, None where that is not known. `effect` is how far the furthest run has
    come from where it started.
    """

    name: str
    values: list[str]
    numbers: list[dict[str, float] | None] = field(default_factory=list)
    units: list[Units | None] = field(default_factory=list)
    gained: list[bool | None] = field(default_factory=list)
    over: str = "the reference"
    effect: float = 0.0

    def __post_init__(self) -> None:
        self.between: list[list[Interval | None]] = _between(self.units)

    def differences(self) -> list[Interval | None]:
        """How each run differs from the first; empty where no run can be held against another."""
        first = [of_run[0] for of_run in self.between]
        return first if any(first) else []

    def measured(self) -> list[int]:
        return [at for at, of_run in enumerate(self.between) if any(of_run)]

    def best(self) -> int | None:
        """The run that is better than all others beyond noise, if there is one."""
        top = self.highest()
        return None if top is None or self.near(top) else top

    def highest(self) -> int | None:
        """The run with the highest mean; None where not all that were measured are comparable."""
        found = self.measured()
        if not found or len({units.of for units in self.units if units}) > 1:
            return None
        return max(found, key=lambda at: sum(self.between[at][j].mean for j in found if j != at))

    def near(self, top: int) -> list[int]:
        """The runs that are within noise of the highest."""
        return [at for at in self.measured() if at != top and self.between[top][at].low <= 0]

    def count(self) -> int:
        """Prompts that the runs were measured on, the fewest of any; 0 where there are none."""
        known = [units for units in self.units if units]
        asked = [u.values if u.prompts is None else np.unique(u.prompts) for u in known]
        return min(map(len, asked), default=0)

    def detectable(self) -> float | None:
        """The smallest difference between two runs that such a set would show in 80% of cases, by
        the noise of those that were seen. Of one run: from a number that is known."""
        found = [each for of_run in self.between for each in of_run if each and not same(each)]
        ends = [(each.low, each.high) for each in found]
        if not ends:
            ends = [(n["low"], n["high"]) for n in self.numbers if n and "low" in n]
        return POWER * float(np.median([high - low for low, high in ends])) / 2 if ends else None


def _between(units: list[Units | None]) -> list[list[Interval | None]]:
    table: list[list[Interval | None]] = [[None] * len(units) for _ in units]
    for of in {each.of for each in units if each}:
        runs = [at for at, each in enumerate(units) if each and each.of == of]
        those = [units[at] for at in runs]
        values = np.stack([each.values for each in those])
        known = ~np.isnan(values).any(axis=0)
        values = values[:, known]
        if len(runs) > 1 and values.size:
            prompts = next((u.prompts[known] for u in those if u.prompts is not None), None)
            found = stats.paired(values, prompts=prompts, shares=all(u.shares for u in those))
            for i, at in enumerate(runs):
                for j, other in enumerate(runs):
                    alike = those[i].said is not None and those[i].said == those[j].said
                    difference = Interval(0.0, 0.0, 0.0) if alike else found[i][j]
                    table[at][other] = difference if i != j else None
    return table


def within_noise(difference: Interval) -> bool:
    return difference.low <= 0 <= difference.high


def same(difference: Interval) -> bool:
    """Whether two runs are the same wherever they were measured: no noise is in that."""
    return difference.low == difference.mean == difference.high == 0


def against(difference: Interval | None) -> str:
    """How a run differs from another, in words."""
    if difference is None:
        return ""
    if same(difference):
        return "0: identical throughout"
    noise = ", within noise" if within_noise(difference) else ""
    alike = "; every prompt alike: Wilson's" if isinstance(difference, Unanimous) else ""
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}{alike}){noise}"


def verdicts(runs: list[Compared], rows: list[Row]) -> dict[str, str]:
    """What the table comes to, in words, by the name of each metric that has a better and a worse:
    which runs are best, and which are better than what the row holds them against."""
    found = {}
    for row in rows:
        top, said = row.highest(), []
        if top is not None:
            name, near = runs[top].name, row.near(top)
            differ = [row.between[top][at] for at in row.measured() if at != top]
            if all(map(same, differ)):
                said.append("identical throughout in all")
            elif not near and seeds_alone(runs):
                said.append(f"{name} is highest, by its luck: nothing differs but the seed")
            elif not near:
                said.append(f"{name} is best, beyond noise")
            elif len(near) == len(row.measured()) - 1:
                said.append(f"all within noise of the highest, {name}")
            else:
                names = ", ".join(runs[at].name for at in near)
                said.append(f"{name} is highest, within noise of {names}")
        elif len({units.of for units in row.units if units}) > 1:
            said.append("not measured on the same pairs or prompts, so not compared")
        known = [(run.name, better) for run, better in zip(runs, row.gained, strict=False)]
        better, worse = ([n for n, gained in known if gained is which] for which in (True, False))
        if better or worse:
            who = "all" if not worse else f"all but {', '.join(worse)}"
            if len(better) + len(worse) < len(known) or len(worse) >= len(better):
                who = ", ".join(better) or "none"
            said.append(f"better than {row.over}, beyond noise: {who}")
        if said:
            found[row.name] = "; ".join(said)
    return found


def powers(rows: list[Row]) -> dict[str, tuple[str, bool]]:
    """By metric: what the number of pairs or prompts lets one see, in words, and whether that is
    too little: a difference as large as all that training did would be missed."""
    found = {}
    for row in rows:
        least, count = row.detectable(), row.count()
        if not count or least is None:
            continue
        few, blind = count < FEW, least > row.effect
        said = f"{count} prompts show a difference of {least:.3f} in 80% of cases"
        said += f"; fewer than {FEW}: even that may be too hopeful" if few else ""
        said += f"; no run came further than {row.effect:.3f} from its start" if blind else ""
        found[row.name] = (said, few or blind)
    return found
