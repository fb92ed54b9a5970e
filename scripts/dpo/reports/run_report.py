"""What a run ends with: report.json, a picture, and one self-contained HTML page."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dpo.core.files import write_json, write_whole
from dpo.data.quarantine import said_of_lengths
from dpo.reports.html import png, render
from dpo.runs.output_folder import REPORT

BEFORE, AFTER, NEUTRAL, INK = "#8a94a6", "#1f6feb", "#c9d1d9", "#24292f"
SCALES = {"vader": "VADER compound score, -1 to 1"}  # of known rewards
CHOSEN, REJECTED = "#1a7f37", "#cf222e"


def curves(log_history: list[dict]) -> dict[str, list[dict]]:
    """What TRL logs, as one list of points for the training batches and one for the held-out
    pairs."""
    names = {
        "loss": "loss",
        "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
        "chosen": "rewards/chosen",
        "rejected": "rewards/rejected",
    }
    points = {"train": [], "held_out": []}
    for entry in log_history:
        prefix = "eval_" if "eval_loss" in entry else ""
        if f"{prefix}loss" in entry and f"{prefix}rewards/margins" in entry:
            point = {"step": entry["step"], **{k: entry[prefix + v] for k, v in names.items()}}
            points["held_out" if prefix else "train"].append(point)
    return points


def draw(report: dict) -> Figure:
    """The run in one picture: true reward if known, accuracy, loss, implicit rewards."""
    train, held_out = report["curves"]["train"], report["curves"]["held_out"]
    known = report["judge"]
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        rows, columns = (2, 2) if known else (1, 3)
        size = (3.8 * columns, 2.7 * rows)
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
        # zero everywhere.
        result = pairs["accuracy"]
        last = {"step": report["steps"], "accuracy": result["mean"]}
        start = {"step": 0, "accuracy": 0.5}
        inner = [point for point in held_out if point["step"] < report["steps"]]
        line(accuracy, [start, *inner, last], "accuracy", color=AFTER, label="held-out pairs")
        bar = [[result["mean"] - result["low"]], [result["high"] - result["mean"]]]
        accuracy.errorbar(report["steps"], result["mean"], bar, fmt="o", color=AFTER, capsize=3)
        if pairs["ceiling"] is not None:
            accuracy.axhline(
                pairs["ceiling"], color=INK, linestyle=":", label="ceiling: label noise"
            )
    accuracy.set(title="Preference accuracy", xlabel="step", ylim=(0, 1.03))
    accuracy.legend(frameon=False, loc="lower right")

    line(loss, train, "loss", color=NEUTRAL, label="training batches")
    line(loss, held_out, "loss", color=AFTER, marker="o", markersize=3, label="held-out pairs")
    if report["loss_type"] == ["sigmoid"]:
        loss.axhline(math.log(2), color=INK, linestyle=":", label="ln 2: the start")
    loss.set(title="DPO loss", xlabel="step")
    loss.legend(frameon=False)

    line(rewards, train, "chosen", color=CHOSEN, label="chosen")
    line(rewards, train, "rejected", color=REJECTED, label="rejected")
    line(rewards, train, "margin", color=INK, linestyle="--", label="margin")
    rewards.set(title="Implicit reward (training batches)", xlabel="step")
    rewards.legend(frameon=False, loc="lower left")
    return figure


def draw_true_reward(axis, report: dict) -> None:
    judge, sides = report["judge"], {"before": "against", "after": "policy"}
    values = {name: np.ravel(judge["rewards"][side]) for name, side in sides.items()}
    reward = {name: judge["reward"][side]["mean"] for name, side in sides.items()}
    axis.hist(
        values.values(),
        bins=10,
        range=(-1, 1),
        color=[BEFORE, AFTER],
        label=[f"{name}: {reward[name]:+.2f}" for name in values],
    )
    for name, color in (("before", BEFORE), ("after", AFTER)):
        axis.axvline(reward[name], color=color, linestyle="--", linewidth=1.5)
    axis.set(
        title="True reward of held-out answers",
        xlabel=SCALES.get(judge["name"], judge["name"]),
        ylabel="answers",
    )
    axis.legend(frameon=False, loc="upper left")


def of_pairs(count: int, found: dict) -> str:
    """How many pairs something was measured on, of how many prompts if there are fewer, and on how
    many the policy has no view: `124 held-out pairs, 3 of them ties`."""
    prompts, ties = found.get("prompts", count), found.get("ties", 0)
    said = f"{count} held-out pairs" + (
        f" of {prompts} prompt{'s' * (prompts > 1)}" if prompts < count else ""
    )
    return said + (f", {'all' if ties == count else ties} of them ties" if ties else "")


def tiles(report: dict) -> list[tuple[str, str, str]]:
    """The results as (name, value, what it is measured on); the page and the terminal show them."""
    rows, judge, answers = [], report["judge"], report["answers"]
    if judge:
        prompts, reward = report["prompts"], judge["reward"]
        rise, count = reward["difference"], prompts["count"] * prompts["samples"]
        rows.append(
            (
                "True reward",
                f"{reward['against']['mean']:+.2f} → {reward['policy']['mean']:+.2f}",
                f"difference {rise['mean']:+.3f}, 95% interval {rise['low']:+.3f} to "
                f"{rise['high']:+.3f}; {count} answers to {prompts['count']} held-out prompts",
            )
        )
    if pairs := report["pairs"]:
        accuracy, ceiling = pairs["accuracy"], pairs["ceiling"]
        rows.append(
            (
                "Preference accuracy",
                f"0.50 → {accuracy['mean']:.2f}",
                f"95% interval {accuracy['low']:.2f} to {accuracy['high']:.2f}; "
                + (f"label noise leaves {ceiling:.2f}; " if ceiling is not None else "")
                + of_pairs(pairs["count"], pairs),
            )
        )
    if answers:
        length, kl = answers["mean_tokens"], answers["kl"]
        rows += [
            (
                "KL from the reference",
                f"{kl['nats_per_sequence']['mean']:.2f} nats",
                "a sequence, on the policy's own answers",
            ),
            (
                "Answer length",
                f"{length['against']['mean']:.1f} → {length['policy']['mean']:.1f}",
                "tokens, mean, the end token counted",
            ),
        ]
    seconds = report["seconds"]
    rows.append(
        (
            "Time",
            f"{(seconds['train'] + seconds['evaluate']) / 60:.1f} min",
            f"training {seconds['train']:.0f} s, evaluation {seconds['evaluate']:.0f} s; "
            f"peak memory {report['peak_memory_gb']:.1f} GB; {report['machine']}",
        )
    )
    return rows


def data_notes(report: dict) -> list[str]:
    """What was said of the data as it was read; reports of older runs have none."""
    return report["data"].get("notes", [])


def summary(report: dict) -> str:
    data = report["data"]
    rows, aside = data["rows"]["train"], data["set_aside"]["train"]
    why = f", {sum(aside.values())} set aside: {', '.join(aside)}" if aside else ""
    if lengths := data.get("lengths", {}).get("train"):
        why += f"; {said_of_lengths(lengths)}"
    return (
        f"{report['model']} aligned by DPO on {data['name']} ({rows} rows{why}): "
        f"{report['steps']} steps of {report['global_batch']} pairs, β = {report['beta']:g}. "
        f"{report['finished']}"
    )


def along(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """What the policy said at each evaluation, by prompt and way of decoding."""
    by_prompt: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        by_prompt.setdefault((row["prompt"], row["decoding"]), []).append(row)
    return by_prompt


def page(report: dict, drawn: bytes) -> str:
    """The report as one page."""
    code = {"commit": report["commit"]} if report.get("commit") else {}
    return render(
        "run",
        title=report["recipe"],
        summary=summary(report),
        notes=data_notes(report),
        alerts=report["alerts"],
        tiles=tiles(report),
        drawn=drawn,
        samples=report["samples"],
        along=along(report.get("completions", [])),
        settings={**report["settings"], **report["versions"], **code},
    )


def write(report: dict, folder: Path) -> list[Path]:
    """Write report.png, report.html and, last, report.json: it marks the run as finished."""
    drawn = png(draw(report))
    write_whole(folder / "report.png", drawn)
    write_whole(folder / "report.html", page(report, drawn))
    write_json(folder / REPORT, report)
    return [folder / "report.html", folder / REPORT]
