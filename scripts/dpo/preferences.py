"""The preference data of a recipe: rows as they were found → linted, tokenised pairs.

Rows become pairs (layouts.py), are checked as text, as tokens and among each other (lint.py), and
tokenised as TRL would (tokenization.py): once, in batches, and kept by `datasets`. What is wrong
is set aside and counted, never dropped without a word.
"""

from __future__ import annotations

import inspect
import json
import os
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, Json, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from dpo import layouts, lint, tokenization
from dpo.layouts import LAYOUTS, Fault, detect, to_pair
from dpo.output import QUARANTINE
from dpo.quarantine import Bad, Linted
from dpo.recipe import Recipe
from dpo.sources import Rows
from dpo.tokenization import Tokenization

SEEN = 100  # rows by which a layout is told
BATCH = 1000
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
DIGESTS = ("prompt_digest", "chosen_digest", "rejected_digest")
ABOUT = {"row": Value("int64"), "reason": Value("string"), "detail": Value("string")}
SCALARS = (*(f"{kind}{bits}" for kind in ("int", "float") for bits in (32, 64)), "string", "bool")


def layout_of(source: Rows, given: str | None) -> str:
    """The layout that a recipe names, or the one that the columns show.

    Raises:
        SystemExit: no such layout; or none that is known.
    """
    known = "; ".join(f"{name} ({says})" for name, says in LAYOUTS.items())
    if given:
        if given not in LAYOUTS:
            raise SystemExit(f"preference_layout: no layout {given!r}: one of {known}")
        return given
    first = list(islice(iter(source.data), SEEN))
    if not first:
        raise SystemExit(f"{source.name} has no rows")
    layout = detect(first)
    if layout is None:
        columns = ", ".join(map(str, first[0]))
        raise SystemExit(
            f"{source.name}: columns {columns} are no preferences that are known: {known}; rename "
            "the columns, or name the layout with --preference_layout"
        )
    return layout


def paired(source: Rows) -> tuple[Rows, list[Bad]]:
    """One scored response a row → one pair a prompt, and the rows that have nothing to be compared
    with. The pair bears the number of its best row."""
    data = source.data
    prompt = layouts.first_of(layouts.QUESTIONS, data.column_names)
    score = layouts.score_column(data.column_names)
    scores = [layouts.number(value) for value in data[score]]
    groups: dict[int, list[int]] = {}
    for row, value in enumerate(data[prompt]):
        groups.setdefault(lint.digest(value), []).append(row)
    best, worst, bad = [], [], []
    for rows in groups.values():
        try:
            if len(rows) == 1:
                raise Fault("alone")
            top, low = layouts.best_and_worst([scores[row] for row in rows])
        except Fault as fault:
            bad += [Bad(source, row + 1, fault.reason, fault.detail) for row in rows]
            continue
        best.append(rows[top])
        worst.append(rows[low])
    chosen, rejected = data.select(best), data.select(worst)
    pairs = {
        "prompt": chosen[prompt],
        "chosen": chosen["response"],
        "rejected": rejected["response"],
        "score_chosen": [scores[row] for row in best],
        "score_rejected": [scores[row] for row in worst],
        "row": [row + 1 for row in best],
    }
    return Rows(source.name, Dataset.from_dict(pairs)), bad


def pair_of(row: dict[str, Any], layout: str, chat: bool) -> dict[str, Any]:
    """A row as a pair, with those of its other columns that rendering and scores need.

    Raises:
        Fault: the row is no pair.
    """
    more = ("tools", "chat_template_kwargs", "score_chosen", "score_rejected")
    kept = {name: row[name] for name in more if row.get(name) is not None}
    return kept | to_pair(row, layout, chat)


