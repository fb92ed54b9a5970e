"""How long the pairs of a recipe are, and the micro-batch of a run that has the most tokens."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars, enable_progress_bars

from dpo.core.refusal import Refusal
from dpo.data import schema
from dpo.data.dataset import prepare
from dpo.data.quarantine import Linted
from dpo.data.sources.files import COMPRESSED, FILES
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.plan.arithmetic import rows
from dpo.plan.arithmetic.counted import Pairs
from dpo.recipe.hub_names import looks_local
from dpo.recipe.parse import Recipe

ULTRAFEEDBACK = Path("recipes/data/ultrafeedback-lengths.csv")
SMALL = 20e6  # bytes of files that are read whole in seconds
DRAWS = 20_000  # micro-batches that are tried for the longest


@dataclass(frozen=True)
class Lengths:
    """Tokens of the pairs of a recipe, cut at max_length as TRL cuts them.

    Attributes:
        pairs: prompt, chosen and rejected, shape (rows, 3).
        rows: that are trained on; more than there are in `pairs` where those are not the recipe's.
        held_out: rows that are evaluated.
        source: whose they are, in words.
        answers: that are drawn when training has ended, under the policy and its reference.
        known: whether so many rows are the recipe's, and not only what figures are told for.
    """

    pairs: np.ndarray
    rows: int
    held_out: int
    source: str
    answers: int = 0
    known: bool = True


def of(recipe: Recipe) -> Lengths:
    """Of the recipe's own data where they are on this machine and small, else UltraFeedback's."""
    why = not_read(recipe)
    if why is None:
        try:
            return own(recipe)
        except Refusal as refusal:
            why = f"its data are refused ({refusal})"
    known = np.loadtxt(ULTRAFEEDBACK, int, delimiter=",", skiprows=1)
    length = recipe.training.max_length or known.sum()
    kept = cut(known[known[:, 0] < length], recipe)
    found = rows.stated(recipe)
    source = f"UltraFeedback's lengths, since {why}"
    if recipe.training.max_length and length > (kept[:, 0] + kept[:, 1:].max(axis=1)).max():
        prompt = int(np.median(kept[:, 0]))
        kept = np.vstack([kept, (prompt, length - prompt, length - prompt)])
        source += f", and the longest pair is taken to be of max_length, {length:,}"
    if found.train is None:
        source += "; how many pairs there are is not known, and it is told for so many"
    train = rows.TOLD if found.train is None else found.train
    return Lengths(kept, train, found.held_out, source, known=found.train is not None)


def not_read(recipe: Recipe) -> str | None:
    """Why the recipe's own data are not looked at; None if they are."""
    files: list[Path] = []
    names = [part.path for part in recipe.mixture.datasets] or [recipe.script.dataset_name or ""]
    if any(part.data_files for part in recipe.mixture.datasets):
        return "its data are named file by file"
    for name in names:
        path = Path(name)
        if not path.exists():
            made = name.startswith("outputs/")  # by make pairs, before it trains
            if looks_local(name, (*FILES, *COMPRESSED)) and not made:
                raise Refusal(
                    f"no data at {name}: put them there, or name others with --dataset_name"
                )
            return "its data are not on this machine"
        files += [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    if sum(file.stat().st_size for file in files) > SMALL:
        return "its data would take long to read"
    return None


def own(recipe: Recipe) -> Lengths:
    """Of the recipe's data, read as training reads them.

    Raises:
        Refusal: they, or the tokenizer, are not what they should be.
    """
    disable_progress_bars()
    try:
        with redirect_stdout(sys.stderr):  # a plan may be JSON for a program
            data = prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
    finally:
        enable_progress_bars()
    return of_data(recipe, data)


def of_data(recipe: Recipe, data: dict[str, Linted]) -> Lengths:
    """Of data that were read, by split."""
    pairs = data["train"].pairs
    held_out, answers, run = 0, 0, recipe.run
    if "held-out" in data:
        held_out = len(data["held-out"].pairs)
        known = "vader_chosen" in (
            data["held-out"].pairs.column_names or ()
        )  # measure.after_training
        answers = known * min(held_out, run.reward_prompts) * run.reward_samples
    tokens = np.stack(schema.token_counts(pairs), axis=1)
    return Lengths(cut(tokens, recipe), len(pairs), held_out, "its own data", answers)


def cut(tokens: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Tokens of prompt, chosen and rejected, shape (rows, 3), as max_length leaves them."""
    args = recipe.training
    prompt, chosen, rejected = schema.kept_lengths(*tokens.T, args.max_length, args.truncation_mode)
    return np.stack([prompt, chosen - prompt, rejected - prompt], axis=1)


def longest(lengths: np.ndarray, micro: int, count: int, shared: bool) -> Pairs:
    """The micro-batch with the most tokens among as many as a run has, drawn as a run draws them.

    Args:
        micro: pairs of a micro-batch.
        count: micro-batches of the run, of all processes.
        shared: prompts are computed once and nothing is padded.
    """
    rng, found = np.random.default_rng(0), []
    need = min(count, DRAWS) * micro
    while sum(map(len, found)) < need:
        found.append(rng.permutation(len(lengths)))
    return longest_of(lengths[np.concatenate(found)[:need].reshape(-1, micro)], shared)


def longest_of(batches: np.ndarray, shared: bool) -> Pairs:
    """The micro-batch with the most tokens.

    Args:
        batches: tokens of prompt, chosen and rejected, shape (micro-batches, pairs, 3).
        shared: prompts are computed once and nothing is padded.
    """
    if shared:
        tokens = batches.sum(axis=(1, 2))
    else:
        tokens = (batches[..., 0] + batches[..., 1:].max(axis=-1)).max(axis=-1)
    return tuple(tuple(map(int, pair)) for pair in batches[tokens.argmax()])  # pyright: ignore[reportReturnType]
