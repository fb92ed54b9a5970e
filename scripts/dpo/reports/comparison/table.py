"""What runs came to, metric by metric."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core import files
from dpo.core.stats import accuracy, said
from dpo.reports.comparison.collect import Compared
from dpo.reports.comparison.row import COSTS, Row, Units
from dpo.reports.evaluation_page import with_error

Number = dict[str, float]  # a mean, with low and high where it has an interval


def table(runs: list[Compared]) -> list[Row]:
    """All that is known of the runs; rows that no run has are left out. What `make evaluate` found
    is a set of rows for each opponent and judge."""
    evaluated = sorted({name for run in runs for name in run.evaluations})
    margin, kl = ("pairs", "margin"), ("answers", "kl")
    reports = [run.report for run in runs]
    found = [
        Row("state", [run.state for run in runs]),
        _accuracy(runs),
        _reward(runs),
        _under("rise of the true reward", "+.3f", reports, "judge", "reward", "difference"),
        _under("on topic", ".3f", reports, "answers", "on_topic", "policy"),
        _under("KL, nats a sequence", ".2f", reports, *kl, "nats_per_sequence"),
        _under("KL, nats a token", ".3f", reports, *kl, "nats_per_token"),
        _tokens(runs),
        *(each for name in evaluated for each in _evaluation(runs, name)),
        _under("held-out margin", "+.3f", reports, *margin),
        _best("held-out loss, last", runs, "loss", lambda points, **_: points[-1]),
        _best("held-out loss, best", runs, "loss", min),
        _best("held-out accuracy, best", runs, "accuracy", max),
        Row("alerts", [*map(_alerts, runs)]),
        _minutes(runs),
        _of_numbers(COSTS[1], ".1f", [of.get("peak_memory_gb") for of in reports]),
    ]
    return [row for row in found if any(row.values)]


def _under(name: str, form: str, found: list[dict], *keys: str) -> Row:
    """A row of what lies under these keys: a mean, with its interval where there is one."""
    of = [_of(each, *keys) for each in found]
    return Row(name, [_text(each, form) for each in of], [*map(_number, of)])


def _of_numbers(name: str, form: str, values: list[float | None]) -> Row:
    numbers: list[Number | None] = [None if v is None else {"mean": v} for v in values]
    return Row(name, [_text(each, form) for each in numbers], numbers)


def _text(of: dict | None, form: str) -> str:
    if not of:
        return ""
    return said(of, form) if "low" in of else f"{of['mean']:{form}}"


def _number(of: dict | None) -> Number | None:
    return {key: of[key] for key in ("mean", "low", "high") if key in of} if of else None


def _of(found: dict[str, Any] | None, *keys: str) -> Any:
    """What lies under these keys, each within the one before it; None where one has nothing."""
    for key in keys:
        found = (found or {}).get(key)
    return found


def _accuracy(runs: list[Compared]) -> Row:
    margins = [np.array(_of(run.report, "pairs", "margins") or []) for run in runs]
    row = _under("held-out accuracy", ".3f", [run.report for run in runs], "pairs", "accuracy")
    gained = [number["low"] > 0.5 if number else None for number in row.numbers]
    units = [_held_out(run, accuracy(of), of, True) for run, of in zip(runs, margins, strict=True)]
    effect = _furthest(row.numbers, 0.5)
    return Row(row.name, row.values, row.numbers, units, gained, effect=effect)


def _furthest(numbers: list[Number | None], neutral: float) -> float:
    return max((abs(number["mean"] - neutral) for number in numbers if number), default=0.0)


def _held_out(
    run: Compared, values: np.ndarray, measured: np.ndarray, shares: bool, by_pair: bool = True
) -> Units | None:
    """What was measured on the first held-out pairs, or on their prompts."""
    pairs, count = _of(run.report, "pairs") or {}, len(values)
    if not (pairs.get("digest") and count):
        return None
    numbers = pairs["prompt_numbers"][:count] if by_pair and pairs.get("prompt_numbers") else None
    of = (pairs["digest"], count)
    return Units(of, values, numbers and np.array(numbers), shares, measured.tobytes())


def _reward(runs: list[Compared]) -> Row:
    found = [_of(run.report, "judge", "reward") for run in runs]
    rises = [_of(of, "difference") for of in found]
    row = _under("true reward", "+.3f", [of or {} for of in found], "policy")
    units = []
    for run in runs:
        rewards = np.array(_of(run.report, "judge", "rewards", "policy") or [[]], dtype=float)
        old = run.report.get("format") == 1  # then prompts are asked as often as pairs have them
        values = rewards.mean(axis=1) if rewards.size else np.array([])
        units.append(_held_out(run, values, rewards, False, old))
    gained = [rise["low"] > 0 if rise else None for rise in rises]
    effect = _furthest(rises, 0)
    return Row(row.name, row.values, row.numbers, units, gained, effect=effect)


def _best(name: str, runs: list[Compared], key: str, which: Callable) -> Row:
    """The best of what was seen at evaluations along each run, and when first."""
    values, numbers = [], []
    for run in runs:
        points = [point for point in run.curves["held_out"] if point[key] is not None]
        point = which(points, key=lambda point: point[key]) if points else None
        last = run.curves["held_out"][-1] if run.curves["held_out"] else {}
        if last.get(key, 0) is None and name.endswith("last"):
            values.append(f"not finite at step {last['step']}")
            numbers.append(None)
            continue
        values.append(f"{point[key]:.4f} at step {point['step']}" if point else "")
        numbers.append({"mean": point[key]} if point else None)
    return Row(name, values, numbers)


def _tokens(runs: list[Compared]) -> Row:
    found = [_of(run.report, "answers", "mean_tokens") for run in runs]
    parts = [(of["policy"], of["difference"]["mean"]) if of else None for of in found]
    said = [f"{of[0]['mean']:.1f} ({of[1]:+.1f})" if of else "" for of in parts]
    return Row("answer, tokens", said, [_number(of[0]) if of else None for of in parts])


def _alerts(run: Compared) -> str:
    said = [f"{alert['kind']} (step {alert['step']})" for alert in run.report.get("alerts", [])]
    return ", ".join(said) or ("none" if run.report else "")


def _minutes(runs: list[Compared]) -> Row:
    values, numbers = [], []
    for run in runs:
        seconds = run.report.get("seconds")
        total = sum(seconds.values()) / 60 if seconds else None
        said = f"{total:.1f} (training {seconds['train'] / 60:.1f})" if seconds else ""
        if not seconds and run.entries:
            said = f"{run.entries[-1]['seconds'] / 60:.1f} so far"
        values.append(said)
        numbers.append({"mean": total} if seconds else None)
    return Row(COSTS[0], values, numbers)


def _evaluation(runs: list[Compared], name: str) -> list[Row]:
    found = [run.evaluations.get(name, {}) for run in runs]
    rates = _under(f"win rate, {name}", ".3f", found, "judge", "win_rate")
    units = [
        _preferred(run.folder / "evaluations" / name, of) if rate else None
        for run, of, rate in zip(runs, found, rates.numbers, strict=True)
    ]
    gained = [rate["low"] > 0.5 if rate else None for rate in rates.numbers]
    over = " or ".join(dict.fromkeys(of["against"] for of in found if of))
    effect = _furthest(rates.numbers, 0.5)

    def row(what: str, form: str, *keys: str) -> Row:
        return _under(f"{what}, {name}", form, found, *keys)

    rows = [
        Row(*(rates.name, rates.values, rates.numbers), units, gained, over, effect),
        row("length-controlled", ".3f", "judge", "length_controlled_win_rate"),
        row("reward difference", "+.3f", "judge", "reward", "difference"),
        row("KL, nats a sequence", ".2f", "answers", "kl", "nats_per_sequence"),
        row("tokens longer", "+.1f", "answers", "mean_tokens", "difference"),
    ]
    for task, metric in sorted({each for of in found for each in _metrics(of)}):
        measured = [_metrics(of).get((task, metric)) for of in found]
        both = [of and [with_error(of, side) for side in ("policy", "against")] for of in measured]
        said = ["{} (against {})".format(*values) if values else "" for values in both]
        numbers = [{"mean": of["policy"]} if of else None for of in measured]
        rows.append(Row(f"{task}, {metric}, {name}", said, numbers))
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
    of = (found["against"], how, *(line["prompt"] for line in lines))
    answers = tuple(line.get("policy") for line in lines)
    said = None if None in answers else (answers, verdicts.tobytes())
    return Units(of, means, shares=True, said=said)
