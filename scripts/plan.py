"""What a recipe needs, before it is paid for: memory, time and price.

    make plan RECIPE=qwen-ultrafeedback
    make plan RECIPE=zephyr-7b-ultrafeedback GPUS=8 GPU=A100-80GB PRICE=1.8
    make plan RECIPE=tulu-2-70b-ultrafeedback GPUS=8 NODES=4 MEMORY=80
    make plan RECIPE=qwen-ultrafeedback GPU=RTX-4090 ARGS="--max_length 4096"
    make plan GPU=cpu                                   # or CONFIG=cpu; MEMORY=16, GPUS=2 processes
    make plan RUN=outputs/smollm2-sentiment           # beside what that run measured

Without GPU= it is for this machine's GPUs, or for an H100 where there is none. It reads no weights.
Shown is every way to train it on so many GPUs, which all learn the same, with what each takes of
a GPU's memory, term by term; the fastest that fits, and the command for it; or the first change
that makes it fit.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.plan import cards
from dpo.plan.auto import AUTO, gb
from dpo.runs import launch, output_folder

DEFAULT = "smollm2-sentiment"


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--recipe", default=DEFAULT, help="a file in recipes/")
    add("--run", default="", help="a run: its plan beside what it measured")
    add("--gpus", default="", help="on each machine (this machine's, else 1)")
    add("--nodes", default="1", help="machines (1)")
    add("--gpu", default="", help="which: H100-80GB, RTX-4090, …, or cpu (this machine's)")
    add(
        "--accelerate_config", dest="config", default="", help="cpu, as --gpu: others are all shown"
    )
    add("--memory", default="", help="GB of each, instead of a name")
    add("--cpu_memory", default="", help="GB of each machine's own memory")
    add("--price", default="", help="of one GPU for an hour")
    add("--utilisation", default="", help="of the GPU's peak, that training reaches")
    add("--json", action="store_true", help="print the plan as JSON, and nothing else")
    add("arguments", nargs="*", metavar="-- ARGS", help="flags for train.py")
    args = parser.parse_args()
    args.gpu = args.gpu or cards.CPU * (args.config == cards.CPU)
    return args


def figures(args: argparse.Namespace) -> tuple[float | None, float | None]:
    """The price of a GPU and the utilisation that are asked for.

    Raises:
        Refusal: one is no such number.
    """
    price, reached = args.price, args.utilisation
    return (
        cards.number("PRICE", price, "price of a GPU for an hour", "2.5") if price else None,
        cards.number("UTILISATION", reached, "share of the peak", "0.25", 1) if reached else None,
    )


def own_alone(args: argparse.Namespace, folder: Path) -> None:
    """Raises Refusal if something is asked of the plan of a run that the run itself says."""
    parser_says = {"gpus": "", "nodes": "1", "gpu": "", "memory": "", "cpu_memory": "", "price": ""}
    given = [name.upper() for name, usual in parser_says.items() if getattr(args, name) != usual]
    if args.recipe not in (DEFAULT, output_folder.settings_of(folder).get("recipe")):
        given.insert(0, "RECIPE")
    given += ["ARGS"] if args.arguments else []
    if given:
        named = " and ".join(f"{name}=" for name in given)
        raise Refusal(f"{named} beside RUN=: a run's plan is of its own recipe, on what it ran on")


def answer() -> None:
    """What can be seen to be wrong before anything heavy is imported."""
    args = arguments()
    figures(args)
    if args.run:
        return own_alone(args, output_folder.measured(args.run)[0])
    launch.check_there(args.recipe, "" if args.config == AUTO else args.config)
    if args.config not in ("", AUTO, cards.CPU):
        raise Refusal(
            f"CONFIG={args.config}: a plan shows every config beside the others: leave it "
            "out here, and give it to make train"
        )
    launch.number_of(args.gpus)
    launch.across(args.nodes, "0", "the-first:29500")
    launch.look(["--config", f"{launch.RECIPES}/{args.recipe}.yaml", *args.arguments])
    if args.gpu or args.memory:
        cards.card(args.gpu, args.memory)
    if args.cpu_memory:
        cards.gigabytes("CPU_MEMORY", args.cpu_memory)


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(answer)

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from dpo.plan import table
from dpo.plan.arithmetic.hours import UTILISATION
from dpo.plan.ask import THIS, Asked, card_of
from dpo.plan.choice import Option, best
from dpo.plan.measured import beside, words
from dpo.plan.options import micro_batches


def beside_the_run(args: argparse.Namespace) -> None:
    """The plan of a run that was made, as it was trained, beside what it measured."""
    folder, measured = output_folder.measured(args.run)
    utilisation = figures(args)[1]
    planned, option = beside.of_folder(folder, measured["how"], utilisation or UTILISATION)
    anew = beside.told(planned, option, measured["how"])
    plan = anew if utilisation else measured["plan"] or anew
    rows = beside.rows(plan, measured)
    if args.json:
        found = {"run": str(folder), "lengths": planned.lengths.source, "rows": rows}
        return print(json.dumps(found | measured | {"plan": plan}, indent=1))
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(*words.heading(folder, planned, measured), sep="\n", soft_wrap=True)
    console.print(words.table(rows), width=max(console.width, words.WIDTH), crop=False)
    for line in words.conclusions(planned, option, measured, rows):
        console.print(line, soft_wrap=True)


@guarded
def main() -> None:
    args = arguments()
    if args.run:
        return beside_the_run(args)
    card, why = card_of(args.gpu, args.memory)
    gpus = launch.number_of(args.gpus) or (not card.on_cpu and launch.gpus_here()) or 1
    if card.on_cpu:  # whose memory the processes share
        card = replace(card, memory=card.memory / gpus)
    nodes, _ = launch.across(args.nodes, "0", "the-first:29500")
    price, reached = figures(args)
    own = cards.memory_here() if why == THIS else None
    own = cards.gigabytes("CPU_MEMORY", args.cpu_memory) if args.cpu_memory else own
    how = card, price, reached or UTILISATION, own
    asked = Asked(args.recipe, tuple(args.arguments), gpus, nodes, *how)
    micro_batches(asked.parsed(), gpus * nodes)  # refuses GPUs that cannot share the batch
    planned = asked.planned()
    options = planned.options(gpus, nodes)
    taken, change, then = best(options, card.memory, asked.machine), None, asked
    of = planned
    if taken is None and (found := asked.made_to_fit()):
        change, then, of, taken = found
    processes = then.gpus * then.nodes
    more = then.flags_of(taken, processes) if taken else []
    if args.json:
        results = {"recipe": args.recipe, "flags": args.arguments, "card": asdict(card)}
        results |= {"gpus": gpus, "nodes": nodes, "machine": asked.machine}
        results |= {"lengths": planned.lengths.source}
        results |= {"sizes": asdict(planned.sizes), "change": change}
        results["command"] = then.command(taken, more) if taken else None
        processes = gpus * nodes

        def told(option: Option) -> dict[str, Any]:
            step = planned.step_seconds(option, processes)
            return asdict(option) | {"peak": option.peak, "step_seconds": step}

        goes = planned.as_it_goes(gpus, nodes)
        results["as_it_goes"] = {config: told(option) for config, option in goes.items()}
        results["options"] = [
            told(each) | {"flags": asked.flags_of(each, processes), "taken": each is taken}
            for each in options
        ]
        print(json.dumps(results, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(*table.heading(asked, why), sep="\n", soft_wrap=True)
    console.print(*table.tables(options, card, taken, console, asked.machine), sep="\n", crop=False)
    console.print(f"{table.CPU_LEGEND if card.on_cpu else table.LEGEND}\n", style="dim")
    if taken is None:
        raise Refusal(f"no way fits {gpus * nodes} × {card.name}, nor does any one change")
    if change:
        each = "of each process" if card.on_cpu else "on each GPU"
        console.print(f"None fits. With {change} it is {gb(taken.peak)} GB {each}.\n")
    console.print(*table.spent(of, taken, processes), sep="\n", soft_wrap=True)
    console.print(f"\nNext: {then.command(taken, more)}", soft_wrap=True)
    if then.nodes > 1:
        last = f"NODE_RANK={then.nodes - 1} on the last"
        console.print(f"      on every machine, {last}; MAIN is an address of the first")


if __name__ == "__main__":
    main()
