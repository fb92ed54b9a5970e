"""Columns of other names: what `column_mapping` says of them, and a guess where it says nothing;
and what columns may be that are no preferences."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dpo.core.refusal import Refusal
from dpo.data.formats.parts import KNOWN, PREFERENCES, Row, first_of, undecided
from dpo.data.sources.rows import Rows
from dpo.recipe import flags
from dpo.recipe.arguments import LAYOUTS

KINDS = {str: "text", bool: "true or false", int: "number", float: "number", dict: "object"}
# Words in the names that the columns of a pair have elsewhere: for a suggestion alone.
ASKED = ("prompt", "question", "query", "instruction", "input", "ask", "asked", "user")
ASKED += ("problem", "source")
BETTER = "chosen choose good better best win wins winner winning won accept accepted prefer "
BETTER += "preferred positive pos correct"
WORSE = "rejected reject bad worse worst lose loses loser losing lost negative neg wrong"
SIDES = dict.fromkeys(BETTER.split(), 1) | dict.fromkeys(WORSE.split(), -1)
NOT = ("non", "not", "un", "dis", "in", "no", "less", "least")  # before one of these words
ABOUT = {"id", "ids", "uuid", "hash", "name", "type", "model", "score", "rating"}
ABOUT |= {"length", "tokens"}


def mapping_of(text: str | None, key: str = "column_mapping") -> dict[str, str]:
    """Our names to theirs (flags.py), each of ours one that is read.

    Raises:
        Refusal: it is no mapping, or names a column that nothing reads.
    """
    mapping = flags.mapping_of(text, key)
    for ours in mapping:
        if ours not in KNOWN:
            raise Refusal(f"{key}: nothing reads a column {ours!r}: one of {', '.join(KNOWN)}")
    return mapping


def renamed(source: Rows, mapping: dict[str, str], *, some: bool = False) -> Rows:
    """The source, its columns called what they are called here.

    Args:
        some: whether it may have none of these columns, as one of several data sets.

    Raises:
        Refusal: a column is not there, or another has its name already.
    """
    if not mapping:
        return source
    columns = source.data.column_names or [*next(iter(source.data), {})]
    if some and not {*mapping.values()} & {*columns}:
        return source
    for ours, theirs in mapping.items():
        if theirs not in columns:
            raise Refusal(
                f"column_mapping: {source.name} has no column {theirs!r}, only {', '.join(columns)}"
            )
        if ours in columns and ours != theirs and ours not in mapping.values():
            raise Refusal(
                f"column_mapping: {source.name} has a column {ours!r} already, beside {theirs!r}: "
                "leave the one out, or rename it in the data"
            )
    names = {theirs: ours for ours, theirs in mapping.items() if ours != theirs}
    return replace(source, data=source.data.rename_columns(names))


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, list):
        return f"list of {kind_of(value[0])}s" if value else "empty list"
    return "empty" if value is None else KINDS.get(type(value), type(value).__name__)


def described(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each column of these rows: name, type and the first value that is there."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    width = max(map(len, names), default=0)
    lines = []
    for name in names:
        value = next((row[name] for row in rows if row.get(name) is not None), None)
        kind, text = kind_of(value), " ".join(str(value).split())
        lines.append(f"  {name:<{width}}  {kind}: {text[:60]}{' …' * (len(text) > 60)}")
    return lines


def words_of(name: str) -> list[str]:
    """The words of a column's name: of `chosen_text` and of `chosenText` the same two."""
    return [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def better_or_worse(name: str) -> int:
    """Which answer a column of this name would hold: 1 the better, -1 the worse, 0 if it does not
    say."""
    words, sides, negated = words_of(name), set(), False
    for word in words if not ABOUT & {*words} else ():
        rest = next((word.removeprefix(no) for no in NOT if word.startswith(no)), "")
        known = word if word in SIDES else rest
        if known in SIDES:
            sides.add(-SIDES[known] if negated != (known != word) else SIDES[known])
        negated = word in NOT
    return sides.pop() if len(sides) == 1 else 0


def suggested(names: Iterable[str]) -> str:
    """A mapping for columns of these names, as `prompt=question chosen=good …`: a guess."""
    names = [*names]
    sides = {name: better_or_worse(name) for name in names}
    asked = [  # an exact name before one that has the word among others; "rejected_prompt" is none
        *(name for word in ASKED for name in names if name.lower() == word),
        *(n for word in ASKED for n in names if word in words_of(n) and not ABOUT & {*words_of(n)}),
    ]
    found = {
        "prompt": [name for name in asked if not sides[name]],
        "chosen": sorted((n for n in names if sides[n] > 0), key=lambda n: len(words_of(n))),
        "rejected": sorted((n for n in names if sides[n] < 0), key=lambda n: len(words_of(n))),
    }
    if not found["rejected"]:  # alone it is who won
        found["chosen"] = [name for name in found["chosen"] if name not in PREFERENCES]
    return " ".join(f"{ours}={[*theirs, '…'][0]}" for ours, theirs in found.items())


def not_said(rows: list[Row], how: str = "--column_mapping ") -> str:
    """Why it cannot be told which of two responses is better, and what to do."""
    if not (found := undecided(rows)):
        return ""
    first, second, column, numbers = found
    said = (
        f"{column} is {', '.join(sorted(numbers))} beside {first} and {second}, and does not say "
        "which of them is better"
    )
    if numbers <= {"0", "1"}:
        return (
            f'{said}: if it counts from 0, {how}"response_0={first} response_1={second}"; if 1 '
            f'says that {first} is better, {how}"human_ref_A={first} human_ref_B={second} '
            f'labels={column}"'
        )
    return f"{said}: write {first[-1]} or {second[-1]} into it"


def instead(columns: Row) -> str:
    """What rows without two answers are, as far as it can be told, and what to do."""
    names = {*columns}
    conversation = first_of(("messages", "conversations", "conversation"), names)
    turns = isinstance(columns.get(conversation), list)
    singles = ("completion", "response", "output", "answer", "generation")
    values = [columns.get(name) for name in singles]
    values = [v[0] if isinstance(v, list) and isinstance(v[0], dict) else v for v in values]
    answer = turns or any(isinstance(value, (str, dict)) for value in values)
    label = names & {"label", "labels", "kto_tag", "completion_label"}
    asked = names & {"prompt", "question", "instruction", "input", "query", "problem", "text"}
    others = [n for n, v in columns.items() if n not in asked and isinstance(v, (str, list, dict))]
    if label and isinstance(columns.get("completions"), list):
        return (
            "are steps with a label each (stepwise supervision, for a process reward model): DPO "
            "compares two whole answers to one prompt, chosen and rejected"
        )
    if label and answer:
        return (
            "are single answers with a label of good or bad (unpaired preferences, as KTO takes "
            "them) and cannot be paired: train on them with KTO, or bring a chosen and a rejected "
            f"answer to each prompt, or a score for each answer ({LAYOUTS['scored']})"
        )
    if turns or (answer and asked):
        return (
            "are single answers with none to compare them with (data of supervised fine-tuning): "
            "DPO needs a chosen and a rejected answer to each prompt"
        )
    alone = len(asked) == 1 and not {*others} - {"id", "source"} and not label
    return "are prompts alone: DPO needs a chosen and a rejected answer to each" if alone else ""
