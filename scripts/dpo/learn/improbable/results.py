"""What the runs come to: how far log-probabilities have moved, tables and the picture."""

from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dpo.core.stats import bootstrap
from dpo.learn import pictures, printed
from dpo.learn.improbable.capitals import SIDES
from dpo.reports.evaluation_page import said
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
    named = {"as they were": results["plain"], "before": results["before"]}
    for point in results["points"]:
        of = f"{point['way']}, step {point['step']}"
        named |= {of: point, f"{of}, change": point["change"]}
    named |= {f"{point['way']} less sigmoid": point for point in results["to_sigmoid"]}
    found = {}
    for of, values in named.items():
        found |= printed.claims(of, values, METRICS)
    return found


def table(results: dict[str, Any]) -> str:
    """What the reference gives the answers as they were and in capitals, and what becomes of these
    along each way, as Markdown."""
    names = [METRICS[side][0] for side in SIDES]
    rewritten = (("as they were", results["plain"]), ("in capitals", results["before"]))
    first = [[name, *(said(of[side], ".2f") for side in SIDES)] for name, of in rewritten]
    head = [*(name for name, _ in CHANGE.values()), *(name for name, _ in METRICS.values())]
    along = [["way", "step", *head]]
    along.append(["before", "0", "", "", *printed.cells(results["before"], METRICS)])
    for point in results["points"]:
        cells = printed.cells(point["change"], CHANGE) + printed.cells(point, METRICS)
        along.append([point["way"], str(point["step"]), *cells])
    return markdown([["answers", *names], *first]) + "\n" + markdown(along)


def draw(results: dict[str, Any]) -> Figure:
    """How far chosen and rejected have moved, share in capitals and true reward along each way."""
    level = {name: METRICS[name][0] for name in ("in_capitals", "reward")}
    moved = {side: f"{side}: change, nats a token" for side in SIDES}
    figure, axes = pictures.panels(len(moved) + len(level))
    nothing = {side: {"mean": 0.0, "low": 0.0, "high": 0.0} for side in SIDES}
    start = {"step": 0, **results["before"], "change": nothing}
    ways = dict.fromkeys(point["way"] for point in results["points"])
    for axis, (name, title) in zip(axes, (moved | level).items(), strict=True):
        for at, way in enumerate(ways):
            points = [start, *(p for p in results["points"] if p["way"] == way)]
            x = [point["step"] + 0.5 * (at - 1) for point in points]  # beside each other
            y = [(point["change"] if name in moved else point)[name] for point in points]
            pictures.line(axis, x, y, at, way)
        axis.set(xlabel="step", title=title)
    for axis in axes[: len(moved)]:
        axis.axhline(0, color="#8a94a6", linewidth=0.8, linestyle=":")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
