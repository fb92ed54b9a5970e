"""What two models are asked: the held-out prompts of a recipe, or those of a file."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset

from dpo import preferences
from dpo.contestants import Contestant
from dpo.recipe import Recipe
from dpo.sampling import Messages
from dpo.sources import load, load_rows
from dpo.tokenization import load_tokenizer


def held_out_pairs(recipe: Recipe) -> Dataset | None:
    """The held-out pairs of a recipe, checked and tokenised as a run does it; None without any."""
    if recipe.training.eval_strategy == "no":
        return None
    train, held_out = load_rows(recipe)
    # Where they are a split of their own, what is trained on is nothing to them.
    linted = preferences.prepare(recipe, (held_out or train, held_out), load_tokenizer(recipe))
    return linted["held-out"].pairs if "held-out" in linted else None


def each_once(prompts: list[Messages | str], limit: int) -> list[Messages | str]:
    """The first `limit` of them; one that several pairs share counts once."""
    return [*{json.dumps(prompt): prompt for prompt in prompts}.values()][:limit]


def check(prompts: list[Messages | str], who: Contestant) -> None:
    """See that a model can be asked all of them.

    Raises:
        SystemExit: some have several turns, and it has no chat template.
    """
    turns = max(1 if isinstance(prompt, str) else len(prompt) for prompt in prompts)
    if turns > 1 and not who.tokenizer().chat_template:
        raise SystemExit(
            f"{who.name} has no chat template, and prompts have up to {turns} turns: give others "
            "with PROMPTS=, or a chat model"
        )


def read(file: str) -> list[Messages | str]:
    """The prompts of a file: a line each of .txt, or the column `prompt`, text or messages.

    Text is what a user says.

    Raises:
        SystemExit: the file is missing, is no such file, or holds no prompts.
    """
    path = Path(file)
    if not path.is_file():
        raise SystemExit(f"PROMPTS: no file {file}")
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if line.strip()]
    else:
        splits, _ = load(file, "PROMPTS")
        table = splits["train"]
        if "prompt" not in table.column_names:
            raise SystemExit(
                f"PROMPTS: {file} has no column `prompt`, only {', '.join(table.column_names)}"
            )
        rows = list(table["prompt"])
    if not rows:
        raise SystemExit(f"PROMPTS: {file} holds no prompts")
    return [[{"role": "user", "content": row}] if isinstance(row, str) else row for row in rows]
