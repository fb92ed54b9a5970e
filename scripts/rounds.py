"""Sample from the policy, make pairs, train, measure; and again: `make rounds` runs this.

    make rounds RECIPE=smollm2-sentiment PROMPTS=recipes/data/sentiment/train.jsonl JUDGE=vader
    make rounds RECIPE=mine PROMPTS=owner/prompts JUDGE=owner/reward-model ROUNDS=3 SAMPLES=8
    make rounds RECIPE=mine PROMPTS=questions.txt JUDGE=rule.py ARGS="--reference previous"

Each round asks fresh prompts, makes pairs of the policy's answers to them (make pairs), and trains
the policy on from there with the recipe (make train), in outputs/<recipe>-rounds/round-1 and so on.
Beside them one offline run learns from as many pairs of the start's own answers. Every policy is
measured against the start on held-out prompts. The same command goes on from wherever it was ended;
what is finished is not done again.

Flags before `--` that are not listed here are those of make pairs: --temperature, --top_p,
--max_new_tokens, --seed, --min_margin, --test_size, --dtype, --judge_model and others. Those after
it are of every run: ARGS="--temperature 1 -- --beta 0.05".
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pairs
from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of, visible
from dpo.plan.auto import AUTO
from dpo.recipe.arguments import positive
from dpo.recipe.parse import FOLDER, look
from dpo.runs.launch import check_there, choose, number_of

SET_HERE = ("model", "to", "skip", "first", "push")  # of make pairs
CARRIED_OUT = ("gpus", "judge_price", "judge_parallel", "judge_timeout")  # decide no pair


def yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def arguments() -> tuple[argparse.Namespace, argparse.Namespace, list[str]]:
    """What was given, with `arguments` of the runs; what of it is for make pairs, and as flags.

    Raises:
        Refusal: something is missing, misspelt, or is not there.
    """
    parser = parser_of(__doc__, prog="rounds.py", allow_abbrev=False)
    add = parser.add_argument
    add("--recipe", required=True, help="a file in recipes/")
    add("--rounds", type=positive, default=3, help="how many (3)")
    add("--prompts_per_round", type=positive, default=None, help="(all, shared by the rounds)")
    references: Any = {"choices": ("start", "previous"), "default": "start"}
    add("--reference", **references, help="of each round: the first model, or the one before it")
    add("--offline", type=yes_or_no, default=True, help="and one run on as many pairs (true)")
    add("--eval_prompts", default="", help="to measure on (the recipe's held-out ones)")
    add("--eval_limit", type=positive, default=128, help="at most so many of them (128)")
    add("--eval_samples", type=positive, default=2, help="answers to each (2)")
    add("--output", default="", help="folder (outputs/<recipe>-rounds)")
    where: Any = {"dest": "config", "default": "", "help": "a file in accelerate_configs/, or auto"}
    add("--accelerate_config", **where)
    add("--gpus", default="", help="processes (all GPUs)")
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    args, rest = parser.parse_known_args(given[:at])
    args.arguments = given[at + 1 :]
    own = [*rest, *(["--gpus", args.gpus] if args.gpus else [])]
    asked = pairs.arguments(own)
    if named := [name for name in SET_HERE if getattr(asked, name) not in ([], "", 0, None)]:
        raise Refusal(f"--{named[0]}: make rounds says it in every round itself: leave it out")
    if asked.judge in ("", "hand"):
        raise Refusal(
            f"JUDGE={asked.judge}: name who judges without asking anybody: vader, a reward model, "
            "an endpoint's URL, or rule.py"
        )
    asked.model = [args.recipe]  # who answers, every round says
    pairs.check(asked)
    args.config = "" if args.config == AUTO else args.config  # as a run takes it by itself
    check_there(args.recipe, args.config)
    number_of(args.gpus)
    look(["--config", str(FOLDER / f"{args.recipe}.yaml"), *args.arguments])
    return args, asked, own


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(lambda: arguments())

from dpo.core.environment import launched
from dpo.core.signals import EXIT_CODE
from dpo.pairs.rounds import begin, plan
from dpo.pairs.rounds.carry_out import Asked, carry_out
from dpo.recipe.parse import share_batch
from dpo.reports.rounds import page
from dpo.runs import output_folder


@guarded
def main() -> None:
    args, asked, own = arguments()
    into = Path(args.output or f"outputs/{args.recipe}-rounds")
    _, processes, on_cpu = choose(args.config, args.gpus)
    launch = replace(launched(), on_cpu=on_cpu)  # recipes are read as the runs will read them
    recipe = plan.recipe_of(args.recipe, args.arguments, launch)
    plan.check_reference(recipe, args.reference)
    share_batch(recipe.global_batch, 1, processes)
    if recipe.training.eval_strategy == "no":
        own, asked.test_size = [*own, "--test_size", "0"], 0
    if pairs.RULE.fullmatch(asked.judge):
        print(visible(f"JUDGE: {asked.judge} is your own code, and is run"))

    stated = {key: value for key, value in vars(asked).items() if key not in SET_HERE}
    carried = {key: stated.pop(key) for key in CARRIED_OUT}
    how = {k: v for k, v in vars(args).items() if k not in ("output", "config", "gpus")} | stated
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if into.is_file() else error.strerror
        raise Refusal(f"OUTPUT: {into} cannot be made: {why}: give another folder") from error
    held = output_folder.lock(into)  # noqa: F841  as long as the process lives
    count = begin.begin(recipe, into, how, carried)
    rounds = plan.rounds(recipe, args.arguments, into, args, asked.test_size, count)
    if args.prompts_per_round and args.prompts_per_round * args.rounds > count:
        print(f"{count} prompts run out before round {args.rounds} ends: then they begin again")
    launcher = ["--accelerate_config", args.config] if args.config else []
    launcher += ["--gpus", args.gpus] if args.gpus else []
    try:
        carry_out(rounds, own, launcher)
    except Asked:
        print("Asked to stop: the same command goes on from here")
        sys.exit(EXIT_CODE)
    found = begin.read(into)
    page.write(found, into)
    page.show(found)
    print(f"Written: {into}/rounds.html, rounds.png, rounds.md, rounds.json")
    last = rounds[args.rounds - 1].name
    print(f"Next: open {into}/rounds.html; the policy of the last round is {into}/{last}")


if __name__ == "__main__":
    main()
