"""The rows of any file as completions to score: pairs in every layout that training reads, or a
prompt with one completion or several."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import ClassLabel, IterableDataset
from transformers import PreTrainedTokenizerBase

from dpo.core.hashing import digests_of
from dpo.core.refusal import Refusal
from dpo.data import lint, schema
from dpo.data.formats import parsing
from dpo.data.formats.columns import mapping_of, renamed
from dpo.data.formats.layouts import answered, renders
from dpo.data.formats.parts import CANDIDATES, SAID, beside, example_of, first_of, question_of, told
from dpo.data.formats.telling import SEEN
from dpo.data.formats.turns import Fault, as_messages, role_of
from dpo.data.reading import lint_rows
from dpo.data.sources import files
from dpo.data.sources.load import Rows, load
from dpo.data.sources.rows import listed
from dpo.data.tokenize import GIVEN, Tokenization
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import day_of

ONE = ("completion", "response", "answer", "output", "generation")
CONVERSATIONS = ("messages", "conversations", "conversation")
Tokens = tuple[list[int], list[int]]  # of a prompt and of a completion


@dataclass
class Given:
    """A row: its completions as tokens, chosen and rejected if it is a pair; or why not.

    `prompt` is 64 bits that two rows share only if their prompts say the same.
    """

    number: int
    completions: list[Tokens] = field(default_factory=list)
    prompt: int = 0
    reason: str = ""
    detail: str = ""


@dataclass
class Source:
    """A file as a stream that can be gone through again, a hash of what it holds, and how many rows
    it has, where that is soon counted."""

    rows: Rows
    digest: str
    count: int | None


@dataclass
class Reading:
    """How a source is read: in words, whether its rows are pairs, the rows in their order, and what
    may have been meant otherwise."""

    says: str
    pairs: bool
    given: Iterator[Given]
    notes: list[str] = field(default_factory=list)


def source_of(name: str, split: str) -> Source:
    """The rows of a file, a folder or a data set of the hub.

    Raises:
        Refusal: it cannot be read, or has several splits and none is named.
    """
    there = Path(name).exists()
    splits = load(name, "FILE", streaming=there)
    if len(splits) > 1 and split not in splits:
        raise Refusal(f"FILE: {name} has several splits: name one with --split {listed(splits)}")
    rows = splits[split] if split in splits else next(iter(splits.values()))
    if not isinstance(rows.data, IterableDataset):
        digest = rows.data._fingerprint
        return Source(replace(rows, data=rows.data.to_iterable_dataset()), digest, len(rows.data))
    paths = [*map(Path, rows.files)]
    a_line = all(files.kind_of(p) == "json" and ".json" not in p.suffixes for p in paths)
    lines = (line for path in rows.files for line in files.lines_of(path)) if a_line else ()
    count = sum(bool(line.strip()) for line in lines) if a_line else None
    return Source(rows, " ".join(digests_of(paths)), count)


def check_columns(source: Source, wanted: list[str], key: str) -> None:
    """Raises Refusal if a column is not there, with the ones that are."""
    known = [*dict.fromkeys(name for row in source.rows.first(SEEN) for name in row)]
    if left := [name for name in wanted if name not in known]:
        raise Refusal(f"{key}: no column {left[0]!r} in {source.rows.name}, only {listed(known)}")


def columns_of(rows: Rows, names: list[str]) -> Iterator[dict[str, Any]]:
    """Of each row what it has in these columns: of class labels their names."""
    table: Any = rows.data
    kinds = table.features or {}
    labels = {name: kind for name in names if isinstance(kind := kinds.get(name), ClassLabel)}
    for row in table:
        found = {name: row.get(name) for name in names}
        for name, kind in labels.items():
            if found[name] is not None:
                found[name] = kind.int2str(found[name]) if found[name] >= 0 else None
        yield found


def as_asked(
    recipe: Recipe, folder: Path, layout: str | None, mapping: str | None, cut: int | None
) -> Recipe:
    """The recipe of a run, whose rows are read otherwise than those that it trained on.

    Args:
        cut: the `max_length` of prompt and completion; None leaves both whole.
    """
    training, mixture = copy.copy(recipe.training), copy.copy(recipe.mixture)
    training.max_length, training.output_dir, mixture.datasets = cut, str(folder), []
    run = replace(recipe.run, preference_layout=layout, column_mapping=mapping)
    return replace(recipe, training=training, mixture=mixture, run=run)


def read(source: Source, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Reading:
    """How the source is read, told from its first rows.

    Raises:
        Refusal: there is no completion in it, or the data reader refuses it.
    """
    rows = renamed(source.rows, mapping_of(recipe.run.column_mapping))
    first, given = rows.first(SEEN), recipe.run.preference_layout
    if not first:
        raise Refusal(f"{rows.name} has no rows")
    layout, _ = told(first, given)
    if layout is None or layout == "scored":  # a response a row: none is compared here
        parts = alone(first)
        if not parts:
            raise Refusal(
                f"{rows.name}: columns {listed(first[0])} hold no completion to score: give pairs, "
                f"in a layout of docs/data.md, or a prompt with one of {', '.join(ONE)}, or a list "
                'of completions; --column_mapping "prompt=… response=…" names yours'
            )
        says = f"a prompt and its completions; read: {', '.join(dict.fromkeys(parts.values()))}"
        return Reading(says, False, completions(rows, parts, recipe, tokenizer))
    rendered = renders(first, layout) if tokenizer.chat_template and not given else None
    if rendered:
        run = replace(recipe.run, preference_layout=rendered)
        recipe = replace(recipe, run=run)
    linted = lint_rows(source.rows, recipe, tokenizer)
    aside = "; --preference_layout explicit scores plain text as it stands" if rendered else ""
    return Reading(linted.layout + aside, True, pairs(linted.pairs, recipe), linted.notes)


def pairs(table: Any, recipe: Recipe) -> Iterator[Given]:
    """The rows of a table of pairs, cut as the recipe says."""
    cut = recipe.training.max_length, recipe.training.truncation_mode
    for row in table.select_columns([*schema.IDS, "prompt_digest", *schema.ABOUT]):
        found = Given(row["row"], reason=row["reason"], detail=row["detail"])
        if not found.reason:
            prompt, *both = (row[name] for name in schema.IDS)
            found.completions = [schema.cut_row(prompt, ids, *cut) for ids in both]
            found.prompt = row["prompt_digest"]
        yield found


def alone(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The columns of a prompt and of what answers it, which may be the end of one conversation;
    none where there are none."""
    columns = example_of(rows)
    question = question_of(columns, {})
    names = [n for n in (*ONE, *CANDIDATES) if isinstance(columns.get(n), (str, list, dict))]
    if names and question:
        return {"question": question, "answer": names[0]} | beside(columns, question)
    whole = first_of([n for n in CONVERSATIONS if isinstance(columns.get(n), list)], columns)
    return {"conversation": whole} if whole else {}


