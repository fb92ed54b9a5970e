"""A published suite's scores in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from dpo.core.stats import said
from dpo.core.terminal import visible


def show(found: dict[str, Any]) -> None:
    """Mean grades of both models, with intervals of 95%."""
    title = f"MT-Bench by {found['judge']['model']}: {found['questions']} questions"
    table = Table("", "policy", "against", title=visible(title), title_justify="left")
    rows = {"score": found["score"]}
    rows |= {f"turn {at}": part for at, part in enumerate(found["turns"], start=1)}
    for name, part in (rows | found["categories"]).items():
        table.add_row(visible(name), said(part["policy"]), said(part["against"]))
    Console().print(table)
    print(f"Difference: {said(found['score']['difference'], '+.2f')}")
    for reason, count in found["left_out"].items():
        print(f"Without a grade, and left out: {count} ({visible(str(reason))})")
