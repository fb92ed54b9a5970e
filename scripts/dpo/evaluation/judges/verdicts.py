"""What a judge says of pairs of answers, kept line by line so that nothing is asked twice."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dpo.core.refusal import Refusal
from dpo.core.secrets import masked
from dpo.models.sampling import Prompt

Price = tuple[float, float] | None  # dollars per million tokens in and out


@dataclass
class Comparison:
    """Two answers to one prompt."""

    prompt: Prompt
    policy: str
    against: str


@dataclass
class Verdicts:
    """What a judge says of n comparisons.

    Attributes:
        preferred: shape (n,): 1 the policy's answer, 0 the other, 0.5 a tie, NaN where it is left
            out.
        rewards: shape (2, n), the policy's and the other's, of a judge that scores; NaN likewise.
        left_out: why, and how many.
        about: the judge's kind and name, and what it was asked with; no key.
        cost: what asking took, this time and before, of a judge that says so.
    """

    preferred: np.ndarray
    rewards: np.ndarray | None
    left_out: dict[str, int]
    about: dict[str, Any]
    cost: dict[str, Any] | None = None


class Kept:
    """judgements.jsonl: one JSON object a line, appended and flushed as each judgement comes.

    `entries` has those of earlier runs too, by their `key`: the name (hashing.py) of the judge and
    all that it was shown. Lines without one say who judged.

    Raises:
        Refusal: another process is judging into the file, or a line of it is no object.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(f"{path}: another process is judging into it: wait for it") from None
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole + newline))  # a kill in the middle of a write cuts a line off
        self.lines: list[dict] = []
        for number, line in enumerate(filter(None, whole.split(b"\n")), start=1):
            try:
                self.lines.append({**json.loads(line)})
            except (TypeError, ValueError) as error:  # a TypeError of what is no object
                raise Refusal(f"{path}, line {number}: {error}: take the line out") from error
        self.entries = {line["key"]: line for line in self.lines if "key" in line}

    def again(self, keys: Iterable[str]) -> str:
        """How to have a judge asked again that has answered, and not as it should."""
        if not any(key in self.entries for key in keys):
            return ""
        return f". What it said is kept: move {self.file.name} away, and it is asked again"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def introduce(self, about: dict[str, Any]) -> None:
        """Write who judges, unless an earlier run has."""
        if {"about": about} not in self.lines:
            self.append({"about": about})

    def append(self, entry: dict[str, Any]) -> None:
        entry = masked(entry)
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        self.lines.append(entry)
        if "key" in entry:
            self.entries[entry["key"]] = entry


def left_out(
    keys: list[tuple[str, str]], entries: dict[str, dict], failed: dict[str, str], field: str
) -> dict[str, int]:
    """Why comparisons are left out, the most frequent reason first.

    Args:
        keys: of the two judgements that each comparison is made of.
        failed: key → reason, of judgements that were not made.
        field: what is None in one that was made and does not count; its `reason` says why.
    """
    reasons: Counter[str] = Counter()
    for pair in keys:
        made = [entries.get(key, {"reason": failed.get(key)}) for key in pair]
        reasons.update([e["reason"] for e in made if e.get(field) is None][:1])
    return dict(reasons.most_common())


def cost(judgements: list[dict[str, Any]], price: Price) -> dict[str, Any]:
    """Tokens as the endpoint counts them, and dollars where the price of a million is known."""
    counted = [judgement["tokens"] for judgement in judgements if judgement["tokens"]]
    into, out = np.array(counted, dtype=int).reshape(-1, 2).sum(axis=0).tolist()
    uncounted = len(judgements) - len(counted)
    found = {"requests": len(judgements), "tokens_in": into, "tokens_out": out}
    found |= {"requests_without_count": uncounted} if uncounted else {}
    return found | ({"dollars": (into * price[0] + out * price[1]) / 1e6} if price else {})


def money(cost: dict[str, Any]) -> str:
    dollars = f", ${cost['dollars']:.4f}" if "dollars" in cost else ""
    return f"{cost['tokens_in'] + cost['tokens_out']:,} tokens{dollars}"
