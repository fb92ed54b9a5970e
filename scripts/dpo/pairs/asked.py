"""The prompts that are answered: read one at a time, checked, and written into the folder, so that
memory does not grow with their number."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tqdm.auto import tqdm

from dpo.core import files
from dpo.core.environment import Launch
from dpo.core.refusal import Refusal
from dpo.data import dataset, fits, lint, schema
from dpo.data.formats.turns import Fault
from dpo.data.sources.load import load_rows
from dpo.evaluation import prompts
from dpo.models.chat_template import load_tokenizer
from dpo.models.sampling import Prompt, parts, prompt_token_ids, told, turns
from dpo.pairs.answers import Asked
from dpo.recipe.parse import FOLDER, parse

FILE = ".prompts.jsonl"  # of the folder
REASONS = {
    "repeated": "the same prompt is there already",
    "too_long": "with an answer it is longer than the model reads: a shorter one, or fewer "
    "max_new_tokens",
}
TEST = ("test", "val", "eval", "dev", "held")
Row = dict[str, Any]


@dataclass
class Block:
    """Prompts that are answered together: of `part`, the number of their split, from `start` on."""

    part: int
    start: int
    entries: list[Row]

    def prompts(self) -> list[Prompt]:
        return [prompt_of(entry) for entry in self.entries]


@dataclass
class Found:
    """What was read: how many rows, how many of them are asked, and why others are not."""

    digest: str
    rows: int = 0
    asked: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def prompt_of(entry: Row) -> Prompt:
    """A prompt as it was written, with its options and its row."""
    return {name: entry[name] for name in ("prompt", "options", "row") if name in entry}


def of_recipe(name: str) -> dict[str, Iterator[tuple[int, Row, Prompt | Fault]]]:
    """The prompts of a recipe's pairs, checked as a run checks them; held-out ones are `test`."""
    recipe = parse(["--config", str(FOLDER / f"{name}.yaml")], Launch(on_cpu=True))
    linted = dataset.prepare(recipe, load_rows(recipe), load_tokenizer(recipe))

    def each(found: Any) -> Iterator[tuple[int, Row, Prompt | Fault]]:
        pairs = found.pairs
        known = [column for column in pairs.column_names if column not in schema.OURS]
        for row in pairs:
            options = json.loads(row.get(schema.OPTIONS) or "{}")
            fields = {"prompt": row["prompt"], **{name: row[name] for name in known}}
            yield row["row"], fields, {"prompt": row["prompt"], "options": options}
        for bad in found.bad:
            yield bad.row, {}, Fault(bad.reason)

    names = {"train": "train", "held-out": "test"}
    return {names[split]: each(found) for split, found in linted.items()}


def of_source(name: str, split: str) -> dict[str, Iterator[tuple[int, Row, Prompt | Fault]]]:
    """The rows of what PROMPTS= names, by split: `train` and `test` where it has both, or one that
    is called "".

    Raises:
        Refusal: there is nothing of that name, or it has several splits of which none is meant.
    """
    if not Path(name).exists() and (FOLDER / f"{name}.yaml").is_file():
        return of_recipe(name)
    found = prompts.splits_of(name)
    if split:
        if split not in found:
            raise Refusal(f"PROMPTS: {name} has no split {split!r}, only {', '.join(found)}")
        found = {split: found[split]}
    if len(found) == 1:
        return {"": prompts.each(next(iter(found.values())))}
    train = [each for each in found if each.startswith("train")]
    test = [each for each in found if each.startswith(TEST)]
    if len(found) != 2 or len(train) != 1 or len(test) != 1:
        raise Refusal(
            f"PROMPTS: {name} has the splits {', '.join(found)}: name one with --prompts_split"
        )
    return {"train": prompts.each(found[train[0]]), "test": prompts.each(found[test[0]])}


class Models:
    """The models that are asked, for what may not fit them: templates, and positions."""

    def __init__(self, asked: list[Asked], max_new_tokens: int):
        self.tokenizers = [each.tokenizer for each in asked]
        longest = [fits.positions(each.config) for each in asked]
        self.room = min((n for n in longest if n), default=np.inf) - max_new_tokens

    def fault(self, prompt: Prompt) -> str | None:
        """Why one of them cannot be asked it."""
        try:
            lengths = [len(prompt_token_ids(each, prompt)) for each in self.tokenizers]
        except (TemplateError, TypeError, ValueError, KeyError):
            return "template_refuses"
        return "too_long" if max(lengths) > self.room else None


