"""A comparison as files that other tools read: Markdown, JSON, CSV and LaTeX."""

import csv
import html
import io
import math
import re
import unicodedata
from pathlib import Path
from typing import Any

from dpo.core.files import write_json, write_whole
from dpo.core.secrets import mask
from dpo.core.stats import Interval
from dpo.core.terminal import visible
from dpo.reports import frontier_page
from dpo.reports.comparison import collect, page, seeds
from dpo.reports.comparison.collect import Compared
from dpo.reports.comparison.row import Row, against, powers, same, verdicts, within_noise
from dpo.reports.comparison.seeds import Group
from dpo.reports.comparison.table import table

AGAINST = "— against the first"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to compute
TEX = {c: f"\\{c}" for c in "&%$#_{}"}
TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {c: f"${c}$" for c in "<>|"} | {"β": r"$\beta$", "λ": r"$\lambda$", "π": r"$\pi$"}
TEX |= {"‖": r"$\|$", "–": "--", "—": "---", "−": "$-$", "×": r"$\times$", "→": r"$\to$"}
LATIN = "\u017f"  # the last letter that LaTeX's own fonts have


def lines(runs: list[Compared], rows: list[Row]) -> list[tuple[str, list[str], list[str]]]:
    """The table's lines: a name, a cell for each run, and the cells' tones, "best", "up", "down",
    "dim" or none. The settings that differ, then the metrics, each with how the runs differ from
    the first."""
    plain = [""] * len(runs)
    body = [(key, [run.differs[key] for run in runs], plain) for key in runs[0].differs]
    for row in rows:
        best = None if collect.seeds_alone(runs) else row.best()
        body.append((row.name, row.values, ["best" * (at == best) for at in range(len(runs))]))
        if differences := row.differences():
            body.append((AGAINST, [*map(against, differences)], [*map(page.tone, differences)]))
    return body


