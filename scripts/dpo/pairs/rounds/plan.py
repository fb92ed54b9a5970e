"""Which rounds there are: the prompts of each, who answers them, and the flags of its run."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.core.environment import Launch
from dpo.core.refusal import Refusal
from dpo.models.adapters import MERGED, config_of
from dpo.recipe.flags import name_of, overridden
from dpo.recipe.parse import FOLDER, Recipe, parse
from dpo.recipe.validate import check_values
from dpo.runs.sweeps import Run

OFFLINE = "offline"
JOINED = "offline-data"  # as many pairs as all rounds together
# Flags of every run that the rounds set, or that would undo them.
SET_HERE = ("dataset_name", "output_dir", "ref_model_name_or_path", "restart")


@dataclass
class Round:
    """A policy that is made: `first` prompts after `skip` others are answered by `model`, and it is
    trained on from the pairs that come of it. The offline run is one too."""

    name: str
    into: Path
    model: str
    skip: int
    first: int
    run: Run
    flags: list[str]

    @property
    def pairs(self) -> Path:
        return self.into / f"{self.name}-pairs"

    @property
    def asked(self) -> str:
        """Its prompts, by their numbers."""
        return f"{self.skip + 1} to {self.skip + self.first}"


def recipe_of(name: str, arguments: list[str], launch: Launch | None = None) -> Recipe:
    """The recipe that the rounds begin with, as it stands.

    Raises:
        Refusal: it cannot be trained in rounds.
    """
    for flag in filter(lambda flag: flag.startswith("--"), arguments):
        if name_of(flag) in SET_HERE[1:]:
            raise Refusal(f"ARGS: {flag}: make rounds says it of each run itself: leave it out")
    recipe = parse(["--config", str(FOLDER / f"{name}.yaml"), *arguments], launch)
    check_values(recipe)
    if recipe.mixture.datasets:
        raise Refusal(
            f"{recipe.path}: datasets: a round trains on one data set, its own pairs: take a "
            "recipe with dataset_name"
        )
    if "ref_model_name_or_path" in recipe.stated:
        raise Refusal(
            f"{recipe.path}: ref_model_name_or_path: --reference start or previous says what the "
            "reference of each round is: leave it out"
        )
    if config_of(recipe.model.model_name_or_path, recipe.model.model_revision):
        raise Refusal(
            f"{recipe.model.model_name_or_path} is an adapter: rounds begin with a whole model: "
            "merge it into its base first, with peft's merge_and_unload()"
        )
    if recipe.model.load_in_4bit or recipe.model.load_in_8bit:
        raise Refusal(
            f"{recipe.path}: a quantized base is quantized anew in every round, from weights that "
            "were merged: take a recipe that trains the model in its own precision"
        )
    return recipe


def check_reference(recipe: Recipe, reference: str) -> None:
    """
    Raises:
        Refusal: the recipe trains an adapter, whose reference is the model below it.
    """
    if recipe.model.use_peft and reference == "start":
        raise Refusal(
            f"{recipe.path} trains a LoRA adapter, and its reference is the model that the adapter "
            "is put on: --reference previous, or full fine-tuning"
        )


def slices(count: int, rounds: int, each: int) -> list[tuple[int, int]]:
    """How many prompts each round passes over, and how many it takes: fresh ones until there are
    none left, and then from the first on."""
    starts = [*range(0, count, each)]
    begins = (starts[at % len(starts)] for at in range(rounds))
    return [(start, min(each, count - start)) for start in begins]


def own_flags(recipe: Recipe, pairs: Path, folder: Path) -> Iterator[str]:
    """What has a run train on these pairs, whatever the recipe's own data are like."""
    yield from (f"--dataset_name={pairs}", f"--output_dir={folder}")
    yield from ("--dataset_train_split=train", "--dataset_test_split=test")
    neutral = {"preference_layout": "explicit", "column_mapping": "", "dataset_config": "default"}
    yield from (f"--{key}={value}" for key, value in neutral.items() if key in recipe.stated)
    if recipe.model.use_peft:
        yield "--save_merged=true"  # what the next round begins with


def rounds(
    recipe: Recipe,
    arguments: list[str],
    into: Path,
    args: argparse.Namespace,
    test_size: float,
    count: int,
) -> list[Round]:
    """The rounds, each parsed and checked before any starts, and the offline run if it is wanted.

    Args:
        arguments: flags of every run.
        args: rounds, prompts_per_round, reference and offline, as rounds.py has them.
        test_size: 0 holds no pairs out.
        count: of the prompts.

    Raises:
        Refusal: one of them is no run that can start.
    """
    start: Any = recipe.model.model_name_or_path
    revision = recipe.stated.get("model_revision")
    each = args.prompts_per_round or max(count // args.rounds, 1)
    parts, found = slices(count, args.rounds, each), []

    def add(name: str, model: str, trained: str, part: tuple[int, int], *more: str) -> None:
        folder = into / name
        pairs = into / (JOINED if name == OFFLINE else f"{name}-pairs")
        own = [f"--model_name_or_path={trained}", *own_flags(recipe, pairs, folder), *more]
        own += [] if test_size else ["--eval_strategy=no"]
        flags = overridden(arguments, own)
        parsed = parse(["--config", str(recipe.path), *flags], recipe.launch)
        check_values(parsed)
        found.append(Round(name, into, model, *part, Run({}, {}, parsed, folder), flags))

    for number, part in enumerate(parts, start=1):
        before = into / f"round-{number - 1}"
        trained = str(before / MERGED if recipe.model.use_peft else before)
        if number == 1:
            add("round-1", start, start, part)
            continue
        more = ["--model_revision=main"] if revision else []
        if args.reference == "start":
            more += [f"--ref_model_name_or_path={start}"]
            more += [f"--ref_model_revision={revision}"] if revision else []
        add(f"round-{number}", str(before), trained, part, *more)
    rest = min(each * args.rounds, count) - each
    if args.offline and rest > 0:
        steps = recipe.training.max_steps  # of all rounds together, on as many pairs
        more = [f"--max_steps={args.rounds * steps}"] if steps > 0 else []
        add(OFFLINE, start, start, (each, rest), *more)
    return found
