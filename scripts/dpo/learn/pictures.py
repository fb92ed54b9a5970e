"""What the pictures of experiments share: panels side by side, lines with intervals, and how they
are written beside their numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpo.core import files
from dpo.reports.html import png

COLORS = ("#1f6feb", "#1a7f37", "#bc4c00", "#8250df", "#24292f")
MARKERS = "os^Dv"


def panels(count: int, **given: Any) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in a row; `given` to `plt.subplots`."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axes = plt.subplots(1, count, figsize=(3.2 * count, 3.2), squeeze=False, **given)
    figure.set_layout_engine("tight")
    return figure, [*axes.flat]


def line(
    axis: Axes, x: Sequence[float], y: Sequence[dict], at: int, label: str, *, joined: bool = True
) -> None:
    """A line through means, with their intervals (`mean`, `low`, `high`), or the means alone; `at`
    is its number among the lines of the panel."""
    means = [each["mean"] for each in y]
    ends = [[abs(each[end] - each["mean"]) for each in y] for end in ("low", "high")]
    style = {"color": COLORS[at], "marker": MARKERS[at], "markersize": 4, "linewidth": 1.3}
    style["linestyle"] = "-" if joined else "none"
    axis.errorbar(x, means, ends, elinewidth=0.8, capsize=2, label=label, **style)


def write(name: str, results: dict, table: str, figure: Figure, docs: Path) -> list[Path]:
    """Write the results of an experiment and their picture, and print them as a table."""
    docs.mkdir(parents=True, exist_ok=True)
    files.write_json(docs / f"{name}.json", results)
    files.write_whole(docs / f"{name}.png", png(figure))
    print(table)
    return [docs / f"{name}.json", docs / f"{name}.png"]
