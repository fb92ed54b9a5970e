"""Any columns of preference data, as one pair in TRL's preference format: prompt, chosen, rejected.

A layout is told from the columns of the first rows; `--preference_layout` names it instead. A row
becomes a pair, or raises a Fault that says why it can't.
"""

from typing import Any

from trl import extract_prompt

from dpo.data.formats.choosing import compared, need, rated
from dpo.data.formats.parts import Row, told, whole
from dpo.data.formats.turns import (
    TURN,
    Fault,
    Message,
    as_messages,
    asks,
    earlier,
    spoken,
    turns_of,
    where_they_part,
)

Pair = dict[str, Any]


def renders(rows: list[Row], layout: str) -> str | None:
    """The layout that renders these rows with a chat template, where this one leaves them plain
    text; None where it renders them itself, or where the prompt is no column of its own."""
    parts = told(rows, layout)[1]
    texts = [row.get(parts.get("question")) for row in rows]
    plain = layout == "explicit" and any(isinstance(text, str) for text in texts)
    return "question" if plain else None


def begun(messages: list[Message], row: Row, parts: dict[str, str], calls: bool) -> list[Message]:
    """A conversation from its start: after the system prompt and the earlier turns that stand in
    columns of their own, unless it has them.

    Raises:
        Fault: it has another system prompt, or the columns hold something else.
    """
    history, system = (row.get(parts.get(part)) or None for part in ("history", "system"))
    first = messages[:1] if messages and messages[0].get("role") in ("system", "developer") else []
    if history:
        if not isinstance(history, list):
            raise Fault("not_messages", f"{parts['history']}: {type(history).__name__}")
        past, rest = earlier(history, calls), messages[len(first) :]
        if past[:1] and past[0].get("role") == "system":
            first, past = first or past[:1], past[1:]
        messages = first + (rest if rest[: len(past)] == past else past + rest)
    if system:
        if not isinstance(system, str):
            raise Fault("not_text", f"{parts['system']}: {system!r:.40}")
        if not first:
            return [{"role": "system", "content": system}, *messages]
        if str(first[0].get("content")).strip() != system.strip():
            raise Fault("system_differs", f"{parts['system']}: {system:.40}")
    return messages


def asked(row: Row, parts: dict[str, str], calls: bool = True) -> list[Message]:
    """The messages of the question alone.

    Raises:
        Fault: it is null, or none.
    """
    (question,) = need(row, parts.get("question", "prompt"))
    if isinstance(question, dict) and "full_text" in question:  # WebGPT's, with where it is from
        question = question["full_text"]
    if not isinstance(question, str):
        return as_messages(question, "user", calls)
    if asks(question):
        return turns_of(question.strip())[:-1]
    return as_messages(with_input(question, row, parts), "user")


def with_input(question: str, row: Row, parts: dict[str, str]) -> str:
    """A question after its context, and before what it is for (Alpaca's `input`)."""
    if not question.strip():
        return question
    values = {part: row.get(parts.get(part)) or "" for part in ("input", "context")}
    for part, value in values.items():
        if not isinstance(value, str):
            raise Fault("not_text", f"{parts[part]}: {value!r:.40}")
        if f"{part} again" in parts and value in question:
            values[part] = ""
    after, before = values.values()
    question = f"{question}\n{after}" if after else question
    return f"{before}\n\n{question}" if before else question


