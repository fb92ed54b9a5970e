"""The preference data of a recipe: rows as they were found → linted, tokenised pairs.

Each source is read alone (reading.py); here its pairs are checked against all others, what is held
out is kept apart, and what is wrong is set aside and counted, never dropped without a word.
"""

import json
from collections import Counter
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from dpo.core.refusal import Refusal
from dpo.data import lint, quarantine, schema
from dpo.data.formats.telling import SEEN
from dpo.data.quarantine import Bad, Linted, check_length, said_of_lengths
from dpo.data.reading import BATCH, lint_rows
from dpo.data.schema import ABOUT, IDS, IMAGES, RENDERED, column
from dpo.data.sources.load import Rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import QUARANTINE


def joined(parts: list[tuple[Rows, Linted]], held_out: Collection[int] = ()) -> Linted:
    """The sources of a split as one, what they say twice or against each other set aside.

    Args:
        held_out: digests of the prompts, as they are rendered, that must not be among them.

    Raises:
        Refusal: some sources are messages and some are plain text.
    """
    if len({str(part.pairs.features["prompt"]) for _, part in parts}) > 1:
        kinds = "; ".join(f"{source.name}: {part.layout}" for source, part in parts)
        raise Refusal(f"a mixture must be all messages or all plain text ({kinds})")
    features = [part.pairs.features for _, part in parts]
    alike = [n for n, kind in features[0].items() if all(f.get(n) == kind for f in features)]
    table = concatenate_datasets([part.pairs.select_columns(alike) for _, part in parts])
    lengths = [len(part.pairs) for _, part in parts]
    sources = np.repeat(np.array([source for source, _ in parts], dtype=object), lengths)
    rows, *said = (column(table, name) for name in ABOUT)
    reasons, details = (texts.astype(object) for texts in said)
    good = np.flatnonzero(reasons == "")
    digests = digests_of(table.select(good))
    for at, (reason, other) in lint.repeated(digests).items():
        at, other = int(good[at]), int(good[other])
        reasons[at], details[at] = reason, f"row {rows[other]} of {sources[other].name}"
    used = good[np.isin(digests[:, 0], [*held_out])]
    reasons[used[reasons[used] == ""]] = "held_out_prompt"
    bad = [bad for _, part in parts for bad in part.bad]
    at_fault = np.flatnonzero(reasons != "")
    needed = schema.needed_length(table.select(at_fault)) if len(at_fault) else []
    for at, tokens in zip(at_fault, needed, strict=True):
        tokens = int(tokens) * (reasons[at] in lint.LENGTHS)
        bad.append(Bad(sources[at], int(rows[at]), reasons[at], details[at], tokens))
    kept = table.select(np.flatnonzero(reasons == ""))
    layout = "; ".join(dict.fromkeys(part.layout for _, part in parts))
    of: Counter[str] = Counter()
    for source, part in parts:
        of[source.name] += part.rows
    merged = sum(part.merged for _, part in parts)
    return Linted(kept, layout, of.total(), bad, merged, dict(of), notes=notes_of(parts))


def notes_of(parts: list[tuple[Rows, Linted]]) -> list[str]:
    """The notes of sources, each once; of several sources with the name of the one it is about."""
    named = [
        note if len(parts) == 1 else f"{source.name}: {note}"
        for source, part in parts
        for note in part.notes
    ]
    return [*dict.fromkeys(named)]


def beginning(parts: list[tuple[Rows, Linted]], max_length: int | None) -> Linted:
    """The first rows of each stream, to tell by what max_length does to all."""
    sound, bad, rows = [], [], 0
    for source, part in parts:
        for row in islice(part.pairs.select_columns([*IDS, *ABOUT]), BATCH):
            rows += 1
            if not row["reason"]:
                sound.append(row)
                continue
            lengths = [len(row[name] or ()) for name in IDS]
            needed = lengths[0] + max(lengths[1:])
            bad.append(Bad(source, *(row[name] for name in ABOUT), tokens=needed))
    pairs = Dataset.from_list(sound)
    return Linted(pairs, "", rows, bad, max_length=max_length)


def streamed(
    parts: list[tuple[Rows, Linted]], path: Path, held_out: set[int], max_length: int | None
) -> Linted:
    """The sources of a split as one stream. A bad row is set aside as it comes by, so that there
    is no count before training but of its first rows, and what is said twice is not noticed.

    It begins again where it ends: of a last step with fewer pairs transformers would make no step,
    and a run that goes on would skip rows until there are none.

    Raises:
        Refusal: no row is a pair, or most of the first ones are too long.
    """

    told: set[tuple[str, int]] = set()  # rows come by again in each epoch

    def sound(row: dict[str, Any], name: str) -> bool:
        if not row["reason"] and row[RENDERED[0]] in held_out:
            row["reason"] = "held_out_prompt"
        if row["reason"] and (name, row["row"]) not in told and PartialState().is_main_process:
            told.add((name, row["row"]))
            line = {"file": name, "split": "train", **{key: row[key] for key in ABOUT}}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return not row["reason"]

    path.unlink(missing_ok=True)
    first = beginning(parts, max_length)
    check_length("train", first)
    streams = [part.pairs.filter(sound, fn_kwargs={"name": source.name}) for source, part in parts]
    layout = "; ".join(dict.fromkeys(part.layout for _, part in parts))
    stream = concatenate_datasets(streams)
    if next(iter(stream), None) is None:
        raise Refusal(f"no row of the stream is a pair to train on: {path} says why")
    if lengths := first.lengths():
        layout += f"; of the first {first.rows} rows, {said_of_lengths(lengths)}"
    return Linted(stream.repeat(None), f"streamed, {layout}", notes=notes_of(parts))


