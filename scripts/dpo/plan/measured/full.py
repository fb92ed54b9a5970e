"""What a launch ends with where memory ran out: its plan, and the change to make."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from typing import Any

from rich.console import Console

from dpo.plan import table
from dpo.plan.arithmetic.hours import Cost
from dpo.plan.ask import Asked
from dpo.plan.auto import Way, gb, plan_of
from dpo.plan.cards import CPU, Card
from dpo.plan.choice import Option, best
from dpo.runs import launch


def say(
    found: dict[str, Any],
    asked: dict[str, Any],
    config: str,
    planned: tuple[dict[str, Any], Way] | None,
) -> None:
    """Print what the run needs by its plan, the ways that need less, and the first that fits.

    Args:
        found: as the run told it, `allocated` bytes or that it was `killed`.
        asked: as launch.plan takes it.
        config: that was launched.
        planned: the plan that was made at the start, and what it says of this run. Without one it
            is made now, for this machine's processors.
    """
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140, highlight=False)

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    if "killed" in found:
        line(
            "A process of the run was killed (exit code 137), and did not say why it ended: the "
            "system does so where the machine's memory has run out"
        )
    if planned is None:
        made = on_cpu(asked, config)
        if isinstance(made, str):
            return line(f"There is no plan of it: {made}")
        planned = made
    plan, way = planned
    card, used = Card(**plan["card"]), option_of(way)
    line(needed(found, used, card))
    short = max(card.memory / used.peak, 1)  # it needed more than there is
    less = [option for option in map(option_of, plan["options"]) if option.peak < used.peak]
    given = Asked(plan["recipe"], tuple(plan["flags"]), plan["gpus"], plan["nodes"], card)
    taken = best(less, card.memory / short, plan["machine"])
    if less:
        line("By the plan these ways need less:")
        smaller, machine = replace(card, memory=card.memory / short), plan["machine"]
        shown = table.tables(less, smaller, taken, console, machine)
        console.print(*shown, sep="\n", crop=False)
    if taken is not None:
        more = given.flags_of(taken, plan["gpus"] * plan["nodes"])
        return line(f"Next: {given.command(taken, more)}")
    where = plan["recipe"], plan["gpus"], plan["nodes"], plan["flags"]
    on = {"gpu": plan["card"]["name"]} if config == CPU else {}
    on |= {"cpu_memory": f"{plan['machine'] / 1e9:.1f}"}
    other = plan_of(*where, memory=f"{card.memory / short / 1e9:.1f}", **on)
    if isinstance(other, str):
        return line(f"No change of the plan makes it fit: {other}")
    line(f"Next: {other['command']}" + f" (it fits with {other['change']})" * bool(other["change"]))


def on_cpu(asked: dict[str, Any], config: str) -> tuple[dict[str, Any], Way] | str:
    """The plan of a run on this machine's processors, and what it says of this run; or why there
    is none."""
    processes = 1 if config == CPU else launch.number_of(asked["gpus"]) or 1
    plan = plan_of(asked["recipe"], processes, 1, asked["arguments"], gpu=CPU)
    if isinstance(plan, str):
        return plan
    way = plan["as_it_goes"].get(config)
    return (plan, way) if way else f"make plan knows no CONFIG={config} on a CPU"


def option_of(way: Way) -> Option:
    """An option of a plan in JSON."""
    known = {field.name: way[field.name] for field in fields(Option)}
    return Option(**known | {"cost": Cost(**way["cost"])})


def needed(found: dict[str, Any], used: Option, card: Card) -> str:
    """What the plan had said of the run, and what it had when it failed."""
    line = (
        f"The plan says {gb(used.peak)} GB for CONFIG={used.config}, of the {gb(card.memory)} GB "
    )
    line += f"that {card.name} has"
    if (had := found.get("allocated")) is None:
        return line
    terms = used.terms
    said = used.peak - terms.get("CUDA", 0) - terms.get("slack", 0)
    if had > said:
        return f"{line}; {gb(had)} GB were allocated, {had / said - 1:.0%} more than it says"
    return (
        f"{line}; {gb(had)} GB were allocated, of {gb(said)} that it says, when more was asked "
        "for: look whether something else is on it"
    )
