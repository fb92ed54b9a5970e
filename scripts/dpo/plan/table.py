"""A plan as a table, as lines under it, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from dpo.plan.options import Option

COLUMNS = ("CONFIG=", "reference", "checkpointing", "pairs", "policy", "gradients", "optimizer")
COLUMNS += ("reference", "activations", "at work", "sent", "CUDA", "peak", "machine", "")
TERMS = ("policy", "gradients", "optimizer", "reference", "activations", "at work")


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 100e9 else f"{size / 1e9:.0f}"


def row(option: Option, limit: float, chosen: bool) -> list[str]:
    terms = option.terms
    sent = terms["communication"] + terms.get("gathered", 0)
    says = "← the fastest that fits" if chosen else "fits" if option.peak <= limit else "too large"
    return [
        option.config,
        "live" if option.live else "cached",
        "on" if option.checkpointing else "off",
        f"{option.micro} × {option.accumulation}",
        *(gb(terms[name]) for name in TERMS),
        gb(sent),
        gb(terms.get("CUDA", 0) + terms.get("slack", 0)),
        gb(option.peak),
        gb(option.machine) if option.machine else "",
        says,
    ]


def table(options: list[Option], limit: float, chosen: Option | None) -> Table:
    """GB on each GPU at the peak of a step, a line a way to train."""
    found = Table(title="GB on each GPU at the peak of a step", title_justify="left")
    for place, name in enumerate(COLUMNS):
        right = 3 <= place < len(COLUMNS) - 1
        found.add_column(name, justify="right" if right else "left", no_wrap=True)
    for option in options:
        style = "bold" if option is chosen else "" if option.peak <= limit else "dim"
        found.add_row(*row(option, limit, option is chosen), style=style)
    return found


def as_json(option: Option) -> dict[str, Any]:
    return asdict(option) | {"peak": option.peak}
