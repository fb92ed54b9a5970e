"""One source of rows, as a table of pairs: each as text and as tokens, or with what is wrong.

The table has a row for every row of the source. It is made once, in batches, and kept by
`datasets` for other processes and later runs.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import transformers
import trl
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from dpo.core.refusal import Refusal
from dpo.data import lint
from dpo.data.formats import choosing, parsing
from dpo.data.formats.columns import mapping_of, renamed
from dpo.data.formats.layouts import to_pair
from dpo.data.formats.parts import BESIDE, ratings_of
from dpo.data.formats.telling import SEEN, reading_of
from dpo.data.formats.turns import Fault
from dpo.data.quarantine import Bad, Linted
from dpo.data.schema import ABOUT, BEST, DIGESTS, IDS, IMAGES, MERGED, OPTIONS, OURS, PAIR, RENDERED
from dpo.data.schema import REFERENCE_LOGPS as SCORED
from dpo.data.sources.load import Rows
from dpo.data.sources.tables import Exact
from dpo.data.tokenize import GIVEN, Tokenization
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import day_of

BATCH = 1000
ROOMS = ("core", "recipe", "runs", "models", "data")
SCALARS = (*(f"{kind}{bits}" for kind in ("int", "float") for bits in (32, 64)), "string", "bool")


def paired(source: Rows, parts: dict[str, str]) -> tuple[Rows, list[Bad]]:
    """One scored response a row → one pair a prompt, and the rows that have nothing to be compared
    with. The pair bears the number of its best row."""
    data = source.data
    if "question" not in parts or isinstance(data, IterableDataset):
        raise Refusal(
            f"{source.name}: responses are compared by a prompt and a score, and not in a stream"
        )
    prompt, said = parts["question"], parts["response"]
    more = [parts[part] for part in BESIDE if part in parts]
    more += [name for name in GIVEN if name in data.column_names]
    beside = zip(*(data[name] for name in more), strict=True) if more else [()] * len(data)
    scores = [choosing.number(value) for value in data[parts["score"]]]
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
            top, low = choosing.best_and_worst([scores[row] for row in rows])
        except Fault as fault:
            bad += [Bad(source, row + 1, fault.reason, fault.detail) for row in rows]
            continue
        best.append(rows[top])
        worst.append(rows[low])
    chosen, rejected = data.select(best), data.select(worst)
    pairs = {
        prompt: chosen[prompt],
        "chosen": chosen[said],
        "rejected": rejected[said],
        "score_chosen": [scores[row] for row in best],
        "score_rejected": [scores[row] for row in worst],
        BEST: [row + 1 for row in best],
        **{name: chosen[name] for name in more},
    }
    for name in {*GIVEN} & {*more}:  # as JSON: a table would have every row bear the keys of all
        texts = (v if v is None or isinstance(v, str) else json.dumps(v) for v in chosen[name])
        pairs[name] = [*texts]
    return replace(source, data=Dataset.from_dict(pairs)), bad


def pair_of(row: dict[str, Any], padded: tuple[str, ...], **how_read: Any) -> dict[str, Any]:
    """A row as a pair, with those of its other columns that rendering and scores need.

    Args:
        padded: as `parsing.meant` takes it; the others as `to_pair`.

    Raises:
        Fault: the row is no pair.
    """
    row = parsing.meant(row, padded)
    kept = {name: row[name] for name in GIVEN if row.get(name) is not None}
    for better, worse in ratings_of((*row,)):
        kept |= {"score_chosen": row[better], "score_rejected": row[worse]}
    return kept | to_pair(row, **how_read)


def lint_batch(
    batch: dict[str, list],
    numbers: list[int],
    *,
    words: Tokenization,
    max_length: int | None,
    truncation_mode: str,
    kept: list[str],
    **how_read: Any,
) -> dict[str, list]:
    """Pairs, their tokens and what is wrong with them, for a batch of rows. `kept` are the columns
    that stay as they are, and `how_read` is as for `pair_of`."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    found = []
    for row, number in zip(rows, numbers, strict=True):
        entry = dict.fromkeys((*PAIR, OPTIONS, *IDS, *DIGESTS, *RENDERED, MERGED))
        entry |= {name: row[name] for name in kept}
        entry |= {"row": row.get(BEST, number + 1), "reason": "", "detail": ""}
        try:
            found_in_row = pair_of(row, **how_read)
            if other := [n for n in PAIR if not isinstance(found_in_row[n], words.kind)]:
                raise Fault("mixed", f"{other[0]} is {'text' if words.kind is list else 'no text'}")
            plain = {n: lint.plain(found_in_row[n], words.reads) for n in PAIR}
            pair = found_in_row | plain
            lint.check_pair(pair, words.kind, words.control)
            entry |= plain | {"texts": words.texts(pair)}
            lint.check_differ(entry["texts"], found_in_row)
            for name, text in zip(PAIR, entry["texts"], strict=True):
                entry[f"{name}_digest"] = lint.digest(lint.spoken(pair[name]))
                entry[f"{name}_rendered"] = lint.digest(text if words.kind is list else pair[name])
            given, seen = words.options(pair)
            entry[OPTIONS] = json.dumps(given) if given else ""
            if seen:  # with other tools it is another prompt
                entry["prompt_digest"] = lint.digest([lint.spoken(pair["prompt"]), seen])
        except Fault as fault:
            entry |= {"reason": fault.reason, "detail": fault.detail}
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            entry |= {"reason": "not_messages", "detail": f"{type(error).__name__}: {error}"}
        found.append(entry)
    sound = [entry for entry in found if not entry["reason"]]
    for entry, ids in zip(sound, words([entry["texts"] for entry in sound]), strict=True):
        entry |= dict(zip((*IDS, MERGED), ids, strict=True))
        try:
            lint.check_tokens([entry[n] for n in IDS], max_length, truncation_mode, words)
        except Fault as fault:
            entry |= {"reason": fault.reason, "detail": fault.detail}
    names = [*PAIR, OPTIONS, *IDS, *DIGESTS, *RENDERED, MERGED, *kept, *ABOUT]
    return {name: [entry[name] for entry in found] for name in names}


