"""A published suite's scores in the terminal, intervals of 95% in brackets."""

from typing import Any

from rich.console import Console
from rich.table import Table

from dpo.core.terminal import visible

Row = tuple[str, dict[str, Any]]  # a name, and both sides' intervals


def said(interval: dict[str, float] | None, form: str = ".2f", times: float = 1) -> str:
    if interval is None:
        return "–"
    mean, low, high = (interval[name] * times for name in ("mean", "low", "high"))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def show(found: dict[str, Any]) -> None:
    """Scores of both models, and what keeps them from standing beside published ones."""
    {"mt_bench": mt_bench, "alpaca_eval": alpaca_eval}.get(found["suite"], arena_hard)(found)
    judge, count, whole = found["judge"], found["questions"], found["whole"]
    for reason, number in found["left_out"].items():
        print(f"Without a verdict, and left out: {number} ({visible(str(reason))})")
    if count != whole:
        print(f"A part of the suite: {count} of its {whole} questions")
    if judge["model"].rpartition("/")[2] != judge["published"]:
        print(f"Published figures are by {visible(judge['published'])}: these are none beside them")


def table(found: dict[str, Any], name: str, rows: list[Row], form: str, times: float = 1) -> None:
    title = f"{name} by {found['judge']['model']}: {found['questions']} questions"
    columns = ("policy", "against", "difference")
    shown = Table("", *columns, title=visible(title), title_justify="left")
    for row, part in rows:
        each = [said(part.get(side), form, times) for side in columns[:2]]
        shown.add_row(visible(row), *each, said(part.get(columns[2]), f"+{form}", times))
    Console().print(shown)


def mt_bench(found: dict[str, Any]) -> None:
    """Mean grades, from 1 to 10."""
    rows = [("score", found["score"])]
    rows += [(f"turn {at}", part) for at, part in enumerate(found["turns"], start=1)]
    table(found, "MT-Bench", [*rows, *found["categories"].items()], ".2f")


def alpaca_eval(found: dict[str, Any]) -> None:
    """Win rates against GPT-4 Turbo in percent."""
    names = {"length_controlled_win_rate": "length-controlled win rate, %"}
    names |= {"win_rate": "win rate, %"}
    rows = [(said, found[name]) for name, said in names.items()]
    table(found, "AlpacaEval 2", rows, ".1f", times=100)
    each = ", ".join(f"{name} {length:,.0f}" for name, length in found["length"].items())
    print(f"Mean length in characters: {each}")


def arena_hard(found: dict[str, Any]) -> None:
    """Scores in percent, of which a baseline has 50, and those with style controlled."""
    styled = found["style_controlled"]
    rows = [(f"{name}, %", part) for name, part in found["score"].items()]
    rows += [
        (f"{name}, style controlled, %", styled[name]) for name in found["score"] if name in styled
    ]
    table(found, found["suite"].replace("_", "-"), rows, ".1f", times=100)
    print("Baselines:", ", ".join(map(visible, found["baselines"].values())))
    if "lacks" in styled:
        print(f"Style is not controlled: it takes {visible(styled['lacks'])}")
