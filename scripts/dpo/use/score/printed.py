"""A summary of scores in the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from dpo.core.stats import said
from dpo.core.terminal import visible
from dpo.data.lint import REASONS
from dpo.use.score.sections import SECTIONS, TOTALS


def table(title: str, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    shown = Table(*names, title=visible(title), title_justify="left")
    for row in rows:
        shown.add_row(*map(visible, row))
    Console().print(shown)


def parts(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """All pairs, and parts of them."""
    groups = {"": found["by_length"], **found["by"]}
    named = [("all pairs", found)]
    named += [
        (f"{column}: {part['name'][:80]}" if column else part["name"], part)
        for column, group in groups.items()
        for part in group
    ]
    for name, part in named:
        count = found["scored"] if part is found else part["count"]
        yield name, f"{count:,}", said(part["accuracy"], ".3f"), said(part["margin"], "+.3f")


def show(found: dict[str, Any]) -> None:
    """The summary as tables, intervals of 95% in parentheses."""
    title = f"{found['file']} under {found['run']}"
    if "completions" in found:
        rows = [
            ("Reward", said(found["reward"], "+.3f"), f"{found['completions']:,} completions"),
            ("Tokens", said(found["tokens"], ".1f"), "of a completion"),
            ("Reward with length", said(found["length_correlation"], "+.2f"), "correlation"),
        ]
        table(title, ("", "mean (95% interval)", ""), rows)
    elif found["scored"]:
        table(title, ("", "pairs", "accuracy", "margin"), [*parts(found)])
        print(
            f"Ties: {found['ties']:,}, half right each. Correlation of the margin with how much "
            f"longer chosen is: {said(found['length_correlation'], '+.2f')}"
        )
        calibrated(found["calibration"])
        if scores := found.get("reward_bench"):
            bench(scores)
    for reason, count in found["set_aside"].items():
        why = REASONS.get(reason, "more tokens than the model has positions")
        print(f"Set aside: {count:,} as {reason}: {why}")


def calibrated(found: dict[str, Any]) -> None:
    rows = []
    for each in found["bins"]:
        ends = f"{each['from']:.2f} to {each['to']:.2f}"
        rows.append((ends, f"{each['count']:,}", f"{each['said']:.3f}", said(each["right"], ".3f")))
    title = f"Calibration: expected error {found['expected_error']:.3f}"
    table(title, ("σ(margin)", "pairs", "says", "is right"), rows)


def bench(found: dict[str, Any]) -> None:
    sections = found["sections"]
    whole = {"accuracy": found["score"], "missing": [n for n in SECTIONS if n not in sections]}
    whole |= {"rows": sum(each["rows"] for each in sections.values()), "of": sum(TOTALS.values())}
    rows = []
    for name, part in ({"all sections": whole} | sections).items():
        lacks = [f"{part['rows']:,} of {part['of']:,} rows"] * (part["rows"] != part["of"])
        lacks += [f"without {', '.join(part['missing'])}"] * bool(part["missing"])
        rows.append((name, said(part["accuracy"], ".3f"), "; ".join(lacks)))
    table("RewardBench", ("section", "accuracy", ""), rows)
