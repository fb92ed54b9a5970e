"""What a run ends with: report.json, a picture, and one self-contained HTML page."""

from __future__ import annotations

import html
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dpo.core.files import write_json, write_whole
from dpo.data.quarantine import said_of_lengths
from dpo.reports.html import document, facts, picture, png, tile
from dpo.runs.output_folder import REPORT

BEFORE, AFTER, NEUTRAL, INK = "#8a94a6", "#1f6feb", "#c9d1d9", "#24292f"
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
    known = "true_reward" in report
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
    result = report["preference_accuracy"]
    line(accuracy, train, "accuracy", color=NEUTRAL, label="training batches")
    if result:
        # The last point is the saved policy's, with its interval.
        last = {"step": report["steps"], "accuracy": result["after"]}
        start = {"step": 0, "accuracy": result["before"]}
        inner = [point for point in held_out if point["step"] < report["steps"]]
        line(accuracy, [start, *inner, last], "accuracy", color=AFTER, label="held-out pairs")
        bar = [[result["after"] - result["low"]], [result["high"] - result["after"]]]
        accuracy.errorbar(report["steps"], result["after"], bar, fmt="o", color=AFTER, capsize=3)
        if result["ceiling"] is not None:
            accuracy.axhline(
                result["ceiling"], color=INK, linestyle=":", label="ceiling: label noise"
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
    answers, reward = report["answers"], report["true_reward"]
    values = {name: np.ravel(answers[name]) for name in ("before", "after")}
    axis.hist(
        values.values(),
        bins=10,
        range=(-1, 1),
        color=[BEFORE, AFTER],
        label=[f"{name}: {reward[name]:+.2f}" for name in values],
    )
    for name, color in (("before", BEFORE), ("after", AFTER)):
        axis.axvline(reward[name], color=color, linestyle="--", linewidth=1.5)
    axis.set(title="True reward of held-out answers", xlabel=reward["name"], ylabel="answers")
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
    rows = []
    if "true_reward" in report:
        reward = report["true_reward"]
        answers = reward["prompts"] * reward["answers_per_prompt"]
        rows.append(
            (
                "True reward",
                f"{reward['before']:+.2f} → {reward['after']:+.2f}",
                f"difference {reward['difference']:+.3f}, 95% interval {reward['low']:+.3f} to "
                f"{reward['high']:+.3f}; {answers} answers to {reward['prompts']} held-out prompts",
            )
        )
    if accuracy := report["preference_accuracy"]:
        ceiling = accuracy["ceiling"]
        rows.append(
            (
                "Preference accuracy",
                f"{accuracy['before']:.2f} → {accuracy['after']:.2f}",
                f"95% interval {accuracy['low']:.2f} to {accuracy['high']:.2f}; "
                + (f"label noise leaves {ceiling:.2f}; " if ceiling is not None else "")
                + of_pairs(accuracy["pairs"], accuracy),
            )
        )
    if "true_reward" in report:
        length = report["mean_tokens"]
        rows += [
            (
                "KL from the reference",
                f"{report['kl_nats_per_sequence']:.2f} nats",
                "a sequence, on the policy's own answers",
            ),
            (
                "Answer length",
                f"{length['before']:.1f} → {length['after']:.1f}",
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


def sample(row: dict) -> str:
    def side(name: str, tone: str = "") -> str:
        reward = row[f"reward_{name}"]
        return (
            f'<div><small>{name} <span class="{tone}">{reward:+.2f}</span></small>'
            f"{html.escape(row[name])}</div>"
        )

    tone = "up" if row["reward_after"] > row["reward_before"] else "down"
    return (
        f'<div class="sample"><h3>{html.escape(row["prompt"])}</h3>'
        f'<div class="pair">{side("before")}{side("after", tone)}</div></div>'
    )


def alert(row: dict) -> str:
    text = f"{row['kind']}, step {row['step']}: {row['says']}"
    return f'<p class="alert">{html.escape(text)}</p>'


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


def along(rows: list[dict]) -> str:
    """What the policy said at each evaluation, prompt by prompt, after what the reference says."""
    by_prompt: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        by_prompt.setdefault((row["prompt"], row["decoding"]), []).append(row)

    def side(name: str, text: str) -> str:
        return f"<div><small>{name}</small>{html.escape(text)}</div>"

    def sides(said: list[dict]) -> str:
        steps = "".join(side(f"step {row['step']}", row["policy"]) for row in said)
        return side("reference", said[0]["reference"]) + steps

    return "".join(
        f'<div class="sample"><h3>{html.escape(prompt)} <small>{decoding}</small></h3>'
        f'<div class="pair">{sides(said)}</div></div>'
        for (prompt, decoding), said in by_prompt.items()
    )


def page(report: dict, drawn: bytes) -> str:
    """The report as one page."""
    samples = "".join(map(sample, report.get("samples", [])))
    results = "".join(tile(*row) for row in tiles(report))
    said = along(report.get("completions", []))
    notes = "".join(f'<p class="alert">Data: {html.escape(n)}</p>' for n in data_notes(report))
    code = {"commit": report["commit"]} if report.get("commit") else {}
    says = "True reward, preference accuracy, loss and implicit rewards of the run"
    return document(
        report["recipe"],
        f"""<p class="dim">{html.escape(summary(report))}</p>
{notes}{"".join(map(alert, report["alerts"]))}<div class="tiles">{results}</div>
{picture(drawn, says)}
{f"<h2>The same prompts, before and after</h2>{samples}" if samples else ""}
{f"<h2>While it trained</h2>{said}" if said else ""}
<h2>Settings and versions</h2>{facts({**report["settings"], **report["versions"], **code})}""",
    )


def write(report: dict, folder: Path) -> list[Path]:
    """Write report.png, report.html and, last, report.json: it marks the run as finished."""
    drawn = png(draw(report))
    write_whole(folder / "report.png", drawn)
    write_whole(folder / "report.html", page(report, drawn))
    write_json(folder / REPORT, report)
    return [folder / "report.html", folder / REPORT]
