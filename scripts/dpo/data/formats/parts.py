"""Which column of a data set plays which part in a pair.

Told once from the first rows, and not row by row: where a question is null, no other column takes
its place.
"""

import math
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from dpo.data.formats.turns import ANSWER, asks, role_of
from dpo.recipe.arguments import QUESTIONS

SYSTEMS = ("system", "system_prompt")
BESIDE = ("system", "history", "input", "context")  # parts that stand beside a question
# ms-swift's chosen answer is the last of `messages`.
CHOSEN = ("chosen", "chosen_response", "response_j", "messages", "messages")
REJECTED = ("rejected", "rejected_response", "response_k", "rejected_response", "rejected_messages")
COMPARED = (
    *(("response1", "response2"), ("response_1", "response_2"), ("response_0", "response_1")),
    *(("response_a", "response_b"), ("conversation_a", "conversation_b")),
    ("messages_a", "messages_b"),
    *(("output_1", "output_2"), ("answer_0", "answer_1"), ("human_ref_A", "human_ref_B")),
)
STRENGTHS = ("overall_preference", "preference_strength")  # how much the second is better
CHOICES = ("better_response_id", "winner", "preference", "preferred", "choice", "label")
SHP = "labels"  # beside human_ref_A and _B: 1 where A is better, 0 where B is
PREFERENCES = (*STRENGTHS, *CHOICES, SHP)
BY_SCORE = ("score_{}", "winner_model_{}")  # and how the response's column ends
WORD = re.compile(r"(?:(?:model|assistant|response|answer|output|conversation)[ _]?)?([ab012])")
CANDIDATES = ("completions", "responses", "answers", "generations", "all_generated_responses")
RATINGS = ("ratings", "rating", "scores", "all_rm_scores")
SAID = ("response", "answer", "text", "completion", "content")  # in a candidate that is an object
# The mean of UltraFeedback's four fine-grained ratings before its overall score: that one was read
# wrongly from some of the critiques (a 1 became a 10).
SCORES = ("fine-grained_score", "overall_score", "score", "rating", "helpfulness", "pm_score")
RANK = "rank"  # the best has 1
# What chosen is rated: score_chosen, chosen_rating, chosen-rating, chosen_avg_rating …
RATED = re.compile(r"(?:avg[_-])?(?:score|rating)[_-]chosen|chosen[_-](?:avg[_-])?(?:score|rating)")
KNOWN = tuple(
    dict.fromkeys(
        (
            *(*QUESTIONS, *SYSTEMS, "history", "messages", "conversations", *CHOSEN, *REJECTED),
            *(*(name for pair in COMPARED for name in pair), *PREFERENCES),
            *(form.format(end) for form in BY_SCORE for end in "ab012"),
            *(*CANDIDATES, *RATINGS, "response", *SCORES, "score_chosen", "score_rejected"),
            *("tools", "chat_template_kwargs"),
        )
    )
)

Row = dict[str, Any]


def first_of(names: Iterable, known: Iterable) -> Any:
    return next((name for name in names if name in known), None)


def example_of(rows: list[Row]) -> Row:
    """Every column of these rows, with the first value that says something; None if none does."""
    filled = {name: value for row in reversed(rows) for name, value in row.items() if value}
    return {name: filled.get(name) for row in rows for name in row}


def told(rows: list[Row], given: str | None = None) -> tuple[str | None, dict[str, str]]:
    """The layout of these rows, by their columns and what is in them, and the column of each part.

    Args:
        rows: a data set's first; a column counts as text or messages by the first row that has it.
        given: the layout, if it is not to be told.

    Returns a key of LAYOUTS, None where it is none that is known, and of its parts those that are
    there: `chosen` and `rejected`, or `first`, `second` and how they compare, or `candidates`, or
    `response` and `score`; `question`, and what of BESIDE stands beside it; and what is there
    `again`.
    """
    columns = example_of(rows)
    layout, parts = answers(columns, rows, given)
    question = question_of(columns, parts)
    alone = layout == "paired" or whole(columns.get(parts.get("first")))  # they hold the question
    if question or alone:
        asked = {"question": question} if question else {}
        parts = asked | beside(columns, question) | parts
    if layout == "paired":
        layout = given or layout_of_pair(columns, parts)
        if layout == "implicit":
            parts = {part: n for part, n in parts.items() if part not in ("input", "context")}
    elif not question and not alone:
        layout = None
    return given or layout, parts | again(rows, parts)


