"""Run a recipe, and see whether it comes to what its header says: `make reproduce` runs this.

    make reproduce                                   # the embedded default, whole
    make reproduce RECIPE=my-recipe CONFIG=zero2 GPUS=2
    make reproduce ARGS="--max_steps=2 --reward_prompts=8"   # shorter, where its header knows that

Expected are the numbers of the header's line `# Reached:`, or with flags those of `# With`. A
number holds where it lies within the 95% interval that stands with it. A finished run with the
same settings in the recipe's own folder is looked at and not trained again; else, or with CONFIG=
or GPUS=, one is trained in outputs/reproduce/, where the same command goes on. ARGS="--restart"
trains anew.

Ends with 0 if every number holds, 3 if one does not, 1 if nothing could be compared, and 75 if
it was asked to stop. (make itself says "Error 3", and ends with 2.)
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of, visible
from dpo.plan.auto import AUTO
from dpo.recipe import flags, header
from dpo.recipe.known import choices
from dpo.recipe.parse import FOLDER, Recipe, look, parse, share_batch
from dpo.reports import results
from dpo.runs import output_folder, sweeps
from dpo.runs.launch import check_there, choose

INTO = output_folder.RUNS / "reproduce"
WRITTEN = "reproduced.json"
DOES_NOT_HOLD = 3
SETS = ("output_dir", "resume_from_checkpoint")
# They decide nothing that is learned, but what is measured of it.
MEASURES = ("reward_prompts", "reward_samples", "eval_strategy")
# What published numbers are measured by here.
SUITES = {
    **{"MT-Bench": "make evaluate SUITE=mt_bench", "GSM8K": "make evaluate SUITE=gsm8k"},
    **{"IFEval": "make evaluate SUITE=ifeval", "TruthfulQA": "make evaluate SUITE=truthfulqa_mc2"},
    **{"held-out loss": "make train", "held-out accuracy": "make train"},
}


@dataclass
class Asked:
    """What is to be reproduced, and how it is run."""

    name: str
    config: str
    gpus: str
    arguments: list[str]
    expected: list[header.Expected]

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.yaml"


def asked() -> Asked:
    """What is asked for, with all that its recipe expects.

    Raises:
        Refusal: there is no such recipe, or nothing to compare it with.
    """
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--recipe", required=True, help="a file in recipes/")
    where = "a file in accelerate_configs/, or auto"
    add("--accelerate_config", dest="config", default="", help=where)
    add("--gpus", default="", help="processes (default: all GPUs)")
    add("arguments", nargs="*", metavar="-- ARGS", help="flags for train.py")
    args = parser.parse_args()
    args.config = "" if args.config == AUTO else args.config
    check_there(args.recipe, args.config)
    flags.refuse(args.arguments, "make reproduce", SETS)
    found = Asked(args.recipe, args.config, args.gpus, args.arguments, [])
    look(["--config", str(found.path), *args.arguments])
    found.expected += header.expected(found.path)
    for each in found.expected:
        with said_of(found.path, each):
            flags.refuse([*each.flags], "make reproduce", SETS)
            look(["--config", str(found.path), *each.flags])
    if not found.expected:
        raise Refusal(nothing_known(found))
    for number in (number for each in found.expected for number in each.numbers):
        if number.name not in results.PLACES:
            near = choices(number.name, [*results.PLACES]).replace("_", " ")
            raise Refusal(f"{found.path}: its header expects {number.words!r}: {near}")
    return found


@contextmanager
def said_of(path: Path, expected: header.Expected) -> Iterator[None]:
    """Say of what is wrong within that it stands in a recipe's header."""
    try:
        yield
    except Refusal as wrong:
        why = str(wrong).removeprefix("ARGS: ")
        raise Refusal(f"{path}: `# With {shlex.join(expected.flags)}:` {why}") from None


def nothing_known(of: Asked) -> str:
    """The line for a recipe of which nothing was measured: what is published, and what would
    measure that."""
    published = header.fields(of.path)["Published"].removesuffix(".")
    by = ", ".join(f"{how} measures {name}" for name, how in SUITES.items() if name in published)
    said = f"{of.name}: nothing to compare with, for its header has no number that a run reached. "
    said += f"Published: {published}" + f"; {by}, of which no tolerance is known" * bool(by)
    return f"{said}. make train RECIPE={of.name} trains it"


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(asked)

from dpo.core import files, machine
from dpo.core.environment import launched
from dpo.core.signals import EXIT_CODE
from dpo.evaluation import prompts
from dpo.reports import reproduced
from dpo.runs import keeping


def settings(recipe: Recipe, stated: dict[str, Any]) -> dict[str, Any]:
    """Of what a run states, what decides its numbers."""
    return recipe.learned(stated) | {k: stated.get(k, recipe.defaults[k]) for k in MEASURES}


def own(recipe: Recipe) -> dict[str, Any]:
    """The same of a recipe."""
    return settings(recipe, {"recipe": recipe.name, **output_folder.settings(recipe)})