def digests_of(table: Dataset) -> np.ndarray:
    """Digests of prompt, chosen and rejected as they are rendered, shape (rows, 3)."""
    return np.stack([column(table, name) for name in RENDERED], axis=1)


def hold_out(train: Linted, share: float, seed: int) -> Linted:
    """Take a share of the pairs away from `train`, or a number of them, whole prompts at a time,
    drawn by the seed: prompts are those that are rendered, in the order of what is said, the same
    for every model.

    Raises:
        Refusal: the share is none.
    """
    if share >= 1 and share == int(share) and share < len(train.pairs):
        share /= len(train.pairs)
    if not 0 < share < 1:
        raise Refusal(
            f"test_split_size: {share:g} of {len(train.pairs)} pairs cannot be held out: give a "
            "share between 0 and 1, or a number of pairs that leaves some"
        )
    prompts, numbers = np.unique(digests_of(train.pairs)[:, 0], return_inverse=True)
    said = np.full(len(prompts), np.iinfo(np.int64).max)
    np.minimum.at(said, numbers, column(train.pairs, "prompt_digest"))
    numbers = np.argsort(np.argsort(said, kind="stable"))[numbers]
    order = np.random.default_rng(seed).permutation(len(prompts))
    taken = np.cumsum(np.bincount(numbers)[order]) <= share * len(numbers)
    taken[:1] = True
    held = np.isin(numbers, order[taken])
    pairs: Any = train.pairs  # no stream: hold_out asks for its length
    test = Linted(pairs.select(np.flatnonzero(held)), train.layout, int(held.sum()))
    train.pairs, train.rows = pairs.select(np.flatnonzero(~held)), train.rows - test.rows
    return test


def _as_it_is(table: pa.Table) -> pa.Table:
    return table


def flat(pairs: Dataset) -> Dataset:
    """The pairs as a table of their own, in place of a list of rows of a larger one: through that
    list every later look at a column copies it, and a column that is added copies all the others,
    on every process. As Arrow, since `flatten_indices` would build each value in Python; `datasets`
    keeps the outcome as a file, which others find."""
    if pairs._indices is None:
        return pairs
    arrow = pairs.with_format("arrow")
    flattened = arrow.map(_as_it_is, batched=True, features=pairs.features, desc="Keeping pairs")
    return flattened.with_format(None)


def check_images(source: Rows) -> None:
    """See that there are none: a column of them may be there, and empty.

    Raises:
        Refusal: a row has an image; of a stream, one of the first.
    """
    streams = isinstance(source.data, IterableDataset)
    columns = {*(source.data.column_names or next(iter(source.data), {}))} & {*IMAGES}
    if not columns:
        return
    rows = iter(source.data.select_columns([*columns]))
    for number, row in enumerate(islice(rows, SEEN) if streams else rows, start=1):
        if not all(map(is_empty, row.values())):
            raise Refusal(
                f"{source.name} has images, and text alone is trained on here: row {number}"
            )


def is_empty(value: Any) -> bool:
    """Whether there is nothing in a value: null, "", [], [null], {"bytes": null}, and as text."""
    if isinstance(value, (list, dict)):
        return all(map(is_empty, value.values() if isinstance(value, dict) else value))
    return value is None or value in ("", "[]", "null", "[null]", "{}", "None", "[None]")


def prepare(
    recipe: Recipe, rows: tuple[list[Rows], list[Rows]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Linted]:
    """Read, check and tokenise the rows of a recipe.

    Returns `train`, and `held-out` if there are held-out pairs. Their columns are prompt, chosen
    and rejected, the token ids of each as TRL names them, and what plain columns the data had.

    Raises:
        Refusal: the rows are no preferences, or have images; the chat template is none to train
            with.
    """
    for part in (*rows[0], *rows[1]):
        check_images(part)
    # The others find what one process of the machine has done.
    with PartialState().local_main_process_first():
        train, test = ([(part, lint_rows(part, recipe, tokenizer)) for part in s] for s in rows)
    held = joined(test) if test else None
    used = {*digests_of(held.pairs)[:, 0].tolist()} if held else set()
    if isinstance(train[0][1].pairs, IterableDataset):
        path, max_length = Path(recipe.training.output_dir) / QUARANTINE, recipe.training.max_length
        linted = {"train": streamed(train, path, used, max_length)}
    else:
        linted = {"train": joined(train, used)}
    if recipe.mixture.test_split_size is not None:
        held = hold_out(linted["train"], recipe.mixture.test_split_size, recipe.run.split_seed)
        if recipe.training.eval_strategy == "no":
            linted["train"].layout += f"; {held.rows} more are held out"
            held = None
    if held:
        linted["held-out"] = held
    with PartialState().local_main_process_first():
        for part in linted.values():
            part.max_length = recipe.training.max_length
            if isinstance(part.pairs, Dataset):
                part.pairs = flat(part.pairs)
    return linted


def read(
    recipe: Recipe, rows: tuple[list[Rows], list[Rows]], folder: Path
) -> tuple[PreTrainedTokenizerBase, dict[str, Linted]]:
    """Lint and tokenise the rows, set the bad ones aside, and say so.

    Returns the tokenizer and the pairs of each split.

    Raises:
        Refusal: the rows are no preferences, or too many of them are wrong.
    """
    state, tokenizer = PartialState(), load_tokenizer(recipe)
    data = prepare(recipe, rows, tokenizer)
    if state.is_main_process:
        print(*quarantine.said(data, quarantine.set_aside(data, folder)), sep="\n")
    state.wait_for_everyone()
    quarantine.check_share(data, recipe.run.quarantine_limit, folder)
    return tokenizer, data