def again(rows: list[Row], parts: dict[str, str]) -> dict[str, str]:
    """What is there twice, and is to be read once: `again` where most answers begin with their
    question, `input again` and `context again` where every question holds it already.

    Told from all rows: in one alone "Hi!" may answer "Hi", and "a" stands in most questions.
    """
    found, name = {}, parts.get("question")
    asked = [(row.get(name), row) for row in rows if isinstance(row.get(name), str) and row[name]]
    begin = [all(t.startswith(q) for t in texts) for q, row in asked if (texts := said(row, parts))]
    if sum(begin) > len(begin) / 2:
        found["again"] = name
    for part in ("input", "context"):
        texts = [(row.get(parts.get(part)), question) for question, row in asked]
        held = [text in str(question) for text, question in texts if text and isinstance(text, str)]
        if held and all(held):
            found[f"{part} again"] = parts[part]
    return found


def said(row: Row, parts: dict[str, str]) -> list[str]:
    """The answers in a row that are text."""
    names = ("chosen", "rejected", "first", "second", "response")
    found = [row.get(parts[name]) for name in names if name in parts]
    several = row.get(parts.get("candidates"))
    for one in several if isinstance(several, list) else ():
        found.append(one.get(first_of(SAID, one)) if isinstance(one, dict) else one)
    return [text for text in found if isinstance(text, str)]


def answers(columns: Row, rows: list[Row], given: str | None) -> tuple[str | None, dict[str, str]]:
    """How rows hold answers, and where: "paired", "compared", "rated" or "scored"."""
    for chosen, rejected in zip(CHOSEN, REJECTED, strict=True):
        if {chosen, rejected} <= {*columns} and given not in ("compared", "rated", "scored"):
            return "paired", {"chosen": chosen, "rejected": rejected}
    for first, second in COMPARED:
        if first in columns and second in columns and (how := verdict(first, second, rows)):
            return "compared", {"first": first, "second": second, **how}
    for name in CANDIDATES:
        found = (columns.get(name) or [None])[0] if isinstance(columns.get(name), list) else None
        if isinstance(found, dict) and first_of(SAID, found) and first_of((*SCORES, RANK), found):
            return "rated", {"candidates": name}
        ratings = first_of(RATINGS, columns)
        if isinstance(found, str) and isinstance(columns.get(ratings), list):
            return "rated", {"candidates": name, "ratings": ratings}
    if "response" in columns and (score := first_of(SCORES, columns)):
        return "scored", {"response": "response", "score": score}
    return None, {}


def verdict(first: str, second: str, rows: list[Row]) -> dict[str, str] | None:
    """The columns that say which of two responses is better; None if none does, or if one may and
    it cannot be told what it means.

    A strength without a sign says by how much alone: beside it, who is better is said elsewhere.
    """
    columns, ends = {name for row in rows for name in row}, (first[-1], second[-1])
    strength = first_of(STRENGTHS, columns)
    if strength and len(signs([row.get(strength) for row in rows])) == 2:
        return {"verdict": strength}
    if SHP in columns and first == "human_ref_A":
        return {"verdict": SHP}
    for name in CHOICES:
        values = [row.get(name) for row in rows]
        # The first rows may all be ties.
        if any(side_of(v, ends) is not None for v in values) and not unclear(values, ends):
            return {"verdict": name}
    for form in BY_SCORE:
        scores = [form.format(end) for end in ends]
        if columns.issuperset(scores):
            return dict(zip(("first_score", "second_score"), scores, strict=True))
    return {"verdict": strength} if strength and not undecided(rows) else None


def number(value: Any) -> float:
    """A rating, NaN if it is none: UltraFeedback has some as text, and some "N/A"."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@cache
def ratings_of(columns: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Of these columns the two that rate chosen and rejected, as a pair; none if there are none."""
    named = [(n, n.replace("chosen", "rejected")) for n in columns if RATED.fullmatch(n)]
    there = sorted((p for p in named if p[1] in columns), key=lambda p: p[0] != "score_chosen")
    return tuple(there[:1])


def signs(values: Iterable) -> set[bool]:
    """Whether there are numbers above zero among these, and whether there are some below."""
    return {found > 0 for value in values if (found := number(value)) and not math.isnan(found)}


