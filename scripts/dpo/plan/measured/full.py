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
from dpo.plan.cards import CARDS, CPU, Card
from dpo.plan.choice import Option, best
from dpo.runs import launch

ANEW = ("max_length", "LoRA", "an adapter")  # changes of what is learned, as Asked.changed has them
FEW = 0.02  # of a card's memory, that is not worth a word


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
    card, used, machine = Card(**plan["card"]), option_of(way), plan["machine"]
    of_machine = "killed" in found and not card.on_cpu
    line(needed_beside(used, machine) if of_machine else needed(found, used, card))
    given = Asked(plan["recipe"], tuple(plan["flags"]), plan["gpus"], plan["nodes"], card)
    room = card.memory - others(found, used)
    if fits(found, used, room, machine):
        line(
            "That fits: something else had the memory, or a limit is set on it (ulimit, a "
            "container's, a job's). Once that is mended, the same command goes on from the last "
            "checkpoint"
        )
        return line("Next: " + given.command(used, way.get("flags", [])))
    if of_machine:
        machine = min(machine, used.machine)
    else:
        card = replace(card, memory=min(room, used.peak))
    memory = card.memory * (plan["gpus"] if card.on_cpu else 1)  # which processes share
    on = {"memory": f"{memory / 1e9:.3f}", "cpu_memory": f"{machine / 1e9:.3f}"}
    on |= {"gpu": card.name} if card.on_cpu or card.name in CARDS else {}
    other = plan_of(plan["recipe"], plan["gpus"], plan["nodes"], plan["flags"], **on)
    if isinstance(other, str):
        return line(f"No change of the plan makes it fit: {other}")
    ways = list(map(option_of, other["options"]))
    line("By the plan, with as much less memory as this run needed more:")
    taken = best(ways, card.memory, machine)
    console.print(*table.tables(ways, card, taken, console, machine), sep="\n", crop=False)
    change = other["change"] or ""
    anew = ": another run, which needs another --output_dir, or --restart" * change.startswith(ANEW)
    line(f"Next: {other['command']}" + f" (it fits with {change}{anew})" * bool(change))


def others(found: dict[str, Any], used: Option) -> float:
    """Bytes of the card that other processes had, or other libraries of this one."""
    return max(found.get("elsewhere", 0) - used.terms.get("CUDA", 0), 0)


def fits(found: dict[str, Any], used: Option, room: float, machine: float) -> bool:
    """Whether a run that ended for want of memory needs no more than there is, by its plan and by
    what it had and asked for."""
    if "killed" in found:  # for the machine's memory
        return used.peak <= room if "libraries" in used.terms else used.machine <= machine
    beyond = used.terms.get("CUDA", 0) + used.terms.get("slack", 0) * ("CUDA" in used.terms)
    return max(found["allocated"] + found.get("asked", 0) + beyond, used.peak) <= room


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


def needed_beside(used: Option, machine: float) -> str:
    """What the plan had said of the machine's own memory."""
    said = f"{gb(used.machine)} GB" if used.machine else "no more than any process does"
    return (
        f"The plan says that CONFIG={used.config} needs {said} of the machine's memory, which has "
        f"{gb(machine)} GB"
    )


def needed(found: dict[str, Any], used: Option, card: Card) -> str:
    """What the plan had said of the run, and what it had when it failed."""
    line = (
        f"The plan says {gb(used.peak)} GB for CONFIG={used.config}, of the {gb(card.memory)} GB "
    )
    line += f"that {card.name} has"
    if (had := found.get("allocated")) is None:
        return line
    beside = others(found, used)
    line += f", and {gb(beside)} GB of that are of other processes" * (beside > FEW * card.memory)
    terms = used.terms
    said = used.peak - terms.get("CUDA", 0) - terms.get("slack", 0)
    if had > said:
        return f"{line}; {gb(had)} GB were allocated, {had / said - 1:.0%} more than it says"
    asked = f"{gb(found['asked'])} GB more were" if found.get("asked") else "more was"
    return f"{line}; {gb(had)} GB were allocated, of its {gb(said)}, when {asked} asked for"
