"""Pairs of the reference's own answers, and the same in capitals, which it hardly ever writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo.core import files

SPLITS = ("train", "test")
SIDES = ("chosen", "rejected")
PLAIN, CAPITALS = "as they were", "in capitals"
WRITES = {PLAIN: str, CAPITALS: str.upper}


def in_capitals(text: str) -> bool:
    """Whether nine of ten letters are capital ones."""
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and sum(map(str.isupper, letters)) >= 0.9 * len(letters)


def pair_of(row: dict[str, Any], write: Callable[[str], str]) -> dict[str, Any] | None:
    """The best of a prompt's scored answers against the worst, each the first of its score,
    rewritten; None where they do not differ in score."""
    whole = [answer for answer in row["answers"] if answer["why"] is None]
    if len({answer["score"] for answer in whole}) < 2:
        return None
    best = max(whole, key=lambda answer: answer["score"])
    worst = min(whole, key=lambda answer: answer["score"])
    said = [[{"role": "assistant", "content": write(each["text"])}] for each in (best, worst)]
    scores = {"vader_chosen": best["score"], "vader_rejected": worst["score"]}
    return {"prompt": row["prompt"], **dict(zip(SIDES, said, strict=True)), **scores}


def write_data(
    candidates: Path, into: Path, held_out: int, write: Callable[[str], str]
) -> dict[str, int]:
    """Write the pairs of both splits, of the held-out ones this many. Returns how many of each."""
    counts, rows = {}, files.read_lines(candidates)
    into.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        of_split = [row for row in rows if row["split"] == split]
        found = [pair for row in of_split if (pair := pair_of(row, write))]
        found = found[:held_out] if split == "test" else found
        files.write_lines(into / f"{split}.jsonl", found)
        counts[split] = len(found)
    return counts
