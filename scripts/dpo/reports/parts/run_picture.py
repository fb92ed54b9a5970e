"""A run in one picture: report.png, and what a page shows where scripts do not run."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

BEFORE, AFTER, NEUTRAL, INK = "#8a94a6", "#1f6feb", "#c9d1d9", "#24292f"
SCALES = {"vader": "VADER compound score, -1 to 1"}  # of known rewards
CHOSEN, REJECTED = "#1a7f37", "#cf222e"


def draw(report: dict, known: bool = True) -> Figure:
    """The run in one picture: true reward if `known`, accuracy, loss, implicit rewards."""
    train, held_out = report["curves"]["train"], report["curves"]["held_out"]
    known = known and bool(report["judge"])
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        rows, columns = (2, 2) if known else (1, 3)
        size = (3.8 * columns, 2.8 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="tight")
    axes = list(axes.flat)
    if known:
        draw_true_reward(axes.pop(0), report)

    def line(axis, points: list[dict], key: str, **style) -> None:
        axis.plot([p["step"] for p in points], [p[key] for p in points], **style)

    accuracy, loss, rewards = axes
    pairs = report["pairs"]
    line(accuracy, train, "accuracy", color=NEUTRAL, label="training batches")
    if pairs:
        # The last point is the saved policy's, with its interval. At first its implicit reward is
        # zero everywhere, unless it starts elsewhere than its reference.
        result = pairs["accuracy"]
        last = {"step": report["steps"], "accuracy": result["mean"]}
        start = [] if report.get("reference") else [{"step": 0, "accuracy": 0.5}]
        inner = [point for point in held_out if point["step"] < report["steps"]]
        line(accuracy, [*start, *inner, last], "accuracy", color=AFTER, label="held-out pairs")
        bar = [[result["mean"] - result["low"]], [result["high"] - result["mean"]]]
        accuracy.errorbar(report["steps"], result["mean"], bar, fmt="o", color=AFTER, capsize=3)
        if (ceiling := pairs["ceiling"]) is not None:
            accuracy.axhline(ceiling, color=INK, linestyle=":", label="ceiling: label noise")
    accuracy.set(xlabel="step", ylim=(0, 1.03))
    head(accuracy, "Preference accuracy")

    line(loss, train, "loss", color=NEUTRAL, label="training batches")
    line(loss, held_out, "loss", color=AFTER, marker="o", markersize=3, label="held-out pairs")
    if report["loss_type"] == ["sigmoid"]:
        loss.axhline(math.log(2), color=INK, linestyle=":", label=ln2(report))
    loss.set(xlabel="step")
    head(loss, "DPO loss")

    line(rewards, train, "chosen", color=CHOSEN, label="chosen")
    line(rewards, train, "rejected", color=REJECTED, label="rejected")
    line(rewards, train, "margin", color=INK, linestyle="--", label="margin")
    rewards.set(xlabel="step")
    head(rewards, "Implicit reward (training batches)")
    return figure


def head(axis, title: str) -> None:
    """A title, and under it the legend: outside, where no line can run through it."""
    axis.set_title(title, pad=20)
    how = {"frameon": False, "fontsize": 7.5, "handlelength": 1.2, "columnspacing": 0.8}
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, **how)


def sides(report: dict) -> tuple[str, str]:
    """What the two models are called whose answers a report has: the policy's start and what became
    of it; or, where the reference is another model, that and the policy."""
    return ("reference", "policy") if report.get("reference") else ("before", "after")


def ln2(report: dict) -> str:
    """What the sigmoid's loss is ln 2 for."""
    return "ln 2: " + ("policy = reference" if report.get("reference") else "the start")


def draw_true_reward(axis, report: dict) -> None:
    judge, colors = report["judge"], (BEFORE, AFTER)
    values = [np.ravel(judge["rewards"][side]) for side in ("against", "policy")]
    before, after = (judge["reward"][side]["mean"] for side in ("against", "policy"))
    means = zip(sides(report), (before, after), strict=True)
    labels = [f"{side}: {mean:+.2f}" for side, mean in means]
    axis.hist(values, bins=10, range=(-1, 1), color=colors, label=labels)
    for mean, color in zip((before, after), colors, strict=True):
        axis.axvline(mean, color=color, linestyle="--", linewidth=1.5)
    scale = SCALES.get(judge["name"], judge["name"])
    axis.set(xlabel=scale, ylabel="answers")
    head(axis, "True reward of held-out answers")


def histogram(report: dict) -> Figure:
    """The true reward of the reference's answers and the policy's, alone."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(5, 3), layout="tight")
    draw_true_reward(axis, report)
    return figure