def expectation(of: Asked) -> tuple[header.Expected, Recipe, list[Path]]:
    """The numbers that are known of the recipe with these flags; the recipe with them, which is to
    run in a folder of its own; and the folders where a finished run of it may lie.

    Raises:
        Refusal: none are.
    """
    _, processes, on_cpu = choose(of.config, of.gpus)
    launch = replace(launched(), on_cpu=on_cpu)  # read as the run will read it

    def read(*given: str) -> Recipe:
        return parse(["--config", str(of.path), *given], launch)

    recipe, whole = read(*of.arguments), read()
    share_batch(recipe.global_batch, 1, processes)
    for each in of.expected:
        with said_of(of.path, each):
            known = own(read(*each.flags))
        if known == own(recipe):
            short = re.sub(r"[^\w.=+,-]+", "_", ",".join(each.flags).replace("--", ""))
            gpus = f"{of.gpus}-processes" if of.gpus else ""
            folder = INTO / "-".join(filter(None, (of.name, of.config, gpus, short)))
            mine = [f"--output_dir={folder}", *sweeps.not_sent(recipe)]
            apart = read(*flags.overridden(of.arguments, mine))
            usual = [] if of.config or of.gpus else [Path(whole.training.output_dir)]
            return each, apart, [*usual, folder]
    changed = output_folder.differences(own(whole), own(recipe))
    known = [f'ARGS="{shlex.join(each.flags)}"' for each in of.expected if each.flags]
    raise Refusal(
        f"ARGS: {changed or 'nothing'}: of that {of.path} knows no numbers. Leave it out"
        + f", or give {' or '.join(known)}" * bool(known)
    )


def there(recipe: Recipe, folders: list[Path]) -> Path | None:
    """The folder with a finished run of the recipe, if one of these is.

    Raises:
        Refusal: the last of them, where it would be trained, holds one of other settings or data.
    """
    again = 'ARGS="--restart" moves it aside and trains anew'
    for folder in folders if not recipe.run.restart else ():
        if not (folder / output_folder.SETTINGS).is_file():
            continue
        stated, last = output_folder.settings_of(folder), folder == folders[-1]
        begun = Path(stated.get("resume_from_checkpoint") or folder / "none").parent
        if begun.resolve() != folder.resolve():
            continue  # it went on from another run, whose schedule was another
        if changed := output_folder.differences(settings(recipe, stated), own(recipe)):
            if last:
                raise Refusal(f"{folder} holds a run with other settings: {changed}. {again}")
        elif output_folder.finished(folder):
            if not prompts.changed(prompts.held_out_pairs(recipe), folder):
                return folder
            if last:
                raise Refusal(f"{folder}: what it has reached is of other data. {again}")
    return None


def train(of: Asked, recipe: Recipe) -> None:
    """Train the recipe in its own folder.

    Raises:
        SystemExit: it was asked to stop; it goes on from there.
        Refusal: it failed.
    """
    folder = Path(recipe.training.output_dir)
    how = ["--accelerate_config", of.config] if of.config else []
    how += ["--gpus", of.gpus] if of.gpus else []
    run = sweeps.Run({}, {}, recipe, folder)
    if sweeps.carry_out([run], how, [None], of.arguments) or run.state == sweeps.LEFT:
        print("Asked to stop: the same command goes on from here")
        sys.exit(EXIT_CODE)
    if run.state == sweeps.FAILED:
        raise Refusal(f"{folder}: {run.last_line()} ({run.log})")


@guarded
def main() -> None:
    of = asked()
    expected, recipe, folders = expectation(of)
    if not (found := there(recipe, folders)):
        train(of, recipe)
    folder = found or folders[-1]
    report, here = results.read(folder / output_folder.REPORT), machine.commit()
    rows = reproduced.beside(expected.numbers, report)
    reproduced.show(" ".join((of.name, *expected.flags)), rows, report)
    print(f"Run: {folder}" + ", found finished: not trained again" * bool(found))
    if found:
        print(keeping.keep(folder, recipe.run.keep))
    print(f"Commit: {report['commit']}" + f", and this is {here}" * (report["commit"] != here))
    if all(row["verdict"] == reproduced.MISSING for row in rows):
        raise Refusal(
            f"{of.name}: nothing could be compared: none of its numbers was measured here"
        )
    holds, said = reproduced.holds(rows), reproduced.verdict(of.name, expected.flags, rows)
    about = {key: report[key] for key in ("versions", "machine", "commit", "finished")}
    about |= {"recipe": of.name, "flags": expected.flags, "holds": holds, "verdict": said}
    print(f"\n{visible(said)}")
    try:
        files.write_json(folder / WRITTEN, {**about, "numbers": rows, "run": str(folder)})
        print(f"Written: {folder / WRITTEN}")
    except OSError as error:  # the verdict holds all the same
        print(f"{folder / WRITTEN} cannot be written: {error.strerror}")
    print(f"Next: open {folder}/report.html" + "; docs/recipes.md says what varies" * (not holds))
    sys.exit(0 if holds else DOES_NOT_HOLD)


if __name__ == "__main__":
    main()