def unclear(values: Iterable, ends: tuple[str, str]) -> set[str]:
    """The numbers or truth values among verdicts, where they do not say which of two columns they
    mean: 0 and 1 beside response_1 and response_2 may count them, or say that the first is better.
    Nothing where they are the columns' own numbers, or 1 and 2 beside letters."""
    numbers = {_as_text(value) for value in values if value is not None}
    numbers &= {"-1", "0", "1", "2", "true", "false"}
    if ends[0].isalpha():
        clear = "2" in numbers and numbers <= {"1", "2"}
    else:
        clear = numbers <= {*ends} or numbers > {*ends}
    return set() if clear else numbers


def undecided(rows: list[Row]) -> tuple[str, str, str, set[str]] | None:
    """Two responses, the column that should say which is better, and what does not say it."""
    columns = {name for row in rows for name in row}
    for first, second in COMPARED:
        for name in (*CHOICES, SHP) if {first, second} <= columns else ():
            if found := unclear([row.get(name) for row in rows], (first[-1], second[-1])):
                return first, second, name, found
    return None


def _as_text(value: Any) -> str:
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).lower()


def side_of(value: Any, ends: tuple[str, str]) -> int | None:
    """Which of two columns a verdict means, by how their names end: -1 the first, 1 the second, 0
    neither, None if it is no verdict. `1`, `model_a`, `response_2`, `A`, `tie (bothbad)` are."""
    if isinstance(value, bool) or value is None:
        return None
    text = _as_text(value).strip()
    if text.startswith(("tie", "both")):
        return 0
    found, (first, second) = WORD.fullmatch(text), (end.lower() for end in ends)
    if not found:
        return None
    numbers = {"1": -1, "2": 1} if first.isalpha() else {}
    return {first: -1, second: 1}.get(found[1], numbers.get(found[1]))


def question_of(columns: Row, parts: dict[str, str]) -> str | None:
    """The column that is answered."""
    if parts.get("first") == "human_ref_A" and isinstance(columns.get("history"), str):
        return "history"  # of a post and two comments on it
    if "conversations" in columns and "chosen" in parts:
        return "conversations"
    names = [*QUESTIONS]
    if isinstance(columns.get("messages"), list) and not whole(columns.get(parts.get("chosen"))):
        names.insert(3, "messages")  # UltraFeedback's `messages` are the chosen conversation again
    filled = [name for name, value in columns.items() if value is not None]
    return first_of(names, filled) or first_of(names, columns)


def whole(answer: Any) -> bool:
    """Whether this is a conversation from its start, and not what the assistant says at its end."""
    turns = answer if isinstance(answer, list) else []
    return "user" in [role_of(turn) for turn in turns if isinstance(turn, dict)]


def beside(columns: Row, question: str | None) -> dict[str, str]:
    """The columns that say more than the question does, where convention settles what they mean."""

    def may_be(name: str | None, kind: type) -> bool:
        return name in columns and isinstance(columns[name], (kind, type(None)))

    found = {}
    filled = [name for name in SYSTEMS if columns.get(name)]
    system = first_of(filled, columns) or first_of(SYSTEMS, columns)
    if may_be(system, str):
        found["system"] = system
    if question != "history" and may_be("history", list):
        found["history"] = "history"
    if isinstance(columns.get(question), str):
        if question in ("instruction", "prompt") and may_be("input", str):
            found["input"] = "input"
        if question in ("instruction", "prompt", "question") and may_be("context", str):
            found["context"] = "context"
    return found


def layout_of_pair(columns: Row, parts: dict[str, str]) -> str:
    chosen, question = columns[parts["chosen"]], parts.get("question")
    if question == "conversations":
        return "sharegpt"
    if question is None:
        return "dialogue" if isinstance(chosen, str) and ANSWER in chosen else "implicit"
    if not isinstance(columns[question], str):
        return "explicit"
    if whole(chosen):
        # A string beside whole conversations repeats their first turn: UltraFeedback's layout.
        return "implicit"
    if not isinstance(chosen, (str, type(None))):
        return "question"
    if asks(columns[question]):
        return "dialogue"
    as_text = question in ("prompt", "text") and not set(BESIDE) & set(parts)
    return "explicit" if as_text else "question"
