"""Run a recipe at every point of a grid, and compare: `make sweep` runs this.

    make sweep RECIPE=qwen-ultrafeedback SWEEP="beta=0.05,0.1,0.5 learning_rate=1e-6,5e-7"
    make sweep RECIPE=qwen-ultrafeedback SWEEP="loss_type=sigmoid,ipo" GPUS=2   # GPUs of each run

Every point is checked before the first starts. They run one after another, or side by side where
there are GPUs for it, each in outputs/<recipe>-sweep/<point>; the reference is scored once for
all. The same command goes on where it was ended: finished points are left alone, a failed one
does not end the others.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo.core.terminal import at_once, guarded, parser_of
from dpo.plan.auto import AUTO
from dpo.runs import sweeps
from dpo.runs.launch import check_there, choose, number_of, visible_gpus


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--recipe", required=True, help="a file in recipes/")
    parser.add_argument("--sweep", nargs="+", required=True, help="key=value,value ...")
    parser.add_argument("--output", default="", help="folder (outputs/<recipe>-sweep)")
    where = {"dest": "config", "default": "", "help": "a file in accelerate_configs/, or auto"}
    parser.add_argument("--accelerate_config", **where)
    parser.add_argument("--gpus", default="", help="GPUs of each run (1)")
    wandb = {"nargs": "?", "const": "grid", "choices": ["grid", "random", "bayes"]}
    parser.add_argument("--wandb", **wandb, help="write a W&B sweep file, run nothing (grid)")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGS", help="flags for every run")
    args = parser.parse_args()
    args.config = "" if args.config == AUTO else args.config  # as a run takes it by itself
    check_there(args.recipe, args.config)
    sweeps.points(" ".join(args.sweep))
    return args


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)

import torch
import yaml
from rich.console import Console
from rich.table import Table

from dpo.core import files
from dpo.core.environment import launched
from dpo.core.refusal import Refusal
from dpo.core.signals import EXIT_CODE
from dpo.core.terminal import visible
from dpo.recipe.parse import share_batch
from dpo.reports import results
from dpo.reports.comparison import collect, export, terminal
from dpo.reports.comparison.table import table
from dpo.runs import output_folder
from dpo.runs.sweeps import DONE, FAILED, LEFT, Run
from dpo.runs.tracking import names

METRIC = "eval/preference_accuracy"  # of the sweep, in the summary of its runs


def distribution(values: list) -> dict[str, Any]:
    """What random and bayes draw a parameter from: between the ends of numbers that are given, by
    their logarithm where they are above 0 and not whole; of anything else, one of them."""
    if len(values) < 2 or not all(type(value) in (int, float) for value in values):
        return {"values": values}
    kind = "log_uniform_values" if min(values) > 0 else "uniform"
    if all(type(value) is int for value in values):
        kind = "int_uniform"
    return {"distribution": kind, "min": min(values), "max": max(values)}


def sweep_file(
    runs: list[Run], how: list[str], arguments: list[str], into: Path, method: str = "grid"
) -> Path:
    """A W&B sweep over the same grid, for agents on many machines; each of them runs a sweep of one
    point, in the same folders. By `method` random or bayes it is as many points as the grid has,
    between those that are given."""
    grid: dict[str, dict[str, Any]] = {}
    for run in runs:
        for key, value in run.values.items():
            values = grid.setdefault(key, {"values": []})["values"]
            value = value if isinstance(value, int | float) else run.point[key]
            values.extend([value] if value not in values else [])
    command = ["${env}", "${interpreter}", "${program}", "--recipe", runs[0].recipe.name, *how]
    command += ["--output", str(into), "--sweep", "${args_no_hyphens}"]
    command += ["--", *arguments] if arguments else []
    project = names.project(runs[0].recipe.stated.get("project"))
    about = {"name": into.name, "project": project, "program": "scripts/sweep.py"}
    about |= {"method": method, "metric": {"name": METRIC, "goal": "maximize"}}
    if method != "grid":
        grid = {k: of if k == "seed" else distribution(of["values"]) for k, of in grid.items()}
        about["run_cap"] = len(runs)  # they would go on for ever
    about |= {"parameters": grid, "command": command}
    into.mkdir(parents=True, exist_ok=True)
    files.write_whole(into / "sweep.yaml", yaml.safe_dump(about, sort_keys=False))
    return into / "sweep.yaml"


def places(config: str, gpus: str) -> list[str | None]:
    """The GPUs of each run that goes on at a time, as CUDA_VISIBLE_DEVICES names them; `[None]` for
    one at a time on the CPU.

    Raises:
        Refusal: a run asks for more GPUs than there are.
    """
    each = number_of(gpus) or 1
    count = 0 if config == "cpu" else torch.cuda.device_count()
    if not count:
        return [None]
    if each > count:
        raise Refusal(f"GPUS={gpus} for each run, but this machine has {count}")
    seen = visible_gpus(count)
    return [",".join(seen[at : at + each]) for at in range(0, count - each + 1, each)]


def show(runs: list[Run]) -> None:
    shown = Table(title="Sweep", title_justify="left")
    for column in ("point", "state", "accuracy", "true reward", "seconds"):
        shown.add_column(column, justify="left" if column in ("point", "state") else "right")
    for run in runs:
        found = results.read(run.folder / output_folder.REPORT)
        pairs, judge = found.get("pairs"), found.get("judge")
        seconds = sum(found["seconds"].values()) if found else run.seconds
        accuracy = f"{pairs['accuracy']['mean']:.3f}" if pairs else ""
        reward = f"{judge['reward']['policy']['mean']:+.3f}" if judge else ""
        shown.add_row(run.name, run.state, accuracy, reward, f"{seconds:.0f}")
    Console().print(shown)


@guarded
def main() -> None:
    args = arguments()
    into = Path(args.output or f"outputs/{args.recipe}-sweep")
    at_a_time = places(args.config, args.gpus)
    on_gpus = at_a_time != [None]
    how = ["--accelerate_config", args.config] if args.config else []
    gpus = args.gpus or ("1" if on_gpus else "")
    how += ["--gpus", gpus] if gpus else []
    _, processes, _ = choose(args.config, gpus)
    launch = replace(launched(), on_cpu=not on_gpus)  # recipes are read as the runs will read them
    runs = sweeps.resolved(args.recipe, " ".join(args.sweep), into, args.arguments, launch)
    for run in runs:
        share_batch(run.recipe.global_batch, 1, processes)
    if args.wandb:
        if args.wandb == "bayes" and runs[0].recipe.training.eval_strategy == "no":
            raise Refusal(f"bayes goes by {METRIC}, and this recipe evaluates nothing: take random")
        if args.wandb == "bayes" and any("seed" in run.point for run in runs):
            raise Refusal("bayes would look for the luckiest seed: leave seed out, or take grid")
        file = sweep_file(runs, how, args.arguments, into, args.wandb)
        goal = "" if args.wandb == "grid" else f": {len(runs)} runs, the highest {METRIC}"
        print(f"Written: {file}{goal}. On one machine: wandb sweep {file}")
        print("On every machine that takes part, as it says then: wandb agent <its id>")
        return
    asked = sweeps.carry_out(runs, how, at_a_time, args.arguments)
    show(runs)
    for run in runs:
        if run.state == FAILED:
            print(f"{run.name} failed: {visible(run.last_line())} ({run.log})")
    if asked or any(run.state == LEFT for run in runs):
        print("Asked to stop: the same command goes on from here")
        sys.exit(EXIT_CODE)
    done = [run.folder for run in runs if run.state == DONE]
    if len(done) > 1:
        begun = [run.folder for run in runs if run.state == DONE or sweeps.begun(run)]
        compared = collect.collect(begun)  # one that failed is named, and in no mean over seeds
        terminal.show_groups(compared, table(compared))
        written = export.write(compared, into, f"{args.recipe}: sweep")
        print(f"Compared: {', '.join(map(str, written))}")
        seeds_alone = {key for run in runs for key in run.point} == {"seed"}
        then = "" if seeds_alone else ", and make evaluate RUN= the best"
        print(f"Next: open {written[0]}{then}")
    sys.exit(1 if any(run.state == FAILED for run in runs) else 0)


if __name__ == "__main__":
    main()