def markdown(runs: list[Compared], rows: list[Row], title: str) -> str:
    def text(said: str) -> str:
        said = html.escape(visible(said).replace("\n", " "), quote=False)
        for sign in "\\|*`[]":  # not the underscores of names, which are no emphasis
            said = said.replace(sign, f"\\{sign}")
        return said

    cells = [["", *(text(run.name) for run in runs)]]
    for name, line, tones in lines(runs, rows):
        parts = zip(line, tones, strict=True)
        said = [f"**{text(cell)}**" if tone == "best" else text(cell) for cell, tone in parts]
        cells.append([text(name), *said])
    warned = [f"- not the settings alone: {text(said)}" for said in collect.warnings(runs)]
    found = [f"- **{text(name)}**: {text(said)}" for name, said in verdicts(runs, rows).items()]
    groups = seeds.groups(runs)
    over = [f"- **{text(n)}**: {text(s)}" for n, s in seeds.verdicts(groups, rows).items()]
    of_seeds = [["", *(text(group.name) for group in groups)]]
    of_seeds += [[text(name), *map(text, cells)] for name, cells in seeds.lines(groups, rows)]
    seen = [f"- {text(n)}: {text(s)}" for n, (s, few) in powers(rows).items() if few]
    parts = [f"# {text(title)}"]
    if groups:
        parts += ["## Over seeds", "\n".join(over), frontier_page.markdown(of_seeds).strip()]
        parts += [seeds.note(groups), "## Run by run"]
    parts += ["\n".join(found), frontier_page.markdown(cells).strip(), "\n".join(warned)]
    parts += ["Too few to say much:\n\n" + "\n".join(seen) if seen else "", page.note(runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def data(runs: list[Compared], rows: list[Row], title: str) -> dict[str, Any]:
    """All of a comparison: settings, metrics as numbers, differences, groups of seeds."""
    found = seeds.groups(runs)
    of_runs = [
        {
            "name": run.name,
            "folder": str(run.folder),
            "state": run.state,
            "seed": run.seed,
            "settings": run.settings,
            "differs": run.differs,
            "metrics": {row.name: row.numbers[at] for row in rows if row.numbers},
            "alerts": run.report.get("alerts", []),
        }
        for at, run in enumerate(runs)
    ]
    between = [
        {"metric": row.name, "run": runs[i].name, "from": runs[j].name, **_ends(difference)}
        for row in rows
        for i, of_run in enumerate(row.between)
        for j, difference in enumerate(of_run[:i])
        if difference
    ]
    of_groups = [
        {
            "name": group.name,
            "seeds": [*group.runs],
            "left_out": group.left_out,
            "metrics": {row.name: _over(of) for row in rows if (of := seeds.over(group, row))},
        }
        for group in found
    ]
    between_groups = [
        {"metric": metric, "group": a.name, "from": b.name, **_ends(by), "how": how}
        for metric, a, b, by, how in seeds.differences(found, rows)
    ]
    power = {name: {"said": said, "too_few": few} for name, (said, few) in powers(rows).items()}
    return _finite(
        {
            "format": 1,
            "title": title,
            "verdicts": verdicts(runs, rows),
            "verdicts_over_seeds": seeds.verdicts(found, rows),
            "warnings": collect.warnings(runs),
            "what_can_be_seen": power,
            "runs": of_runs,
            "differences": between,
            "groups": of_groups,
            "group_differences": between_groups,
        }
    )


def _ends(of: Interval) -> dict[str, Any]:
    ends = {"mean": of.mean, "low": of.low, "high": of.high}
    return ends | {"within_noise": within_noise(of), "identical": same(of)}


def _over(of: seeds.Over) -> dict[str, Any]:
    ends = {"low": of.interval.low, "high": of.interval.high} if of.interval else {}
    spread = {"deviation": of.deviation, "one_runs_half_width": of.own}
    return {"mean": of.mean, **ends, **spread, "by_seed": of.values}


def _finite(value: Any) -> Any:
    """A value as JSON can hold it: what is not finite is null, and what it does not know, text."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def column(name: str) -> str:
    """A metric's name as that of a column: `kl_nats_a_sequence`."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = visible(mask(value))
    try:
        float(text)
    except ValueError:
        begins = unicodedata.normalize("NFKC", text).lstrip()  # a wide = is one too
        return f"'{text}" if begins.startswith(FORMULA) or text[:1] in ("\t", "\r") else text
    return text


def _csv(head: list[str], body: list[list[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([[*map(_cell, row)] for row in [head, *body]])
    return file.getvalue()


ENDS = {"": "mean", "_low": "low", "_high": "high"}


def runs_csv(runs: list[Compared], rows: list[Row]) -> str:
    """A row a run: name, folder, state, the settings that differ, and `x`, `x_low`, `x_high` of
    each metric."""
    metrics = [row for row in rows if row.numbers]
    settings = [*runs[0].differs]
    head = ["run", "folder", "state", *settings]
    head += [column(row.name) + end for row in metrics for end in ENDS]
    body = []
    for at, run in enumerate(runs):
        line = [run.name, str(run.folder), run.state, *run.differs.values()]
        line += [(row.numbers[at] or {}).get(key) for row in metrics for key in ENDS.values()]
        body.append(line)
    return _csv(head, body)


def seeds_csv(found: list[Group], rows: list[Row]) -> str:
    """A row for each group and metric: mean over seeds, Student's interval, deviation of seeds."""
    numbers = ["mean", "low", "high", "deviation", "one_runs_half_width"]
    head, body = ["group", "seeds", "left_out", "metric", *numbers], []
    for group in found:
        about = [group.name, " ".join(group.runs), "; ".join(group.left_out)]
        for row in rows:
            if of := seeds.over(group, row):
                body.append([*about, row.name, *map(_over(of).get, numbers)])
    return _csv(head, body)


def tex(runs: list[Compared], rows: list[Row], title: str) -> str:
    """The metrics that have a better and a worse, KL and length: a tabular of runs and, where there
    are groups of seeds, one of these. For the package booktabs."""
    chosen = [r for r in rows if r.numbers and (r.units or r.name.startswith(("KL", "answer, t")))]
    found = seeds.groups(runs)
    overs = [[seeds.over(group, row) for row in chosen] for group in found]
    of_groups = [[_over(of) if of else None for of in each] for each in overs]
    of_runs = [[row.numbers[at] for row in chosen] for at in range(len(runs))]
    parts = [f"% {_tex(title)}: 95% intervals", "% \\usepackage{booktabs}"]
    parts += [_tabular([run.name for run in runs], chosen, of_runs)]
    if found:
        parts += ["% Means over seeds, with Student's 95% intervals"]
        parts += [_tabular([group.name for group in found], chosen, of_groups)]
    return "\n".join(parts) + "\n"


def _tabular(names: list[str], chosen: list[Row], cells: list[list[dict | None]]) -> str:
    def number(of: dict | None) -> str:
        if not of:
            return "--"
        ends = f" [{of['low']:.3f}, {of['high']:.3f}]" if "low" in of else ""
        return f"${of['mean']:.3f}${ends}"

    head = " & ".join(["", *(_tex(row.name) for row in chosen)])
    body = [
        " & ".join([_tex(name), *map(number, line)]) + r" \\"
        for name, line in zip(names, cells, strict=True)
    ]
    begin = rf"\begin{{tabular}}{{l{'r' * len(chosen)}}}"
    lines = [begin, r"\toprule", rf"{head} \\", r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"])


def _tex(text: str) -> str:
    """Text that LaTeX sets as it stands, in the letters that any of its engines has; a `[` at the
    start of a row would be an argument of the row before."""
    plain = unicodedata.normalize("NFC", visible(mask(text)).replace("\n", " "))
    said = "".join(TEX.get(each, each if each <= LATIN else "?") for each in plain)
    return "{}" * said.startswith(("[", "*")) + said


def write(runs: list[Compared], into: Path, title: str) -> list[Path]:
    """Write comparison.html, .md, .json, .csv and .tex, and comparison_seeds.csv where there are
    groups of seeds; returns their paths."""
    rows, found = table(runs), seeds.groups(runs)
    into.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.html": page.page(runs, rows, title),
        "comparison.md": markdown(runs, rows, title),
        "comparison.csv": runs_csv(runs, rows),
        "comparison.tex": tex(runs, rows, title),
    }
    texts |= {"comparison_seeds.csv": seeds_csv(found, rows)} if found else {}
    for name, text in texts.items():
        write_whole(into / name, text)
    write_json(into / "comparison.json", data(runs, rows, title))
    if not found:  # of an earlier comparison
        (into / "comparison_seeds.csv").unlink(missing_ok=True)
    return [into / name for name in (*texts, "comparison.json")]
