"""A plan in words: a table of the ways to train, and the lines around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from dpo.plan.arithmetic import disk
from dpo.plan.ask import Asked
from dpo.plan.auto import gb
from dpo.plan.cards import Card
from dpo.plan.choice import SURE, Option
from dpo.plan.options import Planned

MUCH = 0.2  # of the FLOPs: evaluations that take more are told
COLUMNS = ("CONFIG=", "reference", "checkpointing", "pairs", "policy", "grad.", "optim.", "ref.")
COLUMNS += ("activ.", "work", "sent", "CUDA", "peak", "CPU", "hours", "")
WIDE = 1000  # characters, as no table is
EVERY, OF_TERMS = range(len(COLUMNS)), range(4, 12)
OF_WAYS = sorted({*EVERY} - {*OF_TERMS})
TERMS = ("policy", "gradients", "optimizer", "reference", "activations", "at work")
LEGEND = (
    "GB on each GPU at the peak of a step. pairs: at a time × micro-batches of a step. activ.: "
    "kept for the backward pass of the longest micro-batch; work: the output layer, layers "
    "computed again, gradients on their way; sent: buffers of what is sent and gathered; CUDA: its "
    "context, and what the allocator holds and nobody uses; CPU: of each machine."
)
CPU_LEGEND = (
    "GB of each process, resident, at its peak: of a step, or of the answers after training (then "
    "there is no optimizer, and activ. are keys and values). pairs: at a time × micro-batches of a "
    "step. ref.: there for some pairs, where it is cached too; activ.: kept for the backward pass "
    "of the longest micro-batch; work: the output layer, layers computed again, gradients on their "
    "way; sent: buffers; libs: what is imported; slack: what glibc keeps of freed memory."
)
ON_CPU = {"CUDA": "libs", "CPU": "slack"}  # columns that hold something else there


def row(option: Option, limits: tuple[float, float], chosen: bool) -> list[str]:
    terms, hours = option.terms, option.cost.seconds
    on_cpu = "libraries" in terms
    held = terms["libraries"] if on_cpu else terms["CUDA"] + terms["slack"]
    last = terms["slack"] if on_cpu else option.machine
    sent = terms["communication"] + terms["gathered"]
    return [
        option.config,
        "live" if option.live else "cached",
        "on" if option.checkpointing else "off",
        f"{option.micro} × {option.accumulation}",
        *(gb(terms[name]) for name in TERMS),
        gb(sent),
        gb(held),
        gb(option.peak),
        gb(last) if last else "",
        "" if hours is None else f"{hours / 3600:.1f}",
        "← taken" if chosen else fit(option.filled(*limits)),
    ]


def fit(filled: float) -> str:
    return "" if filled <= SURE else "tight" if filled <= 1 else "too large"


def table(
    options: list[Option],
    card: Card,
    chosen: Option | None,
    machine: float,
    places: Sequence[int],
) -> Table:
    """A line a way to train, those that do not fit dim.

    Args:
        machine: bytes of each machine's own memory.
        places: of the columns that are shown.
    """
    limits = card.memory, machine
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place in places:
        name, number = COLUMNS[place], 3 <= place < len(COLUMNS) - 1
        name = ON_CPU.get(name, name) if card.on_cpu else name
        found.add_column(name, justify="right" if number else "left", no_wrap=True)
    for option in options:
        style = "bold" if option is chosen else "" if option.filled(*limits) <= 1 else "dim"
        cells = row(option, limits, option is chosen)
        found.add_row(*(cells[place] for place in places), style=style)
    anywhere = Console(width=WIDE)
    found.width = Measurement.get(anywhere, anywhere.options, found).maximum  # no figure is cut
    return found


def tables(
    options: list[Option],
    card: Card,
    chosen: Option | None,
    console: Console,
    machine: float = math.inf,
) -> list[Table | str]:
    """The ways to train with all their terms, or, where the terminal has no room for these, without
    them, and then the terms of the way that is taken, or needs least."""
    whole = table(options, card, chosen, machine, EVERY)
    if (whole.width or 0) <= console.width:
        return [whole]
    one = chosen or min(options, key=lambda option: option.peak)
    said = f"Of the way that {'is taken' if chosen else 'needs least'}:"
    terms = table([one], card, chosen, machine, OF_TERMS)
    return [table(options, card, chosen, machine, OF_WAYS), said, terms]


def heading(asked: Asked, why: str) -> list[str]:
    """What is planned: the model, the data, the GPUs."""
    planned, nodes = asked.planned(), asked.nodes
    recipe, sizes, found = planned.recipe, planned.sizes, planned.lengths
    total = (sizes.frozen + sizes.trained) / 1e6
    of_it = f", of which {sizes.trained / 1e6:,.1f}M are trained" if sizes.frozen else ""
    mean = found.pairs.sum(axis=1).mean()
    named = "CPU     " if planned.card.on_cpu else "GPUs    "
    machines = f" on each of {nodes} machines" if nodes > 1 else ""
    beside = ""
    if not planned.card.on_cpu:
        beside = f"; {gb(asked.machine)} GB of memory in {'each' if nodes > 1 else 'the'} machine"
        beside += "" if asked.cpu_memory else ", assumed: CPU_MEMORY= says how much"
    return [
        f"model   {recipe.model.model_name_or_path}, {total:,.1f}M parameters{of_it}"
        + (f" ({planned.note})" if planned.note else ""),
        f"data    {found.rows:,} pairs of {mean:,.0f} tokens, prompts once: {found.source}",
        f"steps   {planned.steps():,} of {recipe.global_batch} pairs{for_each(planned)}",
        f"{named}{asked.gpus} × {planned.card.name}{machines}, {gb(planned.card.memory)} GB each"
        + (f" ({why})" if why else "")
        + beside,
    ]


def spent(planned: Planned, option: Option, gpus: int) -> list[str]:
    """Time, price and disk of one way."""
    cost, args, sizes = option.cost, planned.recipe.training, planned.sizes
    flops = sum(cost.flops.values())
    lines = [f"FLOPs   {flops:.2g}{for_each(planned)}, the reference and evaluations in it"]
    if (share := cost.flops["evaluation"] * (1 + option.live) / flops) > MUCH:
        run = planned.run(option.live, option.checkpointing, option.micro)
        lines[0] += f": {share:.0%} are {run.evaluations:,} evaluations of {run.held_out:,} pairs"
        lines[0] += f", one every {args.eval_steps:g} steps" * (args.eval_strategy == "steps")
    what = "machine" if planned.card.on_cpu else "card"
    if cost.seconds is None:
        lines.append(f"time    not known: no speed is known of this {what}")
    else:
        paid = "" if cost.price is None else f", {cost.price:,.0f} at {planned.price:g} an hour"
        lines.append(
            f"time    about {duration(cost.seconds)}, {cost.gpu_hours:,.1f} GPU-hours{paid}"
            f"{for_each(planned)}: at "
            f"{planned.utilisation:.0%} of {(planned.card.flops or 0) / 1e12:,.0f} TFLOP/s"
        )
    setting = planned.setting(option.config, option.live, option.checkpointing, gpus, True)
    policy = disk.policy(sizes, setting, planned.recipe.run.save_merged)
    each = option.disk
    count = 0
    if args.save_strategy != "no":
        every = args.save_steps * planned.steps() if args.save_steps < 1 else args.save_steps
        count = max(planned.steps() // max(int(every), 1), 1)
        count = min(count, args.save_total_limit or count) + 1  # the next one is written first
    lines.append(
        f"disk    {gb(policy + each * count)} GB: {count} checkpoints of {gb(each)} GB, and the "
        f"policy of {gb(policy)} GB"
    )
    return lines


def for_each(planned: Planned) -> str:
    """That a figure is not of the whole run, where nobody knows how many pairs that has."""
    return "" if planned.lengths.known else f" for each {planned.lengths.rows:,} pairs"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
