"""A comparison as a page: runs as rows to sort and filter, their curves, the same prompts."""

from dataclasses import dataclass
from typing import Any

from dpo.core.machine import now
from dpo.core.stats import Interval
from dpo.reports.comparison import collect, curves, samples, seeds
from dpo.reports.comparison.collect import Compared
from dpo.reports.comparison.row import Row, against, powers, verdicts, within_noise
from dpo.reports.comparison.seeds import Group
from dpo.reports.html import png, render
from dpo.reports.parts.curves import SCRIPTS, Panel, data_of

NOTE = (
    "Intervals are of 95%. Differences between runs are paired, over the same held-out pairs or "
    "prompts; within noise is one whose interval holds zero. Another seed of training adds noise "
    "that the interval of a run does not know of."
)
MANY = "Of twenty differences that are none, one is beyond noise by chance."


def note(runs: list[Compared]) -> str:
    return f"{NOTE} {MANY}" if len(runs) > 3 else NOTE


@dataclass
class Column:
    """A column of a table that can be sorted: cells as (text, what it is sorted by or None, tone,
    a second line, its tone). By a `setting` the rows can be filtered."""

    name: str
    cells: list[tuple[str, float | None, str, str, str]]
    setting: bool = False


def tone(difference: Interval | None) -> str:
    if difference is None or within_noise(difference):
        return "dim"
    return "up" if difference.mean > 0 else "down"


def columns(runs: list[Compared], rows: list[Row]) -> list[Column]:
    """What stands beside each run: the settings that differ, then the metrics, and under each how
    the run differs from the first."""
    found = []
    for key in runs[0].differs:
        cells = [(run.differs[key], _sorted_by(run.differs[key]), "", "", "") for run in runs]
        found.append(Column(key, cells, setting=True))
    for row in rows:
        best = None if collect.seeds_alone(runs) else row.best()
        numbers = row.numbers or [None] * len(runs)
        differences = row.differences() or [None] * len(runs)
        cells = [
            (text, number and number["mean"], "best" * (at == best), against(by), tone(by))
            for at, (text, number, by) in enumerate(
                zip(row.values, numbers, differences, strict=True)
            )
        ]
        found.append(Column(row.name, cells))
    return found


def _sorted_by(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def group_columns(found: list[Group], rows: list[Row]) -> list[Column]:
    """What stands beside each group of seeds."""
    listed = [(", ".join(group.runs), len(group.runs), "", "", "") for group in found]
    left_out = [("; ".join(group.left_out), None, "down", "", "") for group in found]
    table = [Column("seeds", listed), Column("left out", left_out)]
    for row in rows:
        each = [seeds.over(group, row) for group in found]
        if any(each):
            cells = [
                (seeds.written(of), of and of.mean, "", seeds.spread(of), "dim") for of in each
            ]
            table.append(Column(row.name, cells))
    return [column for column in table if any(text for text, *_ in column.cells)]


def said(runs: list[Compared]) -> dict[str, list[dict[str, Any]]]:
    """The same prompts, and of each answer which words are not in that of the first run there; of
    the first run's own, which are not in the reference's."""
    found = samples.samples(runs)
    for row in (row for rows in found.values() for row in rows):
        (_, reference, _), (_, first, _) = row["references"][0], row["answers"][0]
        row["answers"] = [
            (name, samples.marked(text, first if at else reference), score)
            for at, (name, text, score) in enumerate(row["answers"])
        ]
    return found


def pictures(panels: list[Panel]) -> dict[str, bytes]:
    """What stands where scripts do not run, by title."""
    figures = {panel.title: curves.picture(panel) for panel in panels}
    return {title: png(figure) for title, figure in figures.items() if figure}


def page(runs: list[Compared], rows: list[Row], title: str) -> str:
    """The comparison as one page."""
    found = seeds.groups(runs)
    lines, bands = curves.of_runs(runs), curves.of_groups(found, runs)
    return render(
        "comparison",
        scripts=(*SCRIPTS, "table.js"),
        title=title,
        today=now(),
        note=note(runs),
        note_of_seeds=seeds.note(found),
        warnings=collect.warnings(runs),
        verdicts=verdicts(runs, rows),
        of_seeds=seeds.verdicts(found, rows),
        powers=powers(rows),
        runs=[(run.name, curves.style(at)) for at, run in enumerate(runs)],
        columns=columns(runs, rows),
        groups=[(group.name, curves.style(at)) for at, group in enumerate(found)],
        group_columns=group_columns(found, rows),
        bands=(data_of(bands), pictures(bands)),
        lines=(data_of(lines), pictures(lines)),
        samples=said(runs),
    )
