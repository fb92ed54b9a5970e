"""What the runs come to: how far log-probabilities have moved, tables and the picture."""

from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dpo.core.stats import bootstrap
from dpo.learn import pictures, printed
from dpo.learn.improbable.capitals import SIDES
from dpo.reports.frontier_page import markdown

SHOWN = 8
# As the results have them: how they are named and printed.
METRICS = {
    "chosen": ("chosen, nats a token", ".2f"),
    "rejected": ("rejected, nats a token", ".2f"),
    "greedy": ("its own greedy answer, nats a token", ".2f"),
    "in_capitals": ("greedy answers in capitals", ".0%"),
    "reward": ("true reward", "+.3f"),
    "kl": ("KL, nats a sequence", ".1f"),
}
CHANGE = {side: (f"{side}, change", "+.2f") for side in SIDES}


def changes(now: dict[str, Any], then: dict[str, Any], tokens: np.ndarray) -> dict[str, Any]:
    """How two policies differ: in nats a token of `chosen` and of `rejected` on the same pairs, and
    in `reward` on the same prompts, each with its interval.

    Args:
        now, then: what `measure_policy` finds of both.
        tokens: of the answers of each pair, shape (2, pairs).
    """
    found = {
        name: np.subtract(now["each"][name], then["each"][name]).astype(float)
        for name in (*SIDES, "reward")
    }
    counts: dict[str, np.ndarray] = dict(zip(SIDES, tokens.astype(float), strict=True))
    return {name: asdict(bootstrap(each, weights=counts.get(name))) for name, each in found.items()}


def side_by_side(
    asked: list[str], before: dict[str, Any], ways: dict[str, dict[str, Any]]
) -> list[dict[str, str]]:
    """Greedy answers of the reference and of every way, to prompts in equal distances."""
    each = range(0, len(asked), max(len(asked) // SHOWN, 1))[:SHOWN]
    return [
        {"prompt": asked[at], "before": before["texts"][at]}
        | {name: found["texts"][at] for name, found in ways.items()}
        for at in each
    ]


def claims(results: dict[str, Any]) -> dict[str, float]:
    """Every number that a page may print of the results, by what it is, rounded as it is printed;
    shares in percent."""
    named = {f"{name}, before": found for name, found in results["before"].items()}
    for point in results["points"]:
        of = f"{point['pairs']}, {point['way']}, step {point['step']}"
        named |= {of: point, f"{of}, change": point["change"]}
    for point in results["to_sigmoid"]:
        named[f"{point['pairs']}, {point['way']} less sigmoid"] = point
    found = {}
    for of, values in named.items():
        found |= printed.claims(of, values, METRICS)
    return found


def table(results: dict[str, Any]) -> str:
    """What becomes of the answers along each way, as they were and in capitals, as Markdown."""
    head = [*(name for name, _ in CHANGE.values()), *(name for name, _ in METRICS.values())]
    rows = [["answers", "way", "step", *head]]
    for name, before in results["before"].items():
        rows.append([name, "before", "0", "", "", *printed.cells(before, METRICS)])
        for point in of_pairs(results, name):
            cells = printed.cells(point["change"], CHANGE) + printed.cells(point, METRICS)
            rows.append([name, point["way"], str(point["step"]), *cells])
    return markdown(rows)


def of_pairs(results: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The points of pairs that are written in one way."""
    return [point for point in results["points"] if point["pairs"] == name]


def draw(results: dict[str, Any]) -> Figure:
    """How far chosen and rejected answers have moved along each way, as they were and in
    capitals."""
    shown = [(name, side) for name in results["before"] for side in SIDES]
    figure, axes = pictures.panels(len(shown), sharey=True)
    start = {"mean": 0.0, "low": 0.0, "high": 0.0}
    ways = [*dict.fromkeys(point["way"] for point in results["points"])]
    for axis, (name, side) in zip(axes, shown, strict=True):
        for at, way in enumerate(ways):
            points = [point for point in of_pairs(results, name) if point["way"] == way]
            if points:
                x = [0, *(p["step"] + 0.5 * (at - 1) for p in points)]  # beside each other
                y = [start, *(p["change"][side] for p in points)]
                pictures.line(axis, x, y, at, way)
        axis.axhline(0, color="#8a94a6", linewidth=0.8, linestyle=":")
        axis.set(xlabel="step", title=f"{side}, {name}")
    axes[0].set_ylabel("change, nats a token")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure
