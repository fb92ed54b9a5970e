"""Any columns of preference data, as one pair in TRL's preference format: prompt, chosen, rejected.

A layout is told from the columns of the first rows; `--preference_layout` names it instead. A row
becomes a pair, or raises a Fault that says why it can't.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from trl import extract_prompt, maybe_convert_to_chatml

LAYOUTS = {
    "explicit": "prompt, chosen and rejected: messages, or plain text without a chat template",
    "implicit": "chosen and rejected, which both begin with the prompt",
    "dialogue": "chosen and rejected as text with turns that open with Human: and Assistant:",
    "question": "a question and two answers as plain text, with or without a system prompt",
    "sharegpt": "conversations with `from` and `value`, then chosen and rejected",
    "compared": "two responses, and how much the second is better than the first",
    "rated": "several rated completions of a prompt: the best against the worst",
    "scored": "one scored response a row: the best of a prompt's against the worst",
}
QUESTIONS = ("prompt", "question", "instruction", "input", "context", "text")
SYSTEMS = ("system", "system_prompt")
CHOSEN = ("chosen", "chosen_response")
REJECTED = ("rejected", "rejected_response")
COMPARED = (("response1", "response2"), ("response_1", "response_2"))
PREFERENCES = ("overall_preference", "preference_strength")
# The mean of UltraFeedback's four fine-grained ratings before its overall score: that one was read
# wrongly from some of the critiques (a 1 became a 10).
SCORES = ("fine-grained_score", "overall_score", "score", "rating", "helpfulness")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"

Pair = dict[str, Any]


class Fault(Exception):
    """Why a row is no pair to learn from: a key of lint.REASONS, and where in the row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def first_of(names: Iterable, known: Iterable) -> Any:
    return next((name for name in names if name in known), None)


def detect(rows: list[dict[str, Any]]) -> str | None:
    """The layout of these rows, by their columns and what is in them; None if it is none we know.

    `rows` are a data set's first; a column counts as text or messages by the first row that has it.
    """
    example = {key: value for row in reversed(rows) for key, value in row.items() if value}
    columns = {key for row in rows for key in row}
    question = first_of(QUESTIONS, columns)
    chosen = example.get(first_of(CHOSEN, columns))
    if not first_of(CHOSEN, columns) or not first_of(REJECTED, columns):
        if question and (columns >= {"completions"} or columns >= {"responses", "ratings"}):
            return "rated"
        if question and first_of(PREFERENCES, columns):
            return "compared"
        return "scored" if question and "response" in columns and score_column(columns) else None
    if "conversations" in columns:
        return "sharegpt"
    if question is None:
        spoken = isinstance(chosen, str) and ANSWER in chosen
        return "dialogue" if spoken else "implicit"
    if isinstance(example.get(question), str):
        if isinstance(chosen, list):
            # A string beside whole conversations repeats their first turn: UltraFeedback's layout.
            return "implicit" if len(chosen) > 1 else "question"
        if question not in ("prompt", "text") or first_of(SYSTEMS, columns):
            return "question"
    return "explicit"


def score_column(columns: Iterable[str]) -> str | None:
    return first_of(SCORES, columns)


def as_messages(value: Any, role: str) -> list[dict[str, Any]]:
    """Messages with `role` and `content`, from messages, ShareGPT's turns, one turn, or text.

    Raises:
        Fault: it is neither.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Fault("not_messages", f"{type(value).__name__} instead of messages")
    turns = maybe_convert_to_chatml({"messages": [dict(turn) for turn in turns]})["messages"]
    return [turn | {"role": ROLES.get(turn.get("role"), turn.get("role"))} for turn in turns]


def spoken(text: str) -> tuple[str, str]:
    """A dialogue as text, cut after its last `Assistant:` into prompt and completion, as the DPO
    paper's code cuts Anthropic's data.

    Raises:
        Fault: nobody answers.
    """
    prompt, mark, completion = text.rpartition(ANSWER)
    if not mark:
        raise Fault("wrong_role", "no turn opens with Assistant:")
    return prompt + mark, completion


def turns_of(text: str) -> list[dict[str, str]]:
    """A dialogue as text, as messages.

    Raises:
        Fault: something stands before the first turn.
    """
    before, *parts = TURN.split(text)
    if before.strip():
        raise Fault("wrong_role", f"nobody says what comes first: {before.strip():.40}")
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def number(value: Any) -> float:
    """A rating, NaN if it is none: UltraFeedback has some as text, and some "N/A"."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def best_and_worst(scores: list[float]) -> tuple[int, int]:
    """Where the best and the worst score stand.

    Raises:
        Fault: there are no two scores, or all are the same.
    """
    rated = [i for i, score in enumerate(scores) if not math.isnan(score)]
    if len(rated) < 2:
        raise Fault("unrated", f"{len(rated)} of {len(scores)} completions have a rating")
    best, worst = max(rated, key=scores.__getitem__), min(rated, key=scores.__getitem__)
    if scores[best] == scores[worst]:
        raise Fault("tie", f"all are rated {scores[best]:g}")
    return best, worst


