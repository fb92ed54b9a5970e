"""A comparison in the terminal."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo.core.terminal import visible
from dpo.reports.comparison import collect, export, seeds
from dpo.reports.comparison.collect import Compared
from dpo.reports.comparison.row import Row, powers, verdicts
from dpo.reports.comparison.table import table

TONES = {"best": "bold green", "up": "green", "down": "red"}
WIDTH, COLUMN = 120, 24  # characters: of what is no terminal, and of a run
Line = tuple[str, list[str], list[str]]  # a name, a cell for each column, and the cells' tones


def show(runs: list[Compared], title: str) -> None:
    """The table, in as many parts as the terminal's width takes, and what it comes to; groups of
    seeds last, where one looks first."""
    console, rows = _console(), table(runs)
    _show(console, [run.name for run in runs], export.lines(runs, rows), title)
    _say(console, verdicts(runs, rows))
    for line in collect.warnings(runs):
        console.print(Text(visible(f"Not the settings alone: {line}"), "yellow"))
    for name, (said, few) in powers(rows).items():
        if few:
            console.print(Text(visible(f"Too few to say much about {name}: {said}"), "yellow"))
    show_groups(runs, rows)


def show_groups(runs: list[Compared], rows: list[Row]) -> None:
    """What groups of seeds come to; nothing where there are none."""
    console, found = _console(), seeds.groups(runs)
    if not found:
        return
    plain = [""] * len(found)
    body = [(name, cells, plain) for name, cells in seeds.lines(found, rows)]
    _show(console, [group.name for group in found], body, "Over seeds")
    _say(console, seeds.verdicts(found, rows))
    console.print(Text(seeds.note(found), "dim"))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def _show(console: Console, names: list[str], lines: list[Line], title: str) -> None:
    size = max(console.width // COLUMN - 1, 1)
    for start in range(0, len(names), size):
        part = slice(start, start + size)
        shown = Table(title=Text(visible(title)), title_justify="left")
        for name in ("", *names[part]):
            shown.add_column(Text(visible(name)))
        for name, cells, tones in lines:
            said = zip(cells[part], tones[part], strict=True)
            toned = (Text(visible(cell), TONES.get(tone, tone)) for cell, tone in said)
            shown.add_row(Text(visible(name), "dim"), *toned)
        console.print(shown)


def _say(console: Console, said: dict[str, str]) -> None:
    for name, line in said.items():
        console.print(Text.assemble((visible(f"{name}: "), "bold"), visible(line)))
