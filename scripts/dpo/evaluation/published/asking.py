"""A judge asked in a published suite's own words, which are read from the suite's own files."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import openai

from dpo.core.hashing import name_of
from dpo.core.refusal import Refusal
from dpo.evaluation.command import prices
from dpo.evaluation.judges import endpoint
from dpo.evaluation.judges.endpoint import Asking, Price
from dpo.evaluation.judges.verdicts import Kept

CHARACTERS = 4  # of a token of English, about: for a cost that is said before anything is asked
NOT_ASKED = {"samples": 1, "skip_pairs": False, "suite_tasks": None, "suite_limit": None}
Messages = list[dict[str, str]]
Reading = Callable[[Any], dict[str, Any]]  # of a completion as endpoint.read gives it


@dataclass
class Judge:
    """Who judges a suite: the model behind an endpoint, and how the suite has it asked: `how` are
    the arguments of a chat completion, and `published` is by whom the suite's own figures are."""

    url: str
    model: str
    how: dict[str, Any]
    published: str
    price: Price
    parallel: int
    timeout: float

    @classmethod
    def of(cls, args: argparse.Namespace, how: dict[str, Any], published: str) -> Self:
        """The judge that the arguments of evaluate.py name.

        Raises:
            Refusal: the price is none.
        """
        price = prices(args.judge_price)
        rest = (args.judge_parallel, args.judge_timeout)
        return cls(args.judge.rstrip("/"), args.judge_model, how, published, price, *rest)

    def about(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.model, "published": self.published, **self.how}


def check_flags(args: argparse.Namespace) -> None:
    """Raises Refusal where the arguments of evaluate.py set what a suite sets."""
    sets = NOT_ASKED | ({"temperature": None} if args.suite == "mt_bench" else {})
    if given := [key for key, default in sets.items() if getattr(args, key) != default]:
        why = "the suite sets this itself: leave it out"
        why += "; --limit is for its first questions" * ("suite_limit" in given)
        raise Refusal(f"SUITE={args.suite}: {', '.join(given)}: {why}")


def check_url(args: argparse.Namespace) -> None:
    """Raises Refusal where no endpoint is to judge."""
    if not endpoint.is_url(args.judge):
        raise Refusal(f"SUITE={args.suite} is judged by an endpoint: JUDGE=https://… JUDGE_MODEL=…")


class InItsWords(Asking):
    """Requests that are messages already, with the settings of their suite.

    Args:
        reading: the judgement in a completion.
    """

    def __init__(self, how: dict[str, Any], reading: Reading, *rest: Any):
        super().__init__(*rest)
        self.how, self.reading = how, reading

    def messages(self, asked: Messages) -> Messages:
        return asked

    def read(self, answer: Any) -> dict[str, Any]:
        return self.reading(answer)


def ask_all(
    judge: Judge, requests: dict[Any, Messages], kept: Kept, reading: Reading
) -> tuple[dict[Any, Any], dict[str, int], dict[str, Any]]:
    """What a judge says to requests, by whatever names them. It is told first what this may cost at
    most; what it said before is not asked again.

    Returns the verdicts of those that have one, why others have none and how many, and the cost.

    Raises:
        Refusal: the endpoint refuses the key or the model, or gives no verdict.
    """
    keys = {
        name: name_of((judge.url, judge.model, judge.how, each)) for name, each in requests.items()
    }
    missing = {
        key: (str(name), requests[name]) for name, key in keys.items() if key not in kept.entries
    }
    print(before(missing, judge.how["max_tokens"], judge.price))
    asking = InItsWords(
        judge.how,
        reading,
        openai.AsyncOpenAI(**endpoint.settings(judge.url, judge.timeout)),
        judge.model,
        kept,
        [key for key in {*keys.values()} if key in kept.entries],
        judge.price,
    )
    asking.carry_out(judge.url, missing, judge.parallel)
    found, left_out = {}, dict[str, int]()
    for name, key in keys.items():
        entry = kept.entries.get(key, {"reason": asking.failed.get(key)})
        if entry.get("verdict") is None:
            left_out[entry["reason"]] = left_out.get(entry["reason"], 0) + 1
        else:
            found[name] = entry["verdict"]
    if requests and not found:
        why = ", ".join(f"{reason} ({count})" for reason, count in left_out.items())
        again = kept.again(keys.values())
        raise Refusal(f"the judge at {judge.url} gave no verdict: {why}{again}")
    return found, left_out, asking.cost()


def before(missing: dict[str, tuple[str, Messages]], max_tokens: int, price: Price) -> str:
    """What asking may cost, in words."""
    into = sum(len(turn["content"]) for _, each in missing.values() for turn in each) / CHARACTERS
    most = len(missing) * max_tokens
    said = (
        f"To ask: {len(missing):,} requests, about {into:,.0f} tokens in and {most:,} out at most"
    )
    return said + (f", ${(into * price[0] + most * price[1]) / 1e6:,.2f} by these" if price else "")