def lint_rows(source: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Linted:
    """One source as a table of all its rows: pairs, tokens, digests, and the reason of bad ones.

    Raises:
        Refusal: its columns are no preferences, or the chat template is none to train with.
    """
    mapping, several = mapping_of(recipe.run.column_mapping), len(recipe.mixture.datasets) > 1
    source = renamed(source, mapping, some=several)
    reading = reading_of(source, recipe.run.preference_layout)
    rows = len(source.data) if isinstance(source.data, Dataset) else 0
    layout, parts, bad, merged = reading.layout, reading.parts, [], 0
    if layout == "scored":
        source, bad = paired(source, parts)
        merged = rows - len(bad) - len(source.data)
        if not len(source.data):
            raise Refusal(f"{source.name}: no prompt has two responses with different scores")
        layout, parts = "question", parts | {"chosen": "chosen", "rejected": "rejected"}
    how_read = {
        "layout": layout,
        "chat": bool(tokenizer.chat_template),
        "parts": parts,
        "calls": "tool_calls" in str(tokenizer.chat_template),
        "padded": source.padded,
    }
    kind = kind_of(source, **how_read)
    words = Tokenization(tokenizer, kind, day_of(Path(recipe.training.output_dir)))
    words.check_template(recipe.model.model_name_or_path)
    data, features = source.data, source.data.features or {}
    columns = data.column_names or [*next(iter(data))]
    plain = {n for n, f in features.items() if getattr(f, "dtype", None) in SCALARS}
    ours = OURS | {*IMAGES, *SCORED}  # a trainer would take the latter for its own
    kept = [name for name in features if name in plain - ours]
    shape = Value("string") if kind is str else List(Exact())
    args = recipe.training
    cut = {"max_length": args.max_length, "truncation_mode": args.truncation_mode}
    work = {**how_read, **cut, "words": words, "kept": kept}
    how = {
        "batched": True,
        "with_indices": True,
        "batch_size": BATCH,
        "remove_columns": columns,
        "features": Features(
            dict.fromkeys(PAIR, shape)
            | {OPTIONS: Value("string")}
            | dict.fromkeys(IDS, List(Value("int32")))
            | dict.fromkeys((*DIGESTS, *RENDERED, MERGED), Value("int64"))
            | {name: features[name] for name in kept}
            | ABOUT
        ),
    }
    if isinstance(data, Dataset):
        name = fingerprint(data, tokenizer, work)
        # For few rows, starting processes takes longer than the work.
        workers = min(os.cpu_count() or 1, 16) if len(data) > 20_000 else None
        if not data.cache_files:  # rows that were made in memory are kept as well
            how["cache_file_name"] = f"{HF_DATASETS_CACHE}/pairs-{name}.arrow"
        how |= {
            "desc": f"Reading {source.name}",
            "new_fingerprint": name,
            "num_proc": args.dataset_num_proc or workers,
        }
    table = data.map(partial(lint_batch, **work), **how)
    notes = [*source.notes, *reading.notes(kind, tokenizer)]
    says = reading.says(kind, tokenizer.chat_template)
    return Linted(table, says, rows, bad, merged, notes=notes)


def kind_of(source: Rows, **how_read: Any) -> type:
    """What the pairs of a source are, by the first row that is a pair: messages or text."""
    for row in islice(iter(source.data), SEEN):
        with suppress(Fault, TypeError, KeyError, AttributeError, ValueError):
            return type(pair_of(row, **how_read)["prompt"])
    return list


@cache
def source_digest() -> str:
    """Of all code that may decide how a row is read, rendered and linted: this room's, and that of
    the rooms which it imports from, so that nothing need be listed."""
    top = Path(__file__).parents[1]
    files = sorted(path for room in ROOMS for path in (top / room).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def fingerprint(data: Dataset, tokenizer: PreTrainedTokenizerBase, work: dict[str, Any]) -> str:
    """What the outcome depends on: the rows, the tokenizer, this code, and nothing else.

    By default `datasets` would hash the tokenizer's state, that changes as it is used, and of this
    code the name.
    """
    code = [source_digest(), trl.__version__, transformers.__version__]
    settings = {key: value for key, value in work.items() if key != "words"}
    fast = tokenizer.is_fast
    backend: Any = tokenizer.backend_tokenizer if fast else None
    words = backend.to_str() if fast else sorted(tokenizer.get_vocab().items())
    rendering = [tokenizer.special_tokens_map, tokenizer.chat_template, str(work["words"].kind)]
    if work["words"].template:
        rendering.append(work["words"].template)  # with the date that it writes into each prompt
    return Hasher.hash([data._fingerprint, code, settings, words, rendering])
