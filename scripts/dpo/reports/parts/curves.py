"""Curves that a reader can explore in a page: data for templates/curves.js, which draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from dpo.reports.html import embedded, shown

# Files of vendor/ and templates/, for `render(scripts=...)` of a page that has curves.
SCRIPTS = ("uPlot.iife.min.js", "curves.js")
MOST = 500  # points of a line: no panel is wider in pixels than this
DIGITS = 6  # significant ones
Numbers = Sequence[float | None]


@dataclass
class Series:
    """One line of a panel.

    Attributes:
        key: the entry of the legend that shows and hides it, in all panels: a run, or what is
            measured where there is one run.
        x: shape (n,) for each axis that the reader may choose, rising: `step`, `seconds`. The first
            is the one at first. All series of a page have the same axes.
        y: shape (n,), None or not finite where nothing was measured: the line has a gap there.
        name: what it is of its key, for the readout: "held-out pairs".
        color: `#rrggbb`, or the name of a variable of style.css: `--ink`.
        line: "solid", "dashed" or "dotted".
        held_out: drawn strong, with its points, and never smoothed. Any other line of the same key
            and panel is pale then.
        low, high: an interval around y, drawn as a band; both or none.
    """

    key: str
    x: dict[str, Numbers]
    y: Numbers
    name: str = ""
    color: str = "--ink"
    line: str = "solid"
    held_out: bool = False
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass
class Panel:
    """Lines over one pair of axes; `y` says what is measured, and in which unit."""

    title: str
    series: list[Series] = field(default_factory=list)
    y: str = ""


def data_of(panels: list[Panel]) -> Markup:
    """The panels as JSON for the macro `curves` of macros.html; nothing of it can end the script
    element that it stands in. Panels without a point are left out."""
    panels = [
        Panel(panel.title, [series for series in panel.series if len(series.y)], panel.y)
        for panel in panels
    ]
    panels = [panel for panel in panels if panel.series]
    every = [series for panel in panels for series in panel.series]
    return embedded(
        {
            "axes": [*every[0].x] if every else [],
            "thinned": MOST if any(len(series.y) > MOST for series in every) else None,
            "panels": [
                {
                    "title": shown(panel.title),
                    "y": shown(panel.y),
                    "series": [*map(_written, panel.series)],
                }
                for panel in panels
            ],
        }
    )


def _written(series: Series) -> dict[str, Any]:
    kept = thinned(series.y)
    lines = {"y": series.y, "low": series.low, "high": series.high}
    return {
        "key": shown(series.key),
        "name": shown(series.name),
        "color": series.color,
        "line": series.line,
        "held_out": series.held_out,
        "x": {name: _rounded(values, kept) for name, values in series.x.items()},
        **{name: _rounded(v, kept) for name, v in lines.items() if v is not None},
    }


def thinned(y: Numbers, most: int = MOST) -> list[int]:
    """Which points are drawn, at most `most` of them: all where there are no more, else the lowest
    and the highest of each of equally many points in a row, so that no peak is lost, and the ends.
    """
    values = np.array(y, dtype=float)
    if len(values) <= most:
        return [*range(len(values))]
    kept = {0, len(values) - 1}
    for bucket in np.array_split(np.arange(len(values)), (most - 2) // 2):
        finite = bucket[np.isfinite(values[bucket])]
        if not len(finite):
            kept.add(int(bucket[0]))  # a gap stays one
            continue
        kept |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
    return sorted(kept)


def _rounded(values: Numbers, kept: list[int]) -> list[float | int | None]:
    return [_number(values[at]) for at in kept]


def _number(value: float | None) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