def answered(
    row: Row, chosen: Any, rejected: Any, parts: dict[str, str], calls: bool, **more: float
) -> Pair:
    """A pair of messages from the question of a row and two answers.

    Raises:
        Fault: one of them is none.
    """
    question = row.get(parts.get("question", "prompt"))
    texts = [value for value in (question, chosen, rejected) if isinstance(value, str)]
    if "again" in parts and len(texts) == 3 and all(text.startswith(question) for text in texts):
        chosen, rejected = (text[len(question) :].lstrip() for text in texts[1:])
    bare = asked(row, parts, calls)
    prompt = begun(bare, row, parts, calls)
    chosen, rejected = (as_messages(value, "assistant", calls) for value in (chosen, rejected))
    for again in (prompt, bare):  # the prompt again in both
        if again and chosen[: len(again)] == rejected[: len(again)] == again:
            chosen, rejected = chosen[len(again) :], rejected[len(again) :]
            break
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def parted(chosen: Any, rejected: Any) -> Pair:
    """Two conversations, or two texts, as the prompt with which both begin and what differs.

    Raises:
        Fault: they do not begin alike.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Fault("mixed", "one of chosen and rejected is text, the other is not")
    if not chosen or not rejected:
        raise Fault("empty", "rejected" if chosen else "chosen")
    if chosen[0] != rejected[0]:
        texts = isinstance(chosen, str)
        where = "they do not begin alike" if texts else where_they_part(chosen, rejected)
        raise Fault("prompts_differ", where)
    return extract_prompt({"chosen": chosen, "rejected": rejected})


def conversations(row: Row, chosen: Any, rejected: Any, parts: dict, calls: bool) -> Pair:
    both = (as_messages(value, "", calls) for value in (chosen, rejected))
    pair = parted(*both)
    if not pair["prompt"]:
        return pair
    return pair | {"prompt": begun(pair["prompt"], row, parts, calls)}


def dialogue(row: Row, chosen: Any, rejected: Any, parts: dict, chat: bool) -> Pair:
    """A pair from dialogues as text: the prompt is a column, or what both begin with.

    Raises:
        Fault: they begin otherwise, or are no such dialogues.
    """
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, str):
            raise Fault("mixed", f"{name} is no text")
    if "question" in parts:
        (prompt,) = need(row, parts["question"])
        if not asks(prompt):
            raise Fault("wrong_role", f"{parts['question']} does not end with Assistant:")
        if chosen.startswith(prompt) and rejected.startswith(prompt):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        prompt, chosen = spoken(chosen)
        other, rejected = spoken(rejected)
        if prompt != other:
            where = where_they_part(turns_of(prompt.strip()), turns_of(other.strip()))
            raise Fault("prompts_differ", where)
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if TURN.search(text):  # a model that learned it would speak for the user
            raise Fault("wrong_role", f"{name} goes on with {TURN.search(text)[0].strip()}")
    if not chat:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    turns = turns_of(prompt.strip())[:-1]
    chosen, rejected = (as_messages(text.strip(), "assistant") for text in (chosen, rejected))
    return {"prompt": begun(turns, row, parts, True), "chosen": chosen, "rejected": rejected}


def to_pair(
    row: Row, layout: str, chat: bool, parts: dict[str, str] | None = None, calls: bool = True
) -> Pair:
    """One row as `prompt`, `chosen` and `rejected`, each messages or text.

    Args:
        layout: a key of LAYOUTS; rows of "scored" must have been paired to "question" ones.
        chat: whether the tokenizer has a chat template, for dialogues that are text.
        parts: which column plays which part in all rows of the data set; None to tell by this one.
        calls: whether the chat template renders `tool_calls`.

    Raises:
        Fault: the row is no such pair.
    """
    parts = told([row], layout)[1] if parts is None else parts
    if layout == "rated":
        best, worst, scores = rated(row, parts)
        return answered(row, best, worst, parts, calls, **scores)
    if layout == "compared":
        better, worse = compared(row, parts)
        if whole(better) and whole(worse):
            pair = conversations(row, better, worse, parts, calls)
            prompt, both = pair["prompt"], (pair["chosen"], pair["rejected"])
            # A user goes on after the turn in which two models' answers part.
            if prompt and any(turn.get("role") == "user" for each in both for turn in each[:-1]):
                raise Fault("own_turns", where_they_part(*both, before=len(prompt)))
            return pair
        return answered(row, better, worse, parts, calls)
    chosen, rejected = need(row, *(parts.get(name, name) for name in ("chosen", "rejected")))
    if layout == "dialogue":
        return dialogue(row, chosen, rejected, parts, chat)
    if layout == "implicit":
        if isinstance(rejected, str) and parts.get("chosen") == "messages":
            rejected = [*as_messages(chosen, "")[:-1], {"role": "assistant", "content": rejected}]
        if isinstance(chosen, str) or isinstance(rejected, str):
            return parted(chosen, rejected)
        return conversations(row, chosen, rejected, parts, calls)
    (prompt,) = need(row, parts.get("question", "prompt"))
    if layout != "explicit" or not isinstance(prompt, str):
        return answered(row, chosen, rejected, parts, calls)
    if "again" in parts and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
