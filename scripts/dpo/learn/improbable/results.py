"""What the runs come to: how far log-probabilities have moved, tables and the picture."""

from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dpo.core.stats import bootstrap
from dpo.learn import pictures, printed
from dpo.learn.improbable.styles import SIDES
from dpo.reports.evaluation_page import said
from dpo.reports.frontier_page import markdown

SHOWN = 8
# As the results have them: how they are named and printed.
METRICS = {
    "chosen": ("chosen, nats a token", ".2f"),
    "rejected": ("rejected, nats a token", ".2f"),
    "greedy": ("its own greedy answer, nats a token", ".2f"),
    "in_style": ("greedy answers in the style", ".0%"),
    "reward": ("true reward", "+.3f"),
    "kl": ("KL, nats a sequence", ".1f"),
}


def changes(now: dict[str, Any], then: dict[str, Any], tokens: np.ndarray) -> dict[str, Any]:
    """How two policies differ on the same pairs, in nats a token of `chosen` and of `rejected`,
    and in `reward` on the same prompts where both were measured: each with its interval.

    Args:
        now, then: what `measure_policy` finds of both.
        tokens: of the answers of each pair, shape (2, pairs).
    """
    found = {
        side: np.subtract(now["each"][side], then["each"][side]).astype(float) for side in SIDES
    }
    moved: dict[str, Any] = {
        side: asdict(bootstrap(found[side], weights=count.astype(float)))
        for side, count in zip(SIDES, tokens, strict=True)
    }
    if "reward" in now["each"] and "reward" in then["each"]:
        rewards = np.subtract(now["each"]["reward"], then["each"]["reward"])
        moved["reward"] = asdict(bootstrap(rewards))
    return moved


def most_displaced(trials: dict[str, dict[str, Any]]) -> str:
    """The style whose chosen answers have lost most, or gained least, a token."""
    return min(trials, key=lambda style: trials[style]["chosen"]["mean"])


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
    named = {"before": results["before"]}
    for style, trial in results["styles"].items():
        named |= {f"{style}, before": trial["before"], f"{style}, change": trial}
    for point in results["points"]:
        of = f"{point['way']}, step {point['step']}"
        named |= {of: point, f"{of}, change": point["change"]}
    named |= {f"{point['way']} less sigmoid": point for point in results["to_sigmoid"]}
    found = {}
    for of, values in named.items():
        found |= printed.claims(of, values, METRICS)
    return found


def table(results: dict[str, Any]) -> str:
    """The styles that were tried, and every way along its run, as Markdown."""
    names = [METRICS[side][0] for side in SIDES]
    steps = results["settings"]["trial"]
    head = ["style", *names, *(f"{side}, gained in {steps} steps" for side in SIDES)]
    tried = [
        [style, *(said(trial["before"][side]) for side in SIDES)]
        + [said(trial[side], "+.2f") for side in SIDES]
        for style, trial in results["styles"].items()
    ]
    along = [["way", "step", *(name for name, _ in METRICS.values())]]
    for point in [{"way": "before", "step": 0, **results["before"]}, *results["points"]]:
        along.append([point["way"], str(point["step"]), *printed.cells(point, METRICS)])
    return markdown([head, *tried]) + "\n" + markdown(along)


def draw(results: dict[str, Any]) -> Figure:
    """Log-probability of chosen and rejected, share in the style and true reward along each way."""
    shown = ("chosen", "rejected", "in_style", "reward")
    figure, axes = pictures.panels(len(shown))
    ways = dict.fromkeys(point["way"] for point in results["points"])
    for axis, name in zip(axes, shown, strict=True):
        for at, way in enumerate(ways):
            points = [{"step": 0, **results["before"]}]
            points += [point for point in results["points"] if point["way"] == way]
            x = [point["step"] + 0.12 * (at - 1) for point in points]  # beside each other
            pictures.line(axis, x, [point[name] for point in points], at, way)
        axis.set(xlabel="step", title=METRICS[name][0])
    for axis in axes[:2]:
        start = results["before"][axis.get_title().partition(",")[0]]["mean"]
        axis.axhline(start, color="#8a94a6", linewidth=0.8, linestyle=":")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
