"""What rounds begin with: how many prompts there are, the held-out ones that every policy is
measured on, and the folder, claimed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.core import files
from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.data import schema
from dpo.data.formats.turns import Fault
from dpo.evaluation import prompts
from dpo.models.sampling import Prompt
from dpo.pairs import asked
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import LOCK, differences

ABOUT, HELD_OUT = "rounds.json", "held_out.jsonl"
FORMAT = 1


def train_prompts(name: str, split: str) -> Iterator[int]:
    """The digest of each prompt that may be trained on."""
    for which, rows in asked.of_source(name, split).items():
        if which != "test":
            yield from (
                asked.digest(prompt) for _, _, prompt in rows if not isinstance(prompt, Fault)
            )


def with_rows(found: Iterator[tuple[int, dict[str, Any], Prompt | Fault]]) -> Iterator[Prompt]:
    """Prompts with the rows that a rule may ask for; rows that hold none are left out."""
    for _, row, prompt in found:
        if not isinstance(prompt, Fault):
            yield prompts.with_row(prompt, row)


def held_out_of(recipe: Recipe, name: str) -> Iterator[Prompt]:
    """The prompts that policies are measured on: of a file, a folder, a data set or another recipe,
    its held-out ones where it has some; without a name those of the recipe's own pairs.

    Raises:
        Refusal: there are none.
    """
    if name:
        found = asked.of_source(name, "")
        return with_rows(found.get("test") or found[""])
    pairs = prompts.held_out_pairs(recipe)
    if pairs is None:
        raise Refusal(
            f"{recipe.path} holds no pairs out to measure policies on: name prompts with "
            "--eval_prompts"
        )
    known = ["prompt", *(column for column in pairs.column_names if column not in schema.OURS)]
    rows = zip(prompts.of_pairs(pairs), pairs.select_columns(known), strict=True)
    return with_rows((0, row, prompt) for prompt, row in rows)


def read(into: Path) -> dict[str, Any]:
    return json.loads((into / ABOUT).read_text(encoding="utf-8"))


def begin(recipe: Recipe, into: Path, how: dict[str, Any], carried: dict[str, Any]) -> int:
    """Make a folder these rounds' own, with the held-out prompts, of which none is trained on.

    Args:
        how: all that decides the rounds, and what they come to.
        carried: how the judge is asked, which may change as they go on.

    Returns how many prompts there are to train on.

    Raises:
        Refusal: the folder holds something else, or there are no prompts.
    """
    ours = {LOCK, HELD_OUT}
    there = sorted(p.name for p in into.iterdir() if p.name not in ours and p.name[0] != ".")
    if (into / ABOUT).is_file():
        found = read(into)
        if changed := differences(found["how"], how):
            raise Refusal(
                f"{into} holds rounds that were made otherwise: {changed}: give the same again, "
                "or another --output"
            )
        files.write_json(into / ABOUT, found | {"carried": carried})
        return found["prompts"]
    if there:
        what = ", ".join(there[:3])
        raise Refusal(f"{into} holds files that are no rounds ({what}): give another --output")
    trained = {*train_prompts(how["prompts"], how["prompts_split"])}
    if not trained:
        raise Refusal(f"PROMPTS: {how['prompts']} holds no prompts")
    given: dict[int, Prompt] = {}
    for prompt in held_out_of(recipe, how["eval_prompts"]):
        given.setdefault(asked.digest(prompt), prompt)
    held_out = [prompt for key, prompt in given.items() if key not in trained]
    if not held_out:
        why = "all of them are among PROMPTS" if given else "there are none"
        raise Refusal(f"held-out prompts: {why}: name others with --eval_prompts")
    if left_out := len(given) - len(held_out):
        print(f"{left_out} held-out prompts are among PROMPTS, and are not measured on")
    held_out = held_out[: how["eval_limit"]]
    files.write_lines(into / HELD_OUT, held_out)
    found = {"format": FORMAT, "how": how, "carried": carried}
    files.write_json(into / ABOUT, found | {"prompts": len(trained), "rounds": {}})
    print(visible(f"{len(trained)} prompts; {len(held_out)} others to measure policies on"))
    return len(trained)
