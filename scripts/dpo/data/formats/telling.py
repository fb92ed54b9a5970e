"""How a source is read: told from its first rows, and said, with what of it is not read."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dpo.core.refusal import Refusal, one_line
from dpo.data.formats.columns import instead, not_said, suggested
from dpo.data.formats.parsing import is_message
from dpo.data.formats.parts import (
    BESIDE,
    PREFERENCES,
    STRENGTHS,
    Row,
    example_of,
    number,
    signs,
    told,
)
from dpo.data.formats.turns import Fault, as_messages
from dpo.data.sources.load import Rows
from dpo.data.sources.rows import listed
from dpo.data.tokenize import GIVEN, Tokenization
from dpo.recipe.arguments import LAYOUTS, LAYOUTS_SAID

FEW = 20  # rows that may all say the same by chance
SEEN = 100  # rows by which a layout is told
NAMED = 8  # columns in one line
SPOKEN = ("role", "content", "from", "value", "tool_calls")  # of a message
NEEDED = ("explicit", "question", "sharegpt")  # layouts whose prompt is a column of its own


@dataclass
class Reading:
    """How the rows of a source are read, and the rows by which it was told."""

    layout: str
    parts: dict[str, str]
    rows: list[Row]

    def says(self, kind: type, template: str | None) -> str:
        """What is read, in words."""
        form, names = "messages" if kind is list else "plain text", self.read(kind, template)
        return f"{self.layout}: {LAYOUTS[self.layout]}; {form}; read: {', '.join(names)}"

    def read(self, kind: type, template: str | None) -> list[str]:
        """The columns that are read. Plain text is trained on without what stands beside it, and
        many a chat template knows no tools."""
        parts = self.parts.items()
        parts = {part: n for part, n in parts if kind is list or part.split()[0] not in BESIDE}
        columns, rendered = example_of(self.rows), kind is list
        given = [name for name in GIVEN if rendered and columns.get(name)]
        given = [name for name in given if name != "tools" or "tools" in str(template)]
        return [*dict.fromkeys([*parts.values(), *given])]

    def notes(self, kind: type, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """A line for each thing that a user may have meant otherwise."""
        keys = self.unread_keys(Tokenization(tokenizer, kind)) if kind is list else ""
        found = [self.unread(kind, tokenizer.chat_template), keys, self.other_prompt()]
        return [*filter(None, [*found, self.margins(), self.plain_text(kind, tokenizer)])]

    def unread_keys(self, words: Tokenization) -> str:
        """The keys of messages that the chat template leaves out, if something stands in them."""
        values = (row.get(name) for row in self.rows for name in self.parts.values())
        turns = (turn for each in values for turn in (each if isinstance(each, list) else [each]))
        keys = (key for turn in turns if is_message(turn) for key, said in turn.items() if said)
        left = [key for key in dict.fromkeys(keys) if key not in SPOKEN and not words.reads(key)]
        if not left:
            return ""
        return (
            f"the chat template leaves out of messages: {listed(left, NAMED)} (if the model should "
            "see one, put it into the content, or give a template that has it with "
            "--chat_template_path)"
        )

    def margins(self) -> str:
        """Whether a margin says of every row that rejected is the better one."""
        found = signs([row.get("margin") for row in self.rows])
        if "chosen" not in self.parts or found != {False}:
            return ""
        return (
            f"margin is below zero in all of the first {len(self.rows)} rows: if it says by how "
            "much chosen is better, chosen and rejected are the other way round: --column_mapping "
            '"chosen=rejected rejected=chosen"'
        )

    def unread(self, kind: type, template: str | None) -> str:
        """The columns of text, lists or objects that nothing reads, or that may say which of two
        responses is better, and what to do."""
        known = {*self.read(kind, template), *(["messages"] if self.said_again() else [])}
        columns = {n: v for n, v in example_of(self.rows).items() if n not in known}
        told_by = PREFERENCES if self.layout == "compared" else ()
        told_by = {n for n, v in columns.items() if n in told_by and v is not None}
        kinds = (str, list, dict, tuple)
        names = [n for n, v in columns.items() if isinstance(v, kinds) or n in told_by]
        if not names:
            return ""
        return (
            f"not read: {listed(names, NAMED)} (if the model should see one, put it into the "
            "prompt, or rename it with --column_mapping)"
        )

    def said_again(self) -> bool:
        """Whether `messages` are the chosen conversation, or its beginning (UltraFeedback's)."""
        both = [(row.get("messages") or [], row.get(self.parts.get("chosen"))) for row in self.rows]
        lists = all(isinstance(turns, list) for pair in both for turns in pair)
        return lists and all(turns == chosen[: len(turns)] for turns, chosen in both)

    def other_prompt(self) -> str:
        """Where a text column stands beside whole conversations and is not their first question."""
        name, chosen = self.parts.get("question"), self.parts.get("chosen")
        if self.layout != "implicit" or not name:
            return ""
        both = ((row.get(name), first_question(row.get(chosen))) for row in self.rows)
        texts = [(text, other) for text, other in both if text and other]
        count = sum(str(text).strip() != other.strip() for text, other in texts)
        where = f"in {count} of the first {len(texts)} rows: the conversations alone are read"
        return f"{name} is not the conversation's first question {where}" if count else ""

    def plain_text(self, kind: type, tokenizer: PreTrainedTokenizerBase) -> str:
        """Text that a chat model is trained on as it stands, unless it is rendered already."""
        as_text = kind is str and self.layout in ("explicit", "implicit")
        if not as_text or not tokenizer.chat_template:
            return ""
        added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        ends, template = (tokenizer.bos_token, tokenizer.eos_token), str(tokenizer.chat_template)
        special = [token for token in added if token in ends or token in template]
        prompts = [row.get(self.parts.get("question", self.parts["chosen"])) for row in self.rows]
        rendered = [any(token in str(prompt) for token in special) for prompt in prompts if prompt]
        if sum(rendered) > len(rendered) / 2:
            return ""
        how = (
            "--preference_layout question renders prompt and completions with it"
            if "question" in self.parts
            else "to have it rendered, give the prompt a column of its own, `prompt`"
        )
        return f"plain text is trained on as it stands, without the model's chat template: {how}"


def first_question(conversation: object) -> str | None:
    """What the user says first; None where this is no conversation."""
    try:
        said = (m.get("content") for m in as_messages(conversation, "") if m["role"] == "user")
        return next((text for text in said if isinstance(text, str)), None)
    except (Fault, KeyError, TypeError):
        return None


def reading_of(source: Rows, given: str | None) -> Reading:
    """How a source is read: as the recipe says, or as the columns show.

    Raises:
        Refusal: no layout that is known, or the source lacks its columns.
    """
    data = source.data
    try:
        rows = source.first(SEEN)
    except ValueError as error:  # a stream is read only now
        raise Refusal(f"cannot read {source.name}: {one_line(error, cause=True)}") from error
    if not rows:
        raise Refusal(f"{source.name} has no rows")
    layout, parts = told(rows, given)
    if layout is None:
        raise Refusal(refusal(source.name, rows))
    check(source.name, layout, parts, rows)
    if isinstance(data, Dataset) and len(data) > SEEN:  # a column may be filled in later rows only
        rows += source.meant(data.select(np.linspace(SEEN, len(data) - 1, SEEN).astype(int)))
    return Reading(layout, parts, rows)


def check(name: str, layout: str, parts: dict[str, str], rows: list[Row]) -> None:
    """See that rows have what a layout needs.

    Raises:
        Refusal: there is no column of the prompt, or of the answers.
    """
    columns, here = example_of(rows), f"{name}: columns {listed(rows[0])}"
    answers = {"rated": "candidates", "compared": "first", "scored": "response"}
    if answers.get(layout, "chosen") not in parts:
        if layout == "compared" and (why := not_said(rows)):
            raise Refusal(f"{name}: {why}")
        raise Refusal(f"{here} have no answers to read as {layout} ({LAYOUTS[layout]})")
    if layout == "compared" and parts.get("verdict") in STRENGTHS:
        check_signs(name, parts, rows)
    if layout in NEEDED and "question" not in parts:
        raise Refusal(
            f"{here} have no prompt to read as {layout}: {mapped('…', columns, parts)}, or "
            "leave preference_layout out where chosen and rejected begin with it"
        )
    if layout != "implicit" or not isinstance(columns[parts["chosen"]], str):
        return
    # Answers may begin alike by chance, and a prompt in a column of another name is easily missed.
    texts = [(row.get(parts["chosen"]), row.get(parts["rejected"])) for row in rows]
    apart = sum(bool(a and b) and str(a)[:1] != str(b)[:1] for a, b in texts)
    others = {name: value for name, value in columns.items() if name not in parts.values()}
    turns = [name for name, value in others.items() if first_question(value) is not None]
    if turns or apart > len(rows) / 2:
        raise Refusal(
            f"{here}: chosen and rejected do not begin with a prompt, and no column is known to "
            f"hold it: {mapped([*turns, '…'][0], columns, parts)}"
        )


def check_signs(name: str, parts: dict[str, str], rows: list[Row]) -> None:
    """See that a strength of preference has both signs, as one without any says of no row which of
    the two is better.

    Raises:
        Refusal: of many rows, all have the same.
    """
    first, second, strength = (parts[part] for part in ("first", "second", "verdict"))
    values = [row[strength] for row in rows if number(row.get(strength))]
    above = signs(values)
    if len(values) >= FEW and len(above) == 1:
        better, worse = (second, first) if True in above else (first, second)
        side = "above" if True in above else "below"
        raise Refusal(
            f"{name}: {strength} is {side} zero wherever it is not zero in the first {len(rows)} "
            f"rows: it should say by how much {second} is better, and be below zero where {first} "
            f'is. If {better} always is, --column_mapping "chosen={better} rejected={worse}"'
        )


def mapped(name: str, columns: Row, parts: dict[str, str]) -> str:
    """How to name the column of a prompt, or that there is none to name."""
    left = [n for n, v in columns.items() if isinstance(v, (str, list)) and n not in parts.values()]
    return f'name it with --column_mapping "prompt={name}"' if left else "give each row a `prompt`"


def refusal(name: str, rows: list[Row], how: str = "--column_mapping ") -> str:
    """Why rows are no preferences, in a line: what they are instead, and what to do.

    Args:
        how: where the user says what columns are called.
    """
    columns = example_of(rows)
    names = listed(rows[0] if rows else ())
    if why := not_said(rows, how):
        return f"{name}: {why}"
    if why := instead(columns):
        return f"{name}: columns {names} {why}"
    parts = told(rows)[1] if rows else {}
    if {"candidates", "response", "first"} & {*parts}:
        name_it = mapped("…", columns, parts).replace("--column_mapping ", how)
        return f"{name}: columns {names} hold answers and no prompt: {name_it}"
    held = [name for name, value in columns.items() if isinstance(value, (str, list, dict))]
    two = f'say which is which with {how}"{suggested(held)}"'
    one = "there are no two columns of answers that a mapping could name"
    return (
        f"{name}: columns {names} are no preferences that are known: {LAYOUTS_SAID}; "
        f"{two if len(held) > 1 + ('prompt=…' not in two) else one}"
    )
