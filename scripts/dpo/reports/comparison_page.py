"""A comparison of runs as a table in Markdown, and as a page with their curves overlaid."""

import html
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpo.core.files import write_whole
from dpo.core.machine import now
from dpo.core.stats import Interval
from dpo.core.terminal import visible
from dpo.reports import comparison, comparison_table, frontier_page
from dpo.reports.comparison import Compared
from dpo.reports.comparison_table import Row, against, verdicts, within_noise
from dpo.reports.html import png, render

# Okabe and Ito's colours, told apart by the colour-blind too; then once more, dashed and dotted.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = (("-", "solid"), ("--", "dashed"), (":", "dotted"))  # of matplotlib, and of CSS
PANELS = {
    "loss": "loss",
    "accuracy": "preference accuracy",
    "margin": "implicit reward, chosen less rejected",
    "chosen": "implicit reward, chosen",
    "rejected": "implicit reward, rejected",
    "eval_drift_nats_per_token": "KL(reference ‖ policy), nats a token",
    "eval_drift_tokens": "the policy's own answers, tokens",
}
NOTE = (
    "Intervals are of 95%. Differences between runs are paired, over the same held-out pairs or "
    "prompts; within noise is one whose interval holds zero. Another seed of training would add "
    "noise that no interval here knows of."
)
AGAINST = "— against the first"
MANY = "Of twenty differences that are none, one is beyond noise by chance."


def note(runs: list[Compared]) -> str:
    return f"{NOTE} {MANY}" if len(runs) > 3 else NOTE


def style(at: int, css: bool = False) -> tuple[str, str]:
    """The colour and the line of the run at a place, as matplotlib or CSS names them."""
    return COLORS[at % len(COLORS)], STYLES[at // len(COLORS) % len(STYLES)][css]


def draw(runs: list[Compared], name: str) -> Figure | None:
    """One metric of all runs by step: held-out pairs strong, training batches pale, and strong
    where there is nothing else. None if no run has it."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(4.8, 3), layout="tight")
    drawn = False
    for at, run in enumerate(runs):
        how = dict(zip(("color", "linestyle"), style(at), strict=True))
        held_out, train = run.curves["held_out"], run.curves["train"]
        if name.startswith("eval_"):
            held_out, train = [entry for entry in run.entries if name in entry], []
        if held_out and train:
            axis.plot(*_xy(train, name), **how, alpha=0.3, linewidth=1)
        axis.plot(*_xy(held_out or train, name), **how, marker="o" * bool(held_out), markersize=3)
        drawn = drawn or bool(held_out or train)
    axis.set(title=PANELS[name], xlabel="step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not drawn:
        plt.close(figure)
        return None
    return figure


def _xy(points: list[dict], name: str) -> tuple[list, np.ndarray]:
    values = np.array([point[name] for point in points], dtype=float)  # None is not finite
    return [point["step"] for point in points], values


def lines(runs: list[Compared], rows: list[Row]) -> list[tuple[str, list[str], list[str]]]:
    """The table's lines: a name, a cell for each run, and the cells' tones, "best", "up", "down",
    "dim" or none. The settings that differ, then the metrics, each with how the runs differ from
    the first."""
    plain = [""] * len(runs)
    body = [(key, [run.differs[key] for run in runs], plain) for key in runs[0].differs]
    for row in rows:
        best = row.best()
        body.append((row.name, row.values, ["best" * (at == best) for at in range(len(runs))]))
        if differences := row.differences():
            body.append((AGAINST, [*map(against, differences)], [*map(_tone, differences)]))
    return body


def _tone(difference: Interval | None) -> str:
    if difference is None or within_noise(difference):
        return "dim"
    return "up" if difference.mean > 0 else "down"


def markdown(runs: list[Compared], rows: list[Row], title: str) -> str:
    def text(said: str) -> str:
        said = html.escape(visible(said).replace("\n", " "), quote=False)
        for sign in "\\|*`[]":  # not the underscores of names, which are no emphasis
            said = said.replace(sign, f"\\{sign}")
        return said

    table = [["", *(text(run.name) for run in runs)]]
    for name, cells, tones in lines(runs, rows):
        parts = zip(cells, tones, strict=True)
        said = [f"**{text(cell)}**" if tone == "best" else text(cell) for cell, tone in parts]
        table.append([text(name), *said])
    warned = [f"- not the settings alone: {text(said)}" for said in comparison.warnings(runs)]
    found = [f"- **{text(name)}**: {text(said)}" for name, said in verdicts(runs, rows).items()]
    cells = frontier_page.markdown(table).strip()
    parts = (f"# {text(title)}", "\n".join(found), cells, "\n".join(warned), note(runs))
    return "\n\n".join(part for part in parts if part) + "\n"


def page(runs: list[Compared], rows: list[Row], title: str) -> str:
    figures = {title: draw(runs, name) for name, title in PANELS.items()}
    return render(
        "comparison",
        title=title,
        today=now(),
        note=note(runs),
        warnings=comparison.warnings(runs),
        verdicts=verdicts(runs, rows),
        runs=[(run.name, style(at, css=True)) for at, run in enumerate(runs)],
        lines=lines(runs, rows),
        panels={name: png(figure) for name, figure in figures.items() if figure},
        samples=comparison.samples(runs),
    )


def write(runs: list[Compared], into: Path, title: str) -> list[Path]:
    """Write comparison.html and comparison.md; returns their paths."""
    rows = comparison_table.table(runs)
    into.mkdir(parents=True, exist_ok=True)
    written = [into / "comparison.html", into / "comparison.md"]
    for path, form in zip(written, (page, markdown), strict=True):
        write_whole(path, form(runs, rows, title))
    return written
