"""Of several responses in a row: which is chosen and which is rejected."""

import json
import math
from typing import Any

from dpo.data.formats.parts import (
    RANK,
    SAID,
    SCORES,
    SHP,
    STRENGTHS,
    Row,
    first_of,
    number,
    side_of,
)
from dpo.data.formats.turns import Fault


def need(row: Row, *names: str) -> list[Any]:
    """The values of columns.

    Raises:
        Fault: one is not there, or null.
    """
    for name in names:
        if row.get(name) is None:
            raise Fault("missing", name)
    return [row[name] for name in names]


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
        raise Fault("tie", f"all are rated {abs(scores[best]):g}")
    return best, worst


def rated(row: Row, parts: dict[str, str]) -> tuple[Any, Any, dict[str, float]]:
    """The best and the worst of a row's candidates, and their scores where they have some.

    Raises:
        Fault: no two can be told apart.
    """
    (candidates,) = need(row, parts.get("candidates", "completions"))
    ranked = False
    if "ratings" in parts:
        (ratings,) = need(row, parts["ratings"])
        if len(candidates) != len(ratings):
            raise Fault("unrated", f"{len(candidates)} responses, {len(ratings)} ratings")
        said, scores = candidates, [number(rating) for rating in ratings]
    else:
        if not isinstance(candidates, list) or not all(isinstance(c, dict) for c in candidates):
            raise Fault("not_messages", f"{parts.get('candidates')} are no list of objects")
        said = [candidate.get(first_of(SAID, candidate)) for candidate in candidates]
        ranked = not any(first_of(SCORES, candidate) for candidate in candidates)
        names = (RANK,) if ranked else SCORES
        scores = [number(candidate.get(first_of(names, candidate))) for candidate in candidates]
        scores = [-score for score in scores] if ranked else scores
    best, worst = best_and_worst(scores)
    need({"chosen": said[best], "rejected": said[worst]}, "chosen", "rejected")
    more = {"score_chosen": scores[best], "score_rejected": scores[worst]}
    return said[best], said[worst], {} if ranked else more


def compared(row: Row, parts: dict[str, str]) -> tuple[Any, Any]:
    """The better and the worse of two responses.

    Raises:
        Fault: neither is better, or nobody says which.
    """
    names = parts["first"], parts["second"]
    first, second = (turn_by_turn(row, name, parts) for name in names)
    side = preferred(row, parts)
    if math.isnan(side):
        raise Fault("unrated", f"preference {row.get(parts.get('verdict'))!r}")
    if side == 0:
        raise Fault("tie", "neither is preferred")
    return (second, first) if side > 0 else (first, second)


def preferred(row: Row, parts: dict[str, str]) -> float:
    """Below zero where the first response is better, above where the second is, NaN if neither
    column says so."""
    if "verdict" not in parts:
        first, second = need(row, parts["first_score"], parts["second_score"])
        return number(second) - number(first)
    name = parts["verdict"]
    (value,) = need(row, name)
    if name in STRENGTHS:
        return number(value)
    if name == SHP:
        return {1.0: -1.0, 0.0: 1.0}.get(number(value), math.nan)
    side = side_of(value, (parts["first"][-1], parts["second"][-1]))
    return math.nan if side is None else side


def turn_by_turn(row: Row, name: str, parts: dict[str, str]) -> Any:
    """A response; as a conversation where prompt and responses are lists of what was said in each
    turn, or such lists as JSON (LMSYS's at Kaggle).

    Raises:
        Fault: there are not as many answers as questions.
    """
    (response,) = need(row, name)
    asked, answers = (_texts(value) for value in (row.get(parts.get("question")), response))
    if asked is None:
        return response
    if answers is None or len(asked) != len(answers):
        raise Fault("not_messages", f"{name} is no list of {len(asked)} answers")
    turns = zip(asked, answers, strict=True)
    roles = ("user", "assistant")
    return [{"role": r, "content": c} for t in turns for r, c in zip(roles, t, strict=True)]


def _texts(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not value:
        return None
    return value if all(isinstance(text, (str, type(None))) for text in value) else None