def read(
    name: str,
    folder: Path,
    asked: list[Asked],
    *,
    split: str = "",
    skip: int = 0,
    first: int | None = None,
    max_new_tokens: int,
    options: dict[str, Any] | None = None,
    keep_rows: bool = False,
    test_size: float = 0,
    split_seed: int = 0,
) -> Found:
    """Write the prompts that are asked into `folder`, each once.

    Args:
        skip, first: of those to train on, how many are passed over, and how many taken then.
        options: given to the chat template beside each; those of a row win over them.
        keep_rows: whether a rule will see the row that a prompt stands in.
        test_size: 0 leaves a split of held-out prompts out.
        split_seed: draws the number by which others are held out.

    Raises:
        Refusal: there are none, or none can be asked.
    """
    models, found, seen = Models(asked, max_new_tokens), Found(""), set()
    passed, written = 0, hashlib.sha256()
    splits = of_source(name, split)
    with files.written_whole(folder / FILE) as file:
        for part, (which, rows) in enumerate(splits.items()):
            if which == "test" and not test_size:
                continue
            taken = 0
            for number, row, prompt in tqdm(rows, desc=f"Prompts {which}".strip(), unit="prompt"):
                if which != "test" and taken == first:
                    break
                found.rows += 1
                if isinstance(prompt, Fault):
                    found.left_out[prompt.reason] += 1
                    continue
                own = parts(prompt)[1]
                said = turns(parts(prompt)[0])
                entry: Row = {"at": number, "part": part, "split": which, "prompt": said}
                if given := {**(options or {}), **own}:
                    entry["options"] = given
                if keep_rows:
                    entry["row"] = json.loads(json.dumps(row, default=str))
                own_digest = digest(prompt_of(entry))
                fault = "repeated" if own_digest in seen else models.fault(prompt_of(entry))
                if fault:
                    found.left_out[fault] += 1
                    continue
                seen.add(own_digest)
                if which != "test":
                    passed += 1
                    if passed <= skip:
                        found.rows -= 1
                        continue
                    taken += 1
                # By what is said alone: with other tools it would be in both splits.
                entry["draw"] = lint.digest(f"{split_seed} {digest(said)}")
                found.asked += 1
                line = f"{json.dumps(entry, ensure_ascii=False)}\n"
                written.update(line.encode("utf-8", "surrogatepass"))
                file.write(line)
    if passed and not found.asked:
        raise Refusal(f"--skip {skip} passes over all that {name} has: {passed} prompts")
    if test_size >= 1 and not {*splits} & {"test"} and test_size >= found.asked:
        raise Refusal(
            f"--test_size {test_size:g} leaves none of {found.asked} prompts to train on: give "
            "fewer, or a share, such as 0.1"
        )
    if not found.asked:
        why = ", ".join(f"{reasons(reason)} ({n})" for reason, n in found.left_out.most_common())
        raise Refusal(f"PROMPTS: {name} holds no prompts{': ' if why else ''}{why}")
    found.digest = written.hexdigest()[:24]
    return found


def digest(prompt: Prompt) -> int:
    """By what prompts are told apart: who says what, small letters and blanks aside, and options of
    the chat template."""
    messages, options = turns(parts(prompt)[0]), parts(prompt)[1]
    said = [[each["role"], " ".join(told(each).split()).casefold()] for each in messages]
    return lint.digest([said, options])


def reasons(reason: str) -> str:
    return REASONS.get(reason) or lint.REASONS.get(reason, reason)


def blocks(folder: Path, size: int) -> Iterator[Block]:
    """The prompts in the folder, `size` at a time and never of two splits."""
    with (folder / FILE).open(encoding="utf-8") as file:
        lines = (json.loads(line) for line in file)
        block: Block | None = None
        start = 0
        for entry in lines:
            if block and (len(block.entries) == size or block.part != entry["part"]):
                yield block
                start = 0 if block.part != entry["part"] else start + len(block.entries)
                block = None
            block = block or Block(entry["part"], start, [])
            block.entries.append(entry)
        if block:
            yield block


def mine(found: Iterator[Block], rank: int, processes: int) -> Iterator[Block]:
    """Every so manieth block, from this process's on."""
    return islice(found, rank, None, processes)