def need(row: dict[str, Any], *names: str) -> list[Any]:
    """The values of columns.

    Raises:
        Fault: one is not there, or null.
    """
    for name in names:
        if row.get(name) is None:
            raise Fault("missing", name)
    return [row[name] for name in names]


def asked(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages before the answer: a system prompt, if the row has one, and the question."""
    name = first_of(QUESTIONS, [key for key, value in row.items() if value is not None])
    (question,) = need(row, name or "prompt")
    if name == "instruction" and row.get("input"):  # Alpaca's columns: the task, and what it is for
        question = f"{question}\n{row['input']}"
    system = row.get(first_of(SYSTEMS, row) or "")
    before = [{"role": "system", "content": system}] if system else []
    return before + as_messages(question, "user")


def answered(row: dict[str, Any], chosen: Any, rejected: Any, **more: float) -> Pair:
    answers = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": asked(row),
        **{name: as_messages(value, "assistant") for name, value in answers.items()},
        **more,
    }


def rated(row: dict[str, Any]) -> Pair:
    if row.get("completions") is not None:
        completions = row["completions"]
        if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
            raise Fault("not_messages", "completions are no list of objects")
        responses = [completion.get("response") for completion in completions]
        scores = [number(c.get(score_column(c) or "")) for c in completions]
    else:
        responses, ratings = need(row, "responses", "ratings")
        if len(responses) != len(ratings):
            raise Fault("unrated", f"{len(responses)} responses, {len(ratings)} ratings")
        scores = [number(rating) for rating in ratings]
    best, worst = best_and_worst(scores)
    scored = {"score_chosen": scores[best], "score_rejected": scores[worst]}
    return answered(row, *need({"chosen": responses[best]}, "chosen"), responses[worst], **scored)


def compared(row: dict[str, Any]) -> Pair:
    first, second, preference = need(
        row,
        *next((names for names in COMPARED if names[0] in row), COMPARED[0]),
        first_of(PREFERENCES, row) or PREFERENCES[0],
    )
    strength = number(preference)
    if math.isnan(strength):
        raise Fault("unrated", f"preference {preference!r}")
    if strength == 0:
        raise Fault("tie", "neither is preferred")
    chosen, rejected = (second, first) if strength > 0 else (first, second)
    return answered(row, chosen, rejected)


def to_pair(row: dict[str, Any], layout: str, chat: bool) -> Pair:
    """One row as `prompt`, `chosen` and `rejected`, each messages or text.

    Args:
        layout: a key of LAYOUTS; rows of "scored" must have been paired to "explicit" ones.
        chat: whether the tokenizer has a chat template, for dialogues that are text.

    Raises:
        Fault: the row is no such pair.
    """
    if layout == "rated":
        return rated(row)
    if layout == "compared":
        return compared(row)
    names = (first_of(CHOSEN, row) or CHOSEN[0], first_of(REJECTED, row) or REJECTED[0])
    chosen, rejected = need(row, *names)
    if layout == "question":
        return answered(row, chosen, rejected)
    if layout == "dialogue":
        for name, value in (("chosen", chosen), ("rejected", rejected)):
            if not isinstance(value, str):
                raise Fault("mixed", f"{name} is no text")
        prompt, chosen = spoken(chosen)
        other, rejected = spoken(rejected)
        if prompt != other:
            raise Fault("prompts_differ")
        if not chat:
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        row = {"prompt": turns_of(prompt)[:-1]}
        return answered(row, chosen.strip(), rejected.strip())
    if layout == "sharegpt":
        (prompt,) = need(row, "conversations")
        return answered({"prompt": prompt, **{k: row.get(k) for k in SYSTEMS}}, chosen, rejected)
    if layout == "implicit":
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise Fault("mixed", "one of chosen and rejected is text, the other is not")
        if not isinstance(chosen, str):
            chosen, rejected = as_messages(chosen, ""), as_messages(rejected, "")
        if not chosen or not rejected:
            raise Fault("empty", "rejected" if chosen else "chosen")
        if chosen[0] != rejected[0]:
            raise Fault("prompts_differ", "they do not begin alike")
        return extract_prompt({"chosen": chosen, "rejected": rejected})
    (prompt,) = need(row, "text" if "prompt" not in row and "text" in row else "prompt")
    if not isinstance(prompt, str):
        prompt = as_messages(prompt, "user")
        chosen, rejected = as_messages(chosen, "assistant"), as_messages(rejected, "assistant")
    if prompt and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:  # again in both
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
