"""One source of rows, as a table of pairs: each as text and as tokens, or with what is wrong.

The table has a row for every row of the source. It is made once, in batches, and kept by
`datasets` for other processes and later runs.
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
import transformers
import trl
from datasets import Dataset, Features, IterableDataset, Json, List, Value
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from dpo import cutting, layouts, lint, tokenization
from dpo.layouts import LAYOUTS, Fault, detect, to_pair
from dpo.output import day_of
from dpo.quarantine import Bad, Linted
from dpo.recipe import Recipe
from dpo.reference import COLUMNS as SCORED
from dpo.sources import Rows, one_line
from dpo.tokenization import GIVEN, Tokenization

SEEN = 100  # rows by which a layout is told
BATCH = 1000
BEST = "row of the best response"  # a column of pairs that several rows were made into
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
OPTIONS = "template_options"  # what the template gets beside the messages, as JSON, or nothing
DIGESTS = ("prompt_digest", "chosen_digest", "rejected_digest")
ABOUT = {"row": Value("int64"), "reason": Value("string"), "detail": Value("string")}
SCALARS = (*(f"{kind}{bits}" for kind in ("int", "float") for bits in (32, 64)), "string", "bool")


def column(table: Dataset, name: str) -> np.ndarray:
    """A column of a table, shape (rows,). `datasets` would make each value in Python: 20 µs a row,
    on every process."""
    return table.select_columns([name]).with_format("arrow")[:][name].to_numpy()


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
    try:
        first = list(islice(iter(source.data), SEEN))
    except ValueError as error:  # a stream is read only now
        raise SystemExit(f"cannot read {source.name}: {one_line(error)}") from error
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
    data, columns = source.data, source.data.column_names
    prompt = layouts.first_of(layouts.QUESTIONS, columns or ())
    score = layouts.score_column(columns or ())
    if not prompt or not score or isinstance(data, IterableDataset):
        raise SystemExit(
            f"{source.name}: responses are compared by a prompt and a score, and not in a stream"
        )
    system = layouts.first_of(layouts.SYSTEMS, columns)
    more = [system] if system else []
    more += [name for name in GIVEN if name in columns]
    beside = zip(*(data[name] for name in more), strict=True) if more else [()] * len(data)
    scores = [layouts.number(value) for value in data[score]]
    groups: dict[int, list[int]] = {}
    for row, asked in enumerate(zip(beside, data[prompt], strict=True)):
        groups.setdefault(lint.digest(asked), []).append(row)
    best, worst, bad = [], [], []
    for rows in groups.values():
        try:
            if data[rows[0]][prompt] is None:
                raise Fault("missing", prompt)
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
        BEST: [row + 1 for row in best],
        **({"system": chosen[system]} if system else {}),
        # As JSON: a table would have every row bear the keys of all others.
        **{
            name: [v if v is None or isinstance(v, str) else json.dumps(v) for v in chosen[name]]
            for name in GIVEN
            if name in more
        },
    }
    return Rows(source.name, Dataset.from_dict(pairs)), bad


def pair_of(row: dict[str, Any], layout: str, chat: bool) -> dict[str, Any]:
    """A row as a pair, with those of its other columns that rendering and scores need.

    Raises:
        Fault: the row is no pair.
    """
    more = (*GIVEN, "score_chosen", "score_rejected")
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
    truncation_mode: str,
    kept: list[str],
) -> dict[str, list]:
    """Pairs, their tokens and what is wrong with them, for a batch of rows."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    found = []
    for row, number in zip(rows, numbers, strict=True):
        entry = dict.fromkeys((*lint.COLUMNS, OPTIONS, *IDS, *DIGESTS, "merged"))
        entry |= {name: row[name] for name in kept}
        entry |= {"row": row.get(BEST, number + 1), "reason": "", "detail": ""}
        try:
            pair = pair_of(row, layout, chat)
            lint.check_pair(pair, words.kind, words.control)
            entry["texts"] = words.texts(pair)
            for name in lint.COLUMNS:
                entry[name] = pair[name] if words.kind is str else lint.plain(pair[name])
                entry[f"{name}_digest"] = lint.digest(entry[name])
            given, seen = words.options(pair)
            entry[OPTIONS] = json.dumps(given) if given else ""
            if seen:  # with other tools it is another prompt
                entry["prompt_digest"] = lint.digest([entry["prompt"], seen])
        except Fault as fault:
            entry |= {"reason": fault.reason, "detail": fault.detail}
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            entry |= {"reason": "not_messages", "detail": f"{type(error).__name__}: {error}"}
        found.append(entry)
    sound = [entry for entry in found if not entry["reason"]]
    for entry, ids in zip(sound, words([entry["texts"] for entry in sound]), strict=True):
        entry |= dict(zip((*IDS, "merged"), ids, strict=True))
        try:
            ids = (entry[name] for name in IDS)
            lint.check_tokens(*ids, max_length, truncation_mode, words)
        except Fault as fault:
            entry |= {"reason": fault.reason, "detail": fault.detail}
    names = [*lint.COLUMNS, OPTIONS, *IDS, *DIGESTS, "merged", *kept, *ABOUT]
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
        if not len(source.data):
            raise SystemExit(f"{source.name}: no prompt has two responses with different scores")
        reading = "explicit" if isinstance(source.data[0]["prompt"], list) else "question"
    kind = kind_of(source, reading, chat)
    words = Tokenization(tokenizer, kind, day_of(Path(recipe.training.output_dir)))
    words.check_template(recipe.model.model_name_or_path)
    data, features = source.data, source.data.features or {}
    columns = data.column_names or [*next(iter(data))]
    kept = [n for n, f in features.items() if getattr(f, "dtype", None) in SCALARS]
    # The reference's, too: a trainer would take what the data calls so for its own.
    ours = {*lint.COLUMNS, OPTIONS, *IDS, *DIGESTS, *ABOUT, "merged", "texts", BEST, *SCORED}
    kept = [name for name in kept if name not in ours]
    shape = Value("string") if kind is str else List(Json())
    work = {
        "layout": reading,
        "words": words,
        "chat": chat,
        "max_length": recipe.training.max_length,
        "truncation_mode": recipe.training.truncation_mode,
        "kept": kept,
    }
    how = {
        "batched": True,
        "with_indices": True,
        "batch_size": BATCH,
        "remove_columns": columns,
        "features": Features(
            dict.fromkeys(lint.COLUMNS, shape)
            | {OPTIONS: Value("string")}
            | dict.fromkeys(IDS, List(Value("int32")))
            | dict.fromkeys((*DIGESTS, "merged"), Value("int64"))
            | {name: features[name] for name in kept}
            | ABOUT
        ),
    }
    if isinstance(data, Dataset):
        name = fingerprint(data, tokenizer, work)
        if not data.cache_files:  # rows that were made in memory are kept as well
            how["cache_file_name"] = f"{HF_DATASETS_CACHE}/pairs-{name}.arrow"
        how |= {
            "desc": f"Reading {source.name}",
            "new_fingerprint": name,
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
        except (Fault, TypeError, KeyError, AttributeError, ValueError):
            continue
    return list


def fingerprint(data: Dataset, tokenizer: PreTrainedTokenizerBase, work: dict[str, Any]) -> str:
    """What the outcome depends on: the rows, the tokenizer, this code, and nothing else.

    By default `datasets` would hash the tokenizer's state, that changes as it is used, and of this
    code the name.
    """
    parts = (cutting, layouts, lint, tokenization, pair_of, lint_batch)
    code = [inspect.getsource(part) for part in parts]
    code += [trl.__version__, transformers.__version__]
    settings = {key: value for key, value in work.items() if key != "words"}
    fast = tokenizer.is_fast
    words = tokenizer.backend_tokenizer.to_str() if fast else sorted(tokenizer.get_vocab().items())
    rendering = [tokenizer.special_tokens_map, tokenizer.chat_template, str(work["words"].kind)]
    if work["words"].template:
        rendering.append(work["words"].template)  # with the date that it writes into each prompt
    return Hasher.hash([data._fingerprint, code, settings, words, rendering])