def lint_batch(
    batch: dict[str, list],
    numbers: list[int],
    *,
    layout: str,
    words: Tokenization,
    chat: bool,
    max_length: int | None,
    kept: list[str],
) -> dict[str, list]:
    """Pairs, their tokens and what is wrong with them, for a batch of rows."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    whole = words.kind is str or "tools" in batch
    found = []
    for row, number in zip(rows, numbers, strict=True):
        entry = dict.fromkeys((*lint.COLUMNS, *IDS, *DIGESTS, "merged"))
        entry |= {name: row[name] for name in kept}
        entry |= {"row": row.get("row", number + 1), "reason": "", "detail": ""}
        try:
            pair = pair_of(row, layout, chat)
            lint.check_pair(pair, words.kind, words.control)
            entry["texts"] = words.texts(pair)
            for name in lint.COLUMNS:
                entry[name] = pair[name] if whole else lint.plain(pair[name])
                entry[f"{name}_digest"] = lint.digest(entry[name])
        except Fault as fault:
            entry |= {"reason": fault.reason, "detail": fault.detail}
        found.append(entry)
    sound = [entry for entry in found if not entry["reason"]]
    for entry, ids in zip(sound, words([entry["texts"] for entry in sound]), strict=True):
        entry |= dict(zip((*IDS, "merged"), ids, strict=True))
        try:
            lint.check_tokens(*(entry[name] for name in IDS), max_length, words)
        except Fault as fault:
            entry |= {"reason": fault.reason, "detail": fault.detail}
    names = [*lint.COLUMNS, *IDS, *DIGESTS, "merged", *kept, *ABOUT]
    return {name: [entry[name] for entry in found] for name in names}


def lint_rows(source: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Linted:
    """One source as a table of all its rows: pairs, tokens, digests, and the reason of bad ones.

    Raises:
        SystemExit: its columns are no preferences, or the chat template is none to train with.
    """
    layout, chat = layout_of(source, recipe.run.preference_layout), bool(tokenizer.chat_template)
    bad: list[Bad] = []
    rows = len(source.data) if isinstance(source.data, Dataset) else 0
    reading = layout
    if layout == "scored":
        source, bad = paired(source)
        reading = "explicit" if isinstance(source.data[0]["prompt"], list) else "question"
    kind = kind_of(source, reading, chat)
    words = Tokenization(tokenizer, kind)
    words.check_template(recipe.model.model_name_or_path)
    data, features = source.data, source.data.features or {}
    columns = data.column_names or [*next(iter(data))]
    kept = [n for n, f in features.items() if getattr(f, "dtype", None) in SCALARS]
    kept = [name for name in kept if name not in (*lint.COLUMNS, *ABOUT)]
    role_and_content = {"role": Value("string"), "content": Value("string")}
    message = Json() if "tools" in features else role_and_content
    shape = Value("string") if kind is str else List(message)
    work = {
        "layout": reading,
        "words": words,
        "chat": chat,
        "max_length": recipe.training.max_length,
        "kept": kept,
    }
    how = {
        "batched": True,
        "with_indices": True,
        "batch_size": BATCH,
        "remove_columns": columns,
        "features": Features(
            dict.fromkeys(lint.COLUMNS, shape)
            | dict.fromkeys(IDS, List(Value("int32")))
            | dict.fromkeys((*DIGESTS, "merged"), Value("int64"))
            | {name: features[name] for name in kept}
            | ABOUT
        ),
    }
    if isinstance(data, Dataset):
        how |= {
            "desc": f"Reading {source.name}",
            "new_fingerprint": fingerprint(data, tokenizer, work),
            "num_proc": recipe.training.dataset_num_proc or processes(len(data)),
        }
    table = data.map(partial(lint_batch, **work), **how)
    says = f"{layout}: {LAYOUTS[layout]}; {'messages' if kind is list else 'plain text'}"
    return Linted(table, says, rows, bad)


def processes(rows: int) -> int | None:
    """Processes that share the work on many rows; for a few, starting them takes longer."""
    return min(os.cpu_count() or 1, 16) if rows > 20_000 else None


def kind_of(source: Rows, layout: str, chat: bool) -> type:
    """What the pairs of a source are, by the first row that is a pair: messages or text."""
    for row in islice(iter(source.data), SEEN):
        try:
            return type(pair_of(row, layout, chat)["prompt"])
        except Fault:
            continue
    return list


def fingerprint(data: Dataset, tokenizer: PreTrainedTokenizerBase, work: dict[str, Any]) -> str:
    """What the outcome depends on: the rows, the tokenizer, this code, and nothing else.

    By default `datasets` would hash the tokenizer's state, that changes as it is used, and of this
    code the name.
    """
    code = [inspect.getsource(part) for part in (layouts, lint, tokenization, lint_batch)]
    settings = {key: value for key, value in work.items() if key != "words"}
    words = [tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map]
    words.append(tokenizer.chat_template)
    return Hasher.hash([data._fingerprint, code, settings, str(work["words"].kind), *words])


def joined(parts: list[tuple[Rows, Linted]], held_out: set[int] = frozenset()) -> Linted:
    """The sources of a split as one, what they say twice or against each other set aside.

    Args:
        held_out: digests of the prompts that must not be among them.

    Raises:
        SystemExit: some sources are messages and some are plain text.
    """
    if len({str(part.pairs.features["prompt"]) for _, part in parts}) > 1:
        kinds = "; ".join(f"{source.name}: {part.layout}" for source, part in parts)
        raise SystemExit(f"a mixture must be all messages or all plain text ({kinds})")
    table = concatenate_datasets([part.pairs for _, part in parts])
    sources = [source for source, part in parts for _ in range(len(part.pairs))]
    rows, reasons, details = ([*table[name]] for name in ABOUT)
    good = [at for at, reason in enumerate(reasons) if not reason]
    digests = digests_of(table.select(good))
    for at, (reason, other) in lint.repeated(digests).items():
        at, other = good[at], good[other]
        reasons[at], details[at] = reason, f"row {rows[other]} of {sources[other].name}"
    for at, prompt in zip(good, digests[:, 0].tolist(), strict=True):
        if prompt in held_out and not reasons[at]:
            reasons[at] = "held_out_prompt"
    bad = [bad for _, part in parts for bad in part.bad]
    found = zip(sources, rows, reasons, details, strict=True)
    bad += [Bad(*about) for about in found if about[2]]
    kept = table.select([at for at, reason in enumerate(reasons) if not reason])
    layout = "; ".join(dict.fromkeys(part.layout for _, part in parts))
    return Linted(kept, layout, sum(part.rows for _, part in parts), bad)


def streamed(parts: list[tuple[Rows, Linted]], path: Path, held_out: set[int]) -> Linted:
    """The sources of a split as one stream. A bad row is set aside as it comes by, so that there
    is no count before training, and what is said twice is not noticed."""

    def sound(row: dict[str, Any], name: str) -> bool:
        if not row["reason"] and row["prompt_digest"] in held_out:
            row["reason"] = "held_out_prompt"
        if row["reason"] and PartialState().is_main_process:
            line = {"file": name, "split": "train", **{key: row[key] for key in ABOUT}}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return not row["reason"]

    path.unlink(missing_ok=True)
    streams = [part.pairs.filter(sound, fn_kwargs={"name": source.name}) for source, part in parts]
    layout = "; ".join(dict.fromkeys(part.layout for _, part in parts))
    return Linted(concatenate_datasets(streams), f"streamed, {layout}")


def digests_of(table: Dataset) -> np.ndarray:
    """Digests of prompt, chosen and rejected, shape (rows, 3)."""
    return np.stack([np.array(table[name], dtype=np.int64) for name in DIGESTS], axis=1)


def hold_out(train: Linted, share: float, seed: int) -> Linted:
    """Take a share of the pairs away from `train`, whole prompts at a time, drawn by the seed.

    Raises:
        SystemExit: the share is none.
    """
    if not 0 < share < 1:
        raise SystemExit(f"test_split_size: {share:g} is no share: give one between 0 and 1")
    prompts, numbers = np.unique(digests_of(train.pairs)[:, 0], return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(prompts))
    taken = np.cumsum(np.bincount(numbers)[order]) <= max(share * len(numbers), 1)
    held = np.isin(numbers, order[taken])
    test = Linted(train.pairs.select(np.flatnonzero(held)), train.layout, int(held.sum()))
    train.pairs, train.rows = train.pairs.select(np.flatnonzero(~held)), train.rows - test.rows
    return test


def prepare(
    recipe: Recipe, rows: tuple[list[Rows], list[Rows]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Linted]:
    """Read, check and tokenise the rows of a recipe.

    Returns `train`, and `held-out` if there are held-out pairs. Their columns are prompt, chosen
    and rejected, the token ids of each as TRL names them, and what plain columns the data had.

    Raises:
        SystemExit: the rows are no preferences; the chat template is none to train with.
    """
    if {"image", "images"} & {*(rows[0][0].data.column_names or ())}:
        parts = {"train": rows[0], "held-out": rows[1]}
        return {
            split: Linted(concatenate_datasets([p.data for p in sources]), "images, not checked")
            for split, sources in parts.items()
            if sources
        }
    # The others find what one process of the machine has done.
    with PartialState().local_main_process_first():
        train, test = (
            [(part, lint_rows(part, recipe, tokenizer)) for part in side] for side in rows
        )
    held = joined(test) if test else None
    used = {*digests_of(held.pairs)[:, 0].tolist()} if held else set()
    if isinstance(train[0][1].pairs, IterableDataset):
        linted = {"train": streamed(train, Path(recipe.training.output_dir) / QUARANTINE, used)}
    else:
        linted = {"train": joined(train, used)}
    if recipe.mixture.test_split_size is not None:
        held = hold_out(linted["train"], recipe.mixture.test_split_size, recipe.training.seed)
        held = held if recipe.training.eval_strategy != "no" else None
    if held:
        linted["held-out"] = held
    return linted
