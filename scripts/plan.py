"""What a recipe needs, before it is paid for: memory, time and price.

    make plan RECIPE=qwen-ultrafeedback
    make plan RECIPE=zephyr-7b-ultrafeedback GPUS=8 GPU=A100-80GB PRICE=1.8
    make plan RECIPE=tulu-2-70b-ultrafeedback GPUS=8 NODES=4 MEMORY=80
    make plan RECIPE=qwen-ultrafeedback GPU=RTX-4090 ARGS="--max_length 4096"

Without GPU= it is for this machine's GPUs, or for an H100 where there is none. It reads no weights.
Shown is every way to train it on so many GPUs, which all learn the same, with what each takes of
a GPU's memory, term by term; the fastest that fits, and the command for it; or the first change
that makes it fit.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse

from dpo.core.terminal import at_once, guarded, parser_of


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--recipe", default="smollm2-sentiment", help="a file in recipes/")
    add("--gpus", default="", help="on each machine (this machine's, else 1)")
    add("--nodes", default="1", help="machines (1)")
    add("--gpu", default="", help="which: H100-80GB, A100-40GB, RTX-4090, … (this machine's)")
    add("--memory", default="", help="GB of each, instead of a name")
    add("--price", type=float, help="of one GPU for an hour")
    add("--utilisation", type=float, help="of the GPU's peak, that training reaches")
    add("--json", action="store_true", help="print the plan as JSON, and nothing else")
    add("arguments", nargs="*", metavar="-- ARGS", help="flags for train.py")
    return parser.parse_args()


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)

import json
import shlex
import sys
from dataclasses import asdict

from rich.console import Console

from dpo.core.refusal import Refusal
from dpo.plan import table
from dpo.plan.ask import Asked, card_of
from dpo.plan.hours import UTILISATION
from dpo.plan.options import Option, best
from dpo.runs import launch


def command(asked: Asked, option: Option, flags: tuple[str, ...], gpus: int, nodes: int) -> str:
    """The make line that trains so."""
    recipe = asked.parsed(*flags).training
    words = [*asked.flags, *flags]
    if option.checkpointing != recipe.gradient_checkpointing:
        words += ["--gradient_checkpointing", str(option.checkpointing).lower()]
    if option.live == recipe.precompute_ref_log_probs:
        words += ["--precompute_ref_log_probs", str(not option.live).lower()]
    words += asked.batch_flags(option, gpus * nodes)
    line = f"make train RECIPE={asked.recipe} CONFIG={option.config} GPUS={gpus}"
    line += f" NODES={nodes}" * (nodes > 1)
    return line + (f" ARGS={shlex.quote(' '.join(words))}" if words else "")


@guarded
def main() -> None:
    args = arguments()
    launch.check_there(args.recipe, "")
    card, why = card_of(args.gpu, args.memory)
    gpus = launch.number_of(args.gpus) or launch.gpus_here() or 1
    nodes = launch.number_of(args.nodes) or 1
    utilisation = args.utilisation or UTILISATION
    asked = Asked(args.recipe, tuple(args.arguments), gpus, nodes, card, args.price, utilisation)
    planned = asked.planned()
    options = [*planned.options(gpus, nodes, card.memory)]
    chosen, flags = best(options, card.memory), ()
    change = None
    if chosen is None and (found := asked.first_change()):
        change, flags, gpus, nodes, chosen = found
    line = command(asked, chosen, flags, gpus, nodes) if chosen else None
    if args.json:
        results = {"recipe": args.recipe, "card": asdict(card), "gpus": asked.gpus}
        results |= {"nodes": asked.nodes, "lengths": planned.lengths.source, "change": change}
        results |= {"sizes": asdict(planned.sizes), "command": line}
        results |= {"taken": asdict(chosen) if chosen else None}
        results["options"] = [asdict(each) | {"peak": each.peak} for each in options]
        print(json.dumps(results, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(*table.heading(planned, asked.gpus, asked.nodes, why), sep="\n", soft_wrap=True)
    console.print(table.table(options, card.memory, chosen))
    console.print(table.LEGEND, "\n", style="dim")
    if chosen is None:
        raise Refusal(f"nothing fits {gpus * nodes} × {card.name}, nor with any single change")
    if change:
        console.print(f"None fits. With {change}: {table.gb(chosen.peak)} GB on each GPU.")
    console.print(*table.spent(planned, chosen), sep="\n", soft_wrap=True)
    console.print(f"\nNext: {line}", soft_wrap=True)


if __name__ == "__main__":
    main()
