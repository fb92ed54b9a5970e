"""A comparison's curves, to explore and as pictures: every metric by step, of runs and of groups of
seeds."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpo.reports.comparison import seeds
from dpo.reports.comparison.collect import Compared
from dpo.reports.comparison.seeds import Group
from dpo.reports.parts.curves import Panel, Series, thinned

# Okabe and Ito's colours, told apart by the colour-blind too; then once more, dashed and dotted.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
STYLES = ("solid", "dashed", "dotted")
PALE = 0.3
PANELS = {
    "loss": "loss",
    "accuracy": "preference accuracy",
    "margin": "implicit reward, chosen less rejected",
    "chosen": "implicit reward, chosen",
    "rejected": "implicit reward, rejected",
    "eval_drift_nats_per_token": "KL(reference ‖ policy), nats a token",
    "eval_drift_tokens": "the policy's own answers, tokens",
}
POINTS = 10_000  # of all runs in a panel: a page of a hundred runs opens within seconds
SPLITS = {"train": "training batches", "held_out": "held-out pairs"}


def style(at: int) -> tuple[str, str]:
    """The colour and the line of the run at a place, as CSS and matplotlib name them."""
    return COLORS[at % len(COLORS)], STYLES[at // len(COLORS) % len(STYLES)]


def of_runs(runs: list[Compared]) -> list[Panel]:
    """Every metric of all runs, on held-out pairs and on training batches."""
    return [Panel(title, [*_lines(runs, name)]) for name, title in PANELS.items()]


def _lines(runs: list[Compared], name: str) -> Iterator[Series]:
    most = max(POINTS // max(len(runs), 1), 50)
    for at, run in enumerate(runs):
        for split, called in SPLITS.items():
            points = seeds.points(run, name, split)
            kept = thinned([point[name] for point in points], most)
            points = [points[place] for place in kept]
            steps, values = ([point[key] for point in points] for key in ("step", name))
            how = (called, *style(at), split == "held_out")
            yield Series(run.name, {"step": steps}, values, *how)


def of_groups(found: list[Group], runs: list[Compared]) -> list[Panel]:
    """Every metric of each group: the mean over its seeds, in a band from the lowest seed to the
    highest, at the steps that all of them have."""
    return [Panel(title, [*_bands(found, runs, name)]) for name, title in PANELS.items()]


def _bands(found: list[Group], runs: list[Compared], name: str) -> Iterator[Series]:
    most = max(POINTS // max(3 * len(found), 1), 50)  # a line, and the ends of its band
    for at, group in enumerate(found):
        for split, called in SPLITS.items():
            steps, values = seeds.along(group, runs, name, split)
            if len(group.runs) < 2 or not steps:
                continue
            kept = thinned(values.mean(axis=0).tolist(), most)
            steps, values = [steps[place] for place in kept], values[:, kept]
            ends = {"low": values.min(axis=0).tolist(), "high": values.max(axis=0).tolist()}
            how = (f"mean of {len(group.runs)} seeds, {called}", *style(at), split == "held_out")
            yield Series(group.name, {"step": steps}, values.mean(axis=0).tolist(), *how, **ends)


def picture(panel: Panel) -> Figure | None:
    """A panel as a picture: held-out pairs strong, training batches pale, and strong where there is
    nothing else. None if there is no point."""
    drawn = [series for series in panel.series if len(series.y)]
    if not drawn:
        return None
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(4.8, 3), layout="tight")
    strong = {series.key for series in drawn if series.held_out}
    for series in drawn:
        steps, values = series.x["step"], np.array(series.y, dtype=float)  # None is not finite
        how = {"color": series.color, "linestyle": series.line}
        how |= {"marker": "o", "markersize": 3} if series.held_out else {}
        pale = not series.held_out and series.key in strong
        how |= {"alpha": PALE, "linewidth": 1} if pale else {}
        axis.plot(steps, values, **how)
        if series.low is not None and series.high is not None:
            ends = (np.array(end, dtype=float) for end in (series.low, series.high))
            axis.fill_between(steps, *ends, color=series.color, alpha=0.15, linewidth=0)
    axis.set(title=panel.title, xlabel="step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
