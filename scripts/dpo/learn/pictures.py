"""What the pictures of experiments share: panels side by side, and lines with intervals."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#1f6feb", "#1a7f37", "#bc4c00", "#8250df", "#24292f")
MARKERS = "os^Dv"


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in a row."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axes = plt.subplots(1, count, figsize=(3.2 * count, 3.2), squeeze=False)
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
