"""A comparison of runs as a table in Markdown and as a page with their curves overlaid."""

from __future__ import annotations

import html
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dpo import comparison
from dpo.comparison import Compared, Row
from dpo.intervals import Interval
from dpo.output import write_whole
from dpo.page import document, picture, png

# Okabe and Ito's colours, told apart by the colour-blind too; then once more, dashed.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
PANELS = {
    "loss": "loss",
    "accuracy": "preference accuracy",
    "margin": "margin of the implicit reward",
    "chosen": "implicit reward, chosen",
    "rejected": "implicit reward, rejected",
    "eval_drift_nats_per_token": "drift from the start, nats a token",
    "eval_drift_tokens": "the policy's own answers, tokens",
}
WITHIN_NOISE = "within noise"


def draw(runs: list[Compared]) -> Figure:
    """Every curve of all runs: held-out pairs strong, training batches pale."""
    points = {
        run.name: run.curves | {"drift": [e for e in run.entries if DRIFT in e]} for run in runs
    }
    panels = [name for name in PANELS if any(_points(of, name) for of in points.values())]
    rows = -(-len(panels) // 2)
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axes = plt.subplots(
            *(rows, 2), figsize=(9, 2.7 * rows + 0.3 * len(runs)), layout="constrained"
        )
    for axis, name in zip(axes.flat, panels, strict=False):
        for at, of in enumerate(points.values()):
            style = {"color": COLORS[at % 7], "linestyle": STYLES[at // 7 % 3]}
            if name in (train := (of["train"] or [{}])[0]) and train:
                axis.plot(*_xy(of["train"], name), **style, alpha=0.3, linewidth=1)
            axis.plot(*_xy(_points(of, name), name), **style, marker="o", markersize=3)
        axis.set(title=PANELS[name], xlabel="step")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles = [
        plt.Line2D([], [], color=COLORS[at % 7], linestyle=STYLES[at // 7 % 3], label=run.name)
        for at, run in enumerate(runs)
    ]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=1)
    return figure


DRIFT = "eval_drift_nats_per_token"


def _points(of: dict[str, list[dict]], name: str) -> list[dict]:
    """Where a metric was measured on held-out pairs; on training batches, where nothing else is."""
    if name.startswith("eval_drift"):
        return [point for point in of["drift"] if name in point]
    return of["held_out"] or of["train"]


def _xy(points: list[dict], name: str) -> tuple[list, list]:
    return [point["step"] for point in points], [point[name] for point in points]


def against_first(difference: Interval | None) -> str:
    """How a run differs from the first, in words."""
    if difference is None:
        return ""
    noise = f", {WITHIN_NOISE}" if difference.low <= 0 <= difference.high else ""
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}){noise}"


def markdown(runs: list[Compared], rows: list[Row], title: str) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [line(["", *(run.name for run in runs)]), "|---" * (len(runs) + 1) + "|"]
    for key in runs[0].differs:
        body.append(line([f"`{key}`", *(run.differs[key] for run in runs)]))
    for row in rows:
        best = row.best()
        cells = [f"**{cell}**" if at == best else cell for at, cell in enumerate(row.values)]
        body.append(line([row.name, *cells]))
        if any(row.differences):
            body.append(line(["— against the first", *map(against_first, row.differences)]))
    also = comparison.surroundings(runs)
    notes = [NOTE] + [f"- also different: {key}: {'; '.join(v)}" for key, v in also.items()]
    return f"# {title}\n\n" + "\n".join([*body, "", *notes]) + "\n"


NOTE = (
    "Intervals are of 95%. A difference is paired, over the same held-out pairs or prompts; marked "
    "is a run that is better than the first beyond noise, or the first if it is better than all."
)


def _table(runs: list[Compared], rows: list[Row]) -> str:
    def line(name: str, cells: list[str], best: int | None = None, tone: str = "") -> str:
        said = "".join(
            f"<td{' class=up' if at == best else tone}>{html.escape(cell)}</td>"
            for at, cell in enumerate(cells)
        )
        return f'<tr><td class="dim">{html.escape(name)}</td>{said}</tr>'

    heads = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    body = [line(key, [run.differs[key] for run in runs]) for key in runs[0].differs]
    for row in rows:
        body.append(line(row.name, row.values, row.best()))
        if any(row.differences):
            cells = [*map(against_first, row.differences)]
            body.append(line("— against the first", cells, tone=' class="dim"'))
    return f'<div class="wide"><table><tr><th></th>{heads}</tr>{"".join(body)}</table></div>'


def _side_by_side(sample: dict) -> str:
    def side(name: str, text: str, reward: float | None) -> str:
        score = "" if reward is None else f" {reward:+.2f}"
        return f"<div><small>{html.escape(name)}{score}</small>{html.escape(text)}</div>"

    answers = "".join(side(*answer) for answer in sample["answers"])
    return (
        f'<div class="sample"><h3>{html.escape(sample["prompt"])}</h3><div class="pair">'
        f"{side('reference', *sample['reference'])}{answers}</div></div>"
    )


def page(runs: list[Compared], rows: list[Row], title: str) -> str:
    also = comparison.surroundings(runs)
    warning = "".join(
        f'<p class="alert">Not the settings alone: {html.escape(key)} differs: '
        f"{html.escape('; '.join(values))}</p>"
        for key, values in also.items()
    )
    shown = "".join(map(_side_by_side, comparison.samples(runs)))
    says = "Loss, accuracy, margin, implicit rewards, drift and length of all runs by step"
    return document(
        title,
        f"""<p class="dim">{comparison.today()}. {html.escape(NOTE)}</p>{warning}
<h2>In the end</h2>{_table(runs, rows)}
<h2>Along the runs</h2>
<p class="dim">On held-out pairs; pale, on training batches.</p>{picture(png(draw(runs)), says)}
{f"<h2>The same prompts</h2>{shown}" if shown else ""}""",
    )


def write(runs: list[Compared], into: Path, title: str) -> list[Path]:
    """Write comparison.html and comparison.md; returns their paths."""
    rows = comparison.rows(runs)
    into.mkdir(parents=True, exist_ok=True)
    written = {
        into / "comparison.html": page(runs, rows, title),
        into / "comparison.md": markdown(runs, rows, title),
    }
    for path, text in written.items():
        write_whole(path, text)
    return [*written]