def completions(
    rows: Rows, parts: dict[str, str], recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Given]:
    """Rows of a prompt and its completions, rendered as the run would have rendered them."""
    kind = list if tokenizer.chat_template or "conversation" in parts else str
    words = Tokenization(tokenizer, kind, day_of(Path(recipe.training.output_dir)))
    words.check_template(str(recipe.model.model_name_or_path))
    cut = recipe.training.max_length, recipe.training.truncation_mode
    for number, row in enumerate(rows.data, start=1):
        found = Given(number)
        try:
            row = parsing.meant(row, rows.padded)
            sides = answers(row, parts, words)
            found.prompt = lint.digest(lint.spoken(sides[0]["prompt"]))
            for place, side in enumerate(sides, start=1):
                found.completions.append(tokens_of(side, place, words, cut))
        except Fault as fault:
            found = Given(number, reason=fault.reason, detail=fault.detail)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            found = Given(number, reason="not_messages", detail=said)
        yield found


def answers(row: dict[str, Any], parts: dict[str, str], words: Tokenization) -> list[dict]:
    """The completions of a row, each as a pair with itself: what renders and lints pairs does so
    with it.

    Raises:
        Fault: there is none.
    """
    calls = words.reads("tool_calls")
    given = {name: row[name] for name in GIVEN if row.get(name) is not None}
    if name := parts.get("conversation"):
        turns = as_messages(row.get(name), "", calls)
        if not turns or turns[-1]["role"] != "assistant":
            raise Fault("wrong_role", f"{name} does not end with the assistant")
        return [given | {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": turns[-1:]}]
    value = row.get(parts["answer"])
    several = isinstance(value, list) and not all(
        isinstance(turn, dict) and role_of(turn) is not None for turn in value
    )
    values: list[Any] = [*value] if isinstance(value, list) and several else [value]
    values = [v.get(first_of(SAID, v)) if isinstance(v, dict) and several else v for v in values]
    if not values or any(each is None for each in values):
        raise Fault("missing", parts["answer"])
    if words.kind is list:
        return [given | answered(row, each, each, parts, calls) for each in values]
    asked = row.get(parts["question"])
    if asked is None:
        raise Fault("missing", parts["question"])
    return [{"prompt": asked, "chosen": each, "rejected": each} for each in values]


def tokens_of(pair: dict, place: int, words: Tokenization, cut: tuple[int | None, str]) -> Tokens:
    """A prompt and a completion as tokens, cut.

    Raises:
        Fault: what is wrong with them, and which completion it is.
    """
    try:
        pair = pair | {name: lint.plain(pair[name], words.reads) for name in schema.PAIR}
        lint.check_pair(pair, words.kind, words.control)
        ((prompt, ids, _, _),) = words([words.texts(pair)])
        try:
            lint.check_tokens([prompt, ids, ids], None, cut[1], words)
        except Fault as fault:
            if fault.reason != "same":  # which it is, and is looked for last
                raise
        prompt, ids = schema.cut_row(prompt, ids, *cut)
        if not ids[not prompt :]:
            raise Fault("prompt_too_long", f"max_length {cut[0]}")
    except Fault as fault:
        detail = fault.detail.replace("chosen", f"completion {place}", 1)
        raise Fault(fault.reason, detail or f"completion {place}") from fault
    return prompt, ids
