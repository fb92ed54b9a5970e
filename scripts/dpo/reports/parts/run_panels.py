"""What a run has logged, as panels of curves."""

import math
from typing import Any

from dpo.reports.parts.curves import Panel, Series
from dpo.reports.parts.run_picture import AFTER, BEFORE, CHOSEN, REJECTED, ln2

Entry = dict[str, Any]
TRAINING, HELD_OUT = "training batches", "held-out pairs"
COLORS = {TRAINING: BEFORE, HELD_OUT: AFTER}
ANSWERS = {"chosen": CHOSEN, "rejected": REJECTED, "margin": "#8957e5"}
# title: (what is on the y axis, the metric as metrics.jsonl names it; of held-out pairs `eval_`
# stands before it). A page shows those of which there is a point.
ONE = {
    "DPO loss": ("", "loss"),
    "Preference accuracy": ("share of pairs, a tie half", "rewards/accuracies"),
    "KL from the reference": ("nats a token, on the reference's answers", "drift_nats_per_token"),
    "Length of its own answers": ("tokens", "drift_tokens"),
    "Gradient norm": ("before clipping", "grad_norm"),
    "Learning rate": ("", "learning_rate"),
    "Entropy": ("nats a token, of the policy on the pairs", "entropy"),
    "Token accuracy": ("share of the pairs' tokens that are the likeliest", "mean_token_accuracy"),
    "Pairs a second": ("of all processes", "pairs_per_second"),
    "Tokens a second": ("each prompt counted once", "tokens_per_second"),
    "Useful FLOPs": ("share of what matrix products reach", "mfu"),
    "Peak memory": ("GB, of the first process", "peak_memory_gb"),
}
SEVERAL = {
    "Implicit reward": (
        "β (log π − log π_ref)",
        {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "margin": "rewards/margins"},
    ),
    "Log-probability": (
        "nats an answer, under the policy",
        {"chosen": "logps/chosen", "rejected": "logps/rejected"},
    ),
}
ORDER = ["Preference accuracy", "Implicit reward", "DPO loss", *ONE, "Log-probability"]


def panels(entries: list[Entry], report: dict[str, Any]) -> list[Panel]:
    """The lines of a run's metrics.jsonl as panels, along steps, seconds and pairs; rewards first.
    Of metrics that were not logged there is none."""
    batch, made = report["global_batch"], {}
    for title, (unit, name) in ONE.items():
        made[title] = Panel(title, _both(entries, name, batch), unit)
    for title, (unit, names) in SEVERAL.items():
        series = [
            each
            for key, name in names.items()
            for each in _both(entries, name, batch, key, ANSWERS[key])
        ]
        made[title] = Panel(title, series, unit)
    _mark(made["DPO loss"], ln2(report), math.log(2), report["loss_type"] == ["sigmoid"])
    ceiling = (report["pairs"] or {}).get("ceiling")
    _mark(made["Preference accuracy"], "ceiling: label noise", ceiling, ceiling is not None)
    return [made[title] for title in dict.fromkeys(ORDER) if made[title].series]


def _both(
    entries: list[Entry], name: str, batch: int, key: str | None = None, color: str | None = None
) -> list[Series]:
    """A metric on training batches and on held-out pairs; each where there is a point."""
    both = {TRAINING: name, HELD_OUT: f"eval_{name}"}
    series = [
        Series(
            key or of,
            _along([entry for entry in entries if metric in entry], batch),
            [entry[metric] for entry in entries if metric in entry],
            of if key else "",
            color or COLORS[of],
            held_out=of == HELD_OUT,
        )
        for of, metric in both.items()
    ]
    return [each for each in series if len(each.y)]


def _along(entries: list[Entry], batch: int) -> dict[str, list[float]]:
    return {
        "step": [entry["step"] for entry in entries],
        "seconds": [entry["seconds"] for entry in entries],
        "pairs": [entry["step"] * batch for entry in entries],
    }


def _mark(panel: Panel, key: str, value: float | None, holds: bool) -> None:
    """A level line, over all that the panel has."""
    if not panel.series or not holds:
        return
    ends = {
        axis: [pick(x for series in panel.series for x in series.x[axis]) for pick in (min, max)]
        for axis in panel.series[0].x
    }
    panel.series.append(Series(key, ends, [value, value], line="dotted"))
