"""Names as W&B takes them: in 128 characters, and still told apart."""

import hashlib
import os
import re
from pathlib import Path

from dpo.recipe.arguments import decides
from dpo.recipe.parse import Recipe, read_yaml
from dpo.runs.sweeps import plain

PROJECT = "dpo-recipes"
LONGEST = 128  # characters of the name of a run, a group, a project, an artifact
LONGEST_TAG = 64


def fitted(text: str, longest: int = LONGEST) -> str:
    """The text, in its place one that is cut between words and ends with a mark of the whole, where
    it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    mark = hashlib.sha256(text.encode()).hexdigest()[:6]
    cut = text[: longest - len(mark) - 1]
    return f"{cut.rpartition(' ')[0] or cut} {mark}"


def of_run(recipe: Recipe) -> str:
    """The recipe, and what was given that differs from it: `qwen-ultrafeedback beta=0.05`. What a
    sweep varies comes first; of a path, its last part."""
    stated = recipe.defaults | read_yaml(recipe.path)
    # A sweep names its folders so, with what is the recipe's own value too.
    said = [part for part in Path(recipe.training.output_dir).name.split(",") if "=" in part]
    varied = {part.partition("=")[0] for part in said}
    for key, value in recipe.stated.items():
        if decides(key) and value != stated.get(key) and key not in varied:
            said.append(f"{key}={shown(value)}")
    return fitted(" ".join([recipe.name, *said]))


def shown(value) -> str:
    text = plain(value)
    return Path(text).name if isinstance(value, str) and text.strip("/") else text


def project(name: str | None = None) -> str:
    """A W&B project: the user's, `name`, or ours; without the characters that none may hold."""
    given = os.environ.get("WANDB_PROJECT") or name or PROJECT
    return fitted(re.sub(r"[/\\#?%:]", "-", given))


def tags(words: list[str]) -> list[str]:
    """Tags of paths and words: of each its last part, each once, none empty."""
    named = [Path(word).name[:LONGEST_TAG] for word in words]
    return [*dict.fromkeys(filter(None, named))]


def artifact(name: str) -> str:
    """The name of an artifact: of letters, digits, dashes, underscores and dots."""
    return fitted(re.sub(r"[^A-Za-z0-9_.-]", "-", name)).replace(" ", "-")
