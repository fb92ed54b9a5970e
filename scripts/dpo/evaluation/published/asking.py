"""A judge asked in a published suite's own words, which are read from the suite's own files."""

import re
from collections.abc import Callable
from typing import Any

import openai

from dpo.core.hashing import name_of
from dpo.core.refusal import Refusal
from dpo.evaluation.judges import endpoint
from dpo.evaluation.judges.endpoint import Asking, Price
from dpo.evaluation.judges.verdicts import Kept

CHARACTERS = 4  # of a token of English, about: for a cost that is said before anything is asked


class InItsWords(Asking):
    """Requests that are messages already."""

    def messages(self, asked: list[dict[str, str]]) -> list[dict[str, str]]:
        return asked


def ask_all(
    url: str,
    model: str,
    requests: dict[Any, list[dict[str, str]]],
    kept: Kept,
    verdict_of: Callable[[str], Any],
    max_tokens: int,
    price: Price,
    parallel: int,
    timeout: float,
) -> tuple[dict[Any, Any], dict[str, int], dict[str, Any]]:
    """What a judge says to requests, each messages, by whatever names them. It is told first what
    this may cost at most; what it said before is not asked again.

    Returns the verdicts of those that have one, why others have none and how many, and the cost.

    Raises:
        Refusal: the endpoint refuses the key or the model, or gives no verdict.
    """
    keys = {name: name_of((url, model, max_tokens, each)) for name, each in requests.items()}
    missing = {
        key: (str(name), requests[name]) for name, key in keys.items() if key not in kept.entries
    }
    print(before(missing, max_tokens, price))

    asking = InItsWords(
        openai.AsyncOpenAI(**endpoint.settings(url, timeout)),
        model,
        kept,
        [key for key in keys.values() if key in kept.entries],
        price,
    )
    asking.max_tokens, asking.verdict_of = max_tokens, verdict_of
    asking.carry_out(url, missing, parallel)
    found, left_out = {}, dict[str, int]()
    for name, key in keys.items():
        entry = kept.entries.get(key, {"reason": asking.failed.get(key)})
        if entry.get("verdict") is None:
            left_out[entry["reason"]] = left_out.get(entry["reason"], 0) + 1
        else:
            found[name] = entry["verdict"]
    if not found:
        why = ", ".join(f"{reason} ({count})" for reason, count in left_out.items())
        raise Refusal(f"the judge at {url} gave no verdict: {why}")
    return found, left_out, asking.cost()


def before(missing: dict[str, tuple[str, list]], max_tokens: int, price: Price) -> str:
    """What asking may cost, in words."""
    into = sum(len(turn["content"]) for _, each in missing.values() for turn in each) / CHARACTERS
    most = len(missing) * max_tokens
    said = (
        f"To ask: {len(missing):,} requests, about {into:,.0f} tokens in and {most:,} out at most"
    )
    return said + (f", ${(into * price[0] + most * price[1]) / 1e6:,.2f} at most" if price else "")


RATING = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def rating_of(said: str) -> float | None:
    """The first rating in double brackets, else in single ones: fastchat/llm_judge/common.py."""
    found = next((match for form in RATING if (match := form.search(said))), None)
    return float(found[1]) if found else None
