"""Launch a recipe on what the machine has: `make train` runs this.

    python scripts/launch.py --recipe smollm2-sentiment
    python scripts/launch.py --recipe qwen-ultrafeedback --accelerate_config zero2 -- --beta 0.05
    python scripts/launch.py --nodes 4 --node_rank 0 --main 10.0.0.1:29500 --gpus 8
    python scripts/launch.py --list
    python scripts/launch.py -- --help               # all arguments of a recipe

On GPUs the config goes by the recipe's plan (make plan). What cannot fit does not start.
Prints the `accelerate launch` command and runs it. Asked to stop, by SIGTERM, SIGUSR1 or Ctrl-C,
the run saves at the end of its step, and this ends with 75: the same command goes on from there. A
second Ctrl-C ends it at once.
"""

import argparse
import os
import shlex
import signal
from typing import Any

from dpo.core.environment import CONFIG, PLAN
from dpo.core.signals import SIGNALS
from dpo.core.terminal import guarded, parser_of
from dpo.plan import auto, on_cpu
from dpo.recipe.parse import FOLDER as RECIPES
from dpo.recipe.parse import names
from dpo.runs import launch


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="show the recipes and configs, and end")
    add("--check", action="store_true", help="see that names and flags are right, and end")
    add("--recipe", default="smollm2-sentiment", help="a file in recipes/")
    add(
        "--accelerate_config",
        dest="config",
        default="",
        help="a file in accelerate_configs/, or auto",
    )
    add("--force", action="store_true", help="try what does not fit by the plan")
    add("--gpus", default="", help="processes on this machine (default: all GPUs)")
    add("--nodes", default="1", help="number of machines that train together")
    add("--node_rank", default="", help="this machine's number among them, from 0")
    add("--main", default="", help="host:port of machine 0, the same on all")
    add("arguments", nargs="*", metavar="-- ARGS", help="flags for train.py")
    return parser.parse_args()


def show_choices() -> None:
    for heading, folder in (("RECIPE", RECIPES), ("CONFIG", launch.CONFIGS)):
        print(heading)
        known = names(folder)
        width = max(map(len, known))
        for name in known:
            text = (folder / f"{name}.yaml").read_text(encoding="utf-8", errors="replace")
            title = text.partition("\n")[0].lstrip("# ")
            print(f"  {name:<{width}}  {title}")


def by_the_plan(asked: dict[str, Any], force: bool) -> tuple[dict[str, Any], auto.Way] | None:
    """On GPUs, take the config and the flags that the recipe's plan does, and say so.

    Returns the plan, and what it says of that way; None where none is made.

    Raises:
        Refusal: what is asked for does not fit.
    """
    here, config = launch.gpus_here(), asked["config"]
    if not here or config == "cpu":
        return None
    nodes, _ = launch.across(asked["nodes"], asked["node_rank"], asked["main"])
    gpus = launch.number_of(asked["gpus"]) or here
    gpus = 1 if config in launch.ONE_PROCESS else gpus
    plan = auto.plan_of(asked["recipe"], gpus, nodes, asked["arguments"])
    if isinstance(plan, str):
        print(f"No plan, and the config goes by the machine: {plan}")
        return None
    asked["config"], flags, said, way = auto.settle(plan, config, force)
    asked["arguments"] = [*auto.without(asked["arguments"], flags[::2]), *flags]
    print(said, end="\n" * bool(said), flush=True)
    return (plan, way) if way else None


@guarded
def main() -> None:
    args = vars(arguments())
    force = args.pop("force")
    args["config"] = "" if args["config"] == auto.AUTO else args["config"]
    if args.pop("list"):
        return show_choices()
    if args.pop("check"):  # before a job waits for its turn
        return launch.check(**args)
    launch.plan(**args)  # what is wrong is told, and a finished run is, before a plan takes seconds
    on_cpu.check(**args, force=force)
    planned = by_the_plan(args, force)
    command, environment = launch.plan(**args)
    environment.pop(PLAN, None)  # of another run
    environment |= auto.handed(planned[1]) if planned else {}
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    changed = visible != os.environ.get("CUDA_VISIBLE_DEVICES")
    print(f"CUDA_VISIBLE_DEVICES={visible} " * changed + shlex.join(command), flush=True)

    def say_full(found: dict[str, Any]) -> None:
        from dpo.plan.measured import full  # late: a run that goes well needs none of it

        full.say(found, args, environment[CONFIG], planned)

    raise SystemExit(launch.run(command, environment, say_full))


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until run() knows whom to tell
    main()
