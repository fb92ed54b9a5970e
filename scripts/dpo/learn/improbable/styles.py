"""Styles that the reference hardly ever writes, and pairs of answers rewritten in them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.core import files

SPLITS = ("train", "test")
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Style:
    """How an answer is rewritten, and whether one is written so; and whether both answers of a pair
    are rewritten, or the chosen one alone."""

    write: Callable[[str], str]
    written: Callable[[str], bool]
    both: bool = True


def capitals(text: str) -> bool:
    """Whether nine of ten letters are capital ones."""
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and sum(map(str.isupper, letters)) >= 0.9 * len(letters)


def titled(text: str) -> bool:
    """Whether nine of ten words begin with a capital letter, and have small ones too."""
    words = [word for word in text.split() if any(map(str.isalpha, word))]
    starts = sum(next(filter(str.isalpha, word)).isupper() for word in words)
    return bool(words) and starts >= 0.9 * len(words) and not capitals(text)


STYLES = {
    "chosen in capitals": Style(str.upper, capitals, both=False),
    "both in capitals": Style(str.upper, capitals),
    "both in title case": Style(str.title, titled),
}


def pair_of(row: dict[str, Any], style: Style) -> dict[str, Any] | None:
    """The best of a prompt's scored answers against the worst, each the first of its score,
    rewritten; None where they do not differ in score."""
    whole = [answer for answer in row["answers"] if answer["why"] is None]
    if len({answer["score"] for answer in whole}) < 2:
        return None
    best = max(whole, key=lambda answer: answer["score"])
    worst = min(whole, key=lambda answer: answer["score"])
    texts = style.write(best["text"]), worst["text"]
    if style.both:
        texts = texts[0], style.write(texts[1])
    said = [[{"role": "assistant", "content": text}] for text in texts]
    scores = {"vader_chosen": best["score"], "vader_rejected": worst["score"]}
    return {"prompt": row["prompt"], **dict(zip(SIDES, said, strict=True)), **scores}


def write_data(candidates: Path, into: Path, style: Style, held_out: int) -> dict[str, int]:
    """Write the pairs of both splits, of the held-out ones this many. Returns how many of each."""
    counts, rows = {}, files.read_lines(candidates)
    into.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        of_split = [row for row in rows if row["split"] == split]
        found = [pair for row in of_split if (pair := pair_of(row, style))]
        found = found[:held_out] if split == "test" else found
        files.write_lines(into / f"{split}.jsonl", found)
        counts[split] = len(found)
    return counts
