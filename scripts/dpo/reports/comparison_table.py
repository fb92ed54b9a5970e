"""What runs came to, metric by metric, and by how much they differ beyond noise."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core import files, stats
from dpo.core.stats import Interval, accuracy
from dpo.reports.comparison import Compared
from dpo.reports.evaluation_page import said, with_error


@dataclass
class Units:
    """What a metric is the mean of, shape (n,), one for each held-out pair or prompt; NaN where
    there is none. Those with the same `of` are of the same pairs or prompts. `prompts`, shape (n,):
    which prompt each pair is of."""

    of: Hashable
    values: np.ndarray
    prompts: np.ndarray | None = None


@dataclass
class Row:
    """A metric of every run: `values` as text, "" where a run has none.

    `units` where runs can be held against each other: then `between[i][j]` is how run i differs
    from run j, paired, None where they have nothing in common. `gained` says which runs are better
    than `over` beyond noise, None where that is not known.
    """

    name: str
    values: list[str]
    units: list[Units | None] = field(default_factory=list)
    gained: list[bool | None] = field(default_factory=list)
    over: str = "the reference"

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


def _between(units: list[Units | None]) -> list[list[Interval | None]]:
    table: list[list[Interval | None]] = [[None] * len(units) for _ in units]
    for of in {each.of for each in units if each}:
        runs = [at for at, each in enumerate(units) if each and each.of == of]
        values = np.stack([units[at].values for at in runs])
        known = ~np.isnan(values).any(axis=0)
        values = values[:, known]
        if len(runs) > 1 and values.size:
            of_run = (units[at].prompts for at in runs)
            prompts = next((each[known] for each in of_run if each is not None), None)
            found = stats.paired(values, prompts=prompts)
            for i, row in zip(runs, found, strict=True):
                for j, difference in zip(runs, row, strict=True):
                    table[i][j] = difference if i != j else None
    return table


def within_noise(difference: Interval) -> bool:
    return difference.low <= 0 <= difference.high


def against(difference: Interval | None) -> str:
    """How a run differs from another, in words."""
    if difference is None:
        return ""
    noise = ", within noise" if within_noise(difference) else ""
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}){noise}"


def verdicts(runs: list[Compared], rows: list[Row]) -> dict[str, str]:
    """What the table comes to, in words, by the name of each metric that has a better and a worse:
    which runs are best, and which are better than what the row holds them against."""
    found = {}
    for row in rows:
        top, said = row.highest(), []
        if top is not None:
            name, near = runs[top].name, row.near(top)
            if not near:
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


def table(runs: list[Compared]) -> list[Row]:
    """All that is known of the runs; rows that no run has are left out. What `make evaluate` found
    is a set of rows for each opponent and judge."""
    evaluated = sorted({name for run in runs for name in run.evaluations})

    def row(name: str, value: Callable[[Compared], str]) -> Row:
        return Row(name, [value(run) for run in runs])

    found = [
        row("state", lambda run: run.state),
        _accuracy(runs),
        row("held-out margin", lambda run: _interval(_of(run.report, "pairs", "margin"), "+.3f")),
        row("held-out loss, last", lambda run: _best(run, "loss", lambda points, **_: points[-1])),
        row("held-out loss, best", lambda run: _best(run, "loss", min)),
        row("held-out accuracy, best", lambda run: _best(run, "accuracy", max)),
        _reward(runs),
        row("KL, nats a sequence", lambda run: _kl(run, "nats_per_sequence", ".2f")),
        row("KL, nats a token", lambda run: _kl(run, "nats_per_token", ".3f")),
        row("answer, tokens", _tokens),
        *(each for name in evaluated for each in _evaluation(runs, name)),
        row("alerts", _alerts),
        row("minutes", _minutes),
        row("peak memory, GB", lambda run: _form(run.report.get("peak_memory_gb"), ".1f")),
    ]
    return [row for row in found if any(row.values)]


def _interval(of: dict | None, form: str) -> str:
    return said(of, form) if of else ""


def _kl(run: Compared, key: str, form: str) -> str:
    return _form(_of(run.report, "answers", "kl", key, "mean"), form)


def _form(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _of(found: dict[str, Any] | None, *keys: str) -> Any:
    """What lies under these keys, each within the one before it; None where one has nothing."""
    for key in keys:
        found = (found or {}).get(key)
    return found


def _accuracy(runs: list[Compared]) -> Row:
    correct = [accuracy(np.array(_of(run.report, "pairs", "margins") or [])) for run in runs]
    found = [_of(run.report, "pairs", "accuracy") for run in runs]
    gained = [of["low"] > 0.5 if of else None for of in found]
    units = [*map(_held_out, runs, correct)]
    return Row("held-out accuracy", [_interval(of, ".3f") for of in found], units, gained)


def _held_out(run: Compared, values: np.ndarray, by_pair: bool = True) -> Units | None:
    """What was measured on the first held-out pairs, or on their prompts."""
    pairs, count = _of(run.report, "pairs") or {}, len(values)
    if not (pairs.get("digest") and count):
        return None
    numbers = pairs["prompt_numbers"][:count] if by_pair and pairs.get("prompt_numbers") else None
    return Units((pairs["digest"], count), values, numbers and np.array(numbers))


def _reward(runs: list[Compared]) -> Row:
    found = [_of(run.report, "judge", "reward") for run in runs]
    rises = [_of(of, "difference") for of in found]
    said = [
        f"{of['policy']['mean']:+.3f}; rise {_interval(rise, '+.3f')}" if of else ""
        for of, rise in zip(found, rises, strict=True)
    ]
    units = []
    for run in runs:
        rewards = _of(run.report, "judge", "rewards", "policy")
        values = np.array(rewards).mean(axis=1) if rewards else np.array([])
        old = run.report.get("format") == 1  # then prompts are asked as often as pairs have them
        units.append(_held_out(run, values, old))
    return Row("true reward", said, units, [rise["low"] > 0 if rise else None for rise in rises])


def _best(run: Compared, key: str, which: Callable) -> str:
    """The best of what was seen at evaluations along the run, and when first."""
    points = [point for point in run.curves["held_out"] if point[key] is not None]
    if not points:
        return ""
    point = which(points, key=lambda point: point[key])
    return f"{point[key]:.4f} at step {point['step']}"


def _tokens(run: Compared) -> str:
    length = _of(run.report, "answers", "mean_tokens")
    if not length:
        return ""
    return f"{length['policy']['mean']:.1f} ({length['difference']['mean']:+.1f})"


def _alerts(run: Compared) -> str:
    said = [f"{alert['kind']} (step {alert['step']})" for alert in run.report.get("alerts", [])]
    return ", ".join(said) or ("none" if run.report else "")


def _minutes(run: Compared) -> str:
    if run.report:
        seconds = run.report["seconds"]
        return f"{sum(seconds.values()) / 60:.1f} (training {seconds['train'] / 60:.1f})"
    return f"{run.entries[-1]['seconds'] / 60:.1f} so far" if run.entries else ""


def _evaluation(runs: list[Compared], name: str) -> list[Row]:
    found = [run.evaluations.get(name, {}) for run in runs]
    rates = [_of(of, "judge", "win_rate") for of in found]
    units = [
        _preferred(run.folder / "evaluations" / name, of) if rate else None
        for run, of, rate in zip(runs, found, rates, strict=True)
    ]

    def row(what: str, form: str, *keys: str) -> Row:
        return Row(f"{what}, {name}", [_interval(_of(of, *keys), form) for of in found])

    rows = [
        Row(
            f"win rate, {name}",
            [_interval(rate, ".3f") for rate in rates],
            units,
            [rate["low"] > 0.5 if rate else None for rate in rates],
            " or ".join(dict.fromkeys(of["against"] for of in found if of)),
        ),
        row("length-controlled", ".3f", "judge", "length_controlled_win_rate"),
        row("reward difference", "+.3f", "judge", "reward", "difference"),
        row("KL, nats a sequence", ".2f", "answers", "kl", "nats_per_sequence"),
        row("tokens longer", "+.1f", "answers", "mean_tokens", "difference"),
    ]
    for task, metric in sorted({each for of in found for each in _metrics(of)}):
        measured = [_metrics(of).get((task, metric)) for of in found]
        both = [of and [with_error(of, side) for side in ("policy", "against")] for of in measured]
        said = ["{} (against {})".format(*values) if values else "" for values in both]
        rows.append(Row(f"{task}, {metric}, {name}", said))
    return rows


def _metrics(found: dict[str, Any]) -> dict[tuple[str, str], dict]:
    suite = found.get("suite") or {}
    return {(task, metric): of for task, each in suite.items() for metric, of in each.items()}


def _preferred(folder: Path, found: dict[str, Any]) -> Units | None:
    """How often a judge preferred the policy, prompt by prompt."""
    lines = files.read_lines(folder / "answers.jsonl")
    if not lines:
        return None
    verdicts = np.array([line["preferred"] for line in lines], dtype=float)
    verdicts = verdicts.reshape(-1, found["prompts"]["samples"])
    counts = (~np.isnan(verdicts)).sum(axis=1)
    means = np.where(counts, np.nansum(verdicts, axis=1) / np.maximum(counts, 1), np.nan)
    how = tuple(found["prompts"][key] for key in ("temperature", "max_new_tokens", "samples"))
    return Units((found["against"], how, *(line["prompt"] for line in lines)), means)
