"""A plan beside what a run measured, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from dpo.core.terminal import visible
from dpo.plan.auto import gb
from dpo.plan.choice import Option
from dpo.plan.measured import beside
from dpo.plan.options import Planned
from dpo.plan.table import duration

WIDTH = 72  # characters of the table; a narrower terminal wraps its lines
FAR = 0.1  # a plan that is further off is said to be
FULL = 0.5  # of a card's memory: what takes more of it goes by the memory that a plan is given


def heading(folder: Path, planned: Planned, measured: dict[str, Any]) -> list[str]:
    how, card = measured["how"], measured["how"]["card"]
    reference = "live" if how["live"] else "cached"
    note = f" ({planned.note})" if planned.note else ""
    return [
        visible(f"run     {folder}, {measured['steps']} steps of {planned.steps()}"),
        visible(f"model   {planned.recipe.model.model_name_or_path}{note}"),
        f"way     CONFIG={how['config']}, {how['processes']} × {card['name']} of "
        f"{gb(card['memory'])} GB, {how['micro']} pairs × {how['accumulation']} at a time, "
        f"reference {reference}, checkpointing {'on' if how['checkpointing'] else 'off'}",
        f"data    {planned.lengths.source}",
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    found.add_column("each process, GB")
    for name in ("planned", "measured", "plan is off by"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        sides = [said(row["name"], row[side]) for side in ("planned", "measured")]
        found.add_row(row["name"], *sides, percent(row["error"]))
    return found


def said(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g} s" if name == beside.STEP else f"{value / 1e9:.3f}"


def percent(error: float | None) -> str:
    return "–" if error is None else f"{error:+.0%}"


def conclusions(
    planned: Planned, option: Option, measured: dict[str, Any], rows: list[dict[str, Any]]
) -> list[str]:
    """Where the plan is further off than FAR, and what follows for the next one."""
    lines, how = [], measured["how"]
    for name, why in measured["uncounted"].items():
        lines.append(visible(f"{name} could not be counted: {why}"))
    if any(
        row["name"] == "reference" and row["planned"] and row["measured"] is None for row in rows
    ):
        lines.append("reference: there for some pairs, and not in the step that was looked at")
    errors = {row["name"]: row["error"] for row in rows}
    peak = next(name for name in errors if name.startswith("peak"))
    most = max(row["measured"] or 0 for row in rows if row["name"].startswith("peak"))
    for name in (*beside.STANDS, beside.REST):
        row = next(row for row in rows if row["name"] == name)
        off = abs((row["planned"] or 0) - (row["measured"] or 0))
        if row["measured"] is not None and off > FAR * most:
            lines.append(f"{name}: the plan is off by {gb(off)} GB, more than a tenth of the peak")
    if (off := errors[peak]) is not None and abs(off) > FAR:
        given = how["card"]["memory"]
        line = f"{peak}: the plan is {abs(off):.0%} {'below' if off < 0 else 'above'} what was "
        line += "measured"
        if most > FULL * given:  # of a run that is small beside its card, a share says nothing
            line += f"; plan runs like this one with {'less' if off < 0 else 'more'} memory than "
            line += f"there is: MEMORY={given * (1 + off) / 1e9:.0f} in place of {given / 1e9:.0f}"
        lines.append(line)
    if (off := errors[beside.STEP]) is not None and abs(off) > FAR:
        took = measured["speed"]["step_seconds"]
        line = f"{beside.STEP}: it takes {1 / (1 + off):.2g} times what the plan says"
        if (utilisation := beside.reached(planned, option, how, took)) is not None:
            hours = beside.hours(planned.reaching(utilisation), option, how["processes"])
            before = beside.hours(planned, option, how["processes"])
            line += f"; with UTILISATION={utilisation:.2g} in place of {planned.utilisation:.2g} "
            line += "make plan says so, and of this run "
            line += f"{duration(3600 * hours)} in place of {duration(3600 * before)}"
        lines.append(line)
    if measured["speed"] is None:
        lines.append("No speed was measured: the run ended before its third step")
    return lines
