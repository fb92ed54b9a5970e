"""A run's numbers beside those that its recipe's header expects: does the recipe hold here?"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dpo.recipe.header import Number
from dpo.reports.results import headline

DIGIT, WITHIN, OUTSIDE, MISSING = "to the digit", "within", "outside", "not measured"
ENDS = ("low", "high")


def beside(numbers: Sequence[Number], report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each number as it is expected, as the report has it, and whether it holds: where it lies
    within the interval that is expected, as exactly as that is written; `to the digit` where it is
    also the same as written."""
    found, rows = headline(report), []
    for number in numbers:
        got, verdict = found.get(number.name), MISSING
        if got is not None:
            digits = len(number.value.partition(".")[2])
            same = float(f"{got:.{digits}f}") == float(number.value)
            within = number.low <= round(got, number.digits) <= number.high
            verdict = OUTSIDE if not within else DIGIT if same else WITHIN
        row = {"name": number.name, "words": number.words, "expected": number.value}
        row |= {"low": number.low, "high": number.high, "got": got, "verdict": verdict}
        rows.append(row | {f"got_{end}": found.get(f"{number.name}_{end}") for end in ENDS})
    return rows


def holds(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether every number does."""
    return all(row["verdict"] in (DIGIT, WITHIN) for row in rows)


def verdict(name: str, flags: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """The rows in a sentence, which says no more of a run with flags than of these."""
    what = " ".join((f"{name} with", *flags)) if flags else name
    same = sum(row["verdict"] == DIGIT for row in rows)
    if holds(rows):
        said = f"{what} holds here: {same} of {len(rows)} numbers to the digit"
        said += ", the others within their tolerance" * (same < len(rows))
        return said + f"; what {name} itself reaches was not tried" * bool(flags)
    off = []
    for row in rows:
        words = row["words"]
        if row["verdict"] == OUTSIDE:
            off.append(f"{words} is {row['got']:.4g}, not {row['low']:g} to {row['high']:g}")
        elif row["verdict"] == MISSING:
            off.append(f"{words} was not measured")
    return f"{what} does not hold here: {'; '.join(off)}"


def evaluators(report: dict[str, Any]) -> str:
    """What the numbers were measured by, and on what."""
    pairs, prompts, judge = (report[key] for key in ("pairs", "prompts", "judge"))
    said = []
    if judge and prompts:
        version = report["versions"].get("vaderSentiment", "of an unknown version")
        name = f"VADER {version}" if judge["name"] == "vader" else judge["name"]
        said.append(
            f"{name} on {prompts['count']} prompts × {prompts['samples']} answers of at most "
            f"{prompts['max_new_tokens']} tokens, temperature {prompts['temperature']:g}, "
            f"seed {prompts['seed']}"
        )
    if pairs:
        said.append(f"{pairs['count']} held-out pairs, digest {pairs['digest']}")
    return "; ".join(said) or "nothing: no pairs are held out"


def show(title: str, rows: Sequence[dict[str, Any]], report: dict[str, Any]) -> None:
    """All that in the terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("number", "expected", "tolerance", "got (95%)", "verdict"):
        table.add_column(column, justify="right" if column == "expected" else "left")
    for row in rows:
        digits, got = len(row["expected"].partition(".")[2]), "–"
        if row["got"] is not None:
            got = f"{row['got']:.{digits}f}"
            if row["got_low"] is not None:
                got += f" ({row['got_low']:.{digits}f} to {row['got_high']:.{digits}f})"
        tolerance = f"{row['low']:g} to {row['high']:g}"
        table.add_row(row["words"], row["expected"], tolerance, got, row["verdict"])
    Console().print(table)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(f"Measured by {evaluators(report)}")
    print(f"Software: {versions}\nMachine: {report['machine']}, {report['finished']}")
