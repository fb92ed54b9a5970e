"""A judge that is you: two answers in the terminal, and which one is better."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dpo.terminal import visible

if TYPE_CHECKING:
    from dpo.judges import Comparison

KEYS = "1 or 2: the better one; 3: a tie; s: skip; q: keep what was said, and end"


def check() -> None:
    """See that somebody is there.

    Raises:
        SystemExit: the input is no terminal.
    """
    if not sys.stdin.isatty():
        raise SystemExit("JUDGE=hand asks you, and this is no terminal: run it in one")


def ask(seed: int) -> Callable[[list[Comparison]], Iterator[tuple[int, dict]]]:
    """The answers of each pair in an order drawn by the seed, and nothing that tells whose they
    are."""

    def asked(comparisons: list[Comparison]) -> Iterator[tuple[int, dict]]:
        print(f"{len(comparisons)} pairs of answers. {KEYS}")
        draw = random.Random(seed)
        for at, pair in enumerate(comparisons):
            first_is_policy = draw.random() < 0.5
            shown = (pair.policy, pair.against) if first_is_policy else (pair.against, pair.policy)
            print(f"\n── {at + 1} of {len(comparisons)} " + "─" * 40)
            print(visible(said(pair.prompt)))
            for number, answer in enumerate(shown, start=1):
                print(f"\n[{number}] {visible(answer)}")
            given = reply()
            if given == "q":
                for rest in range(at, len(comparisons)):
                    yield rest, {"left_out": "not asked yet"}
                return
            if given == "s":
                yield at, {"left_out": "skipped"}
            else:
                first = {"1": 1.0, "2": 0.0, "3": 0.5}[given]
                yield at, {"preferred": first if first_is_policy else 1 - first}

    return asked


def reply() -> str:
    while True:
        given = input("\nBetter: ").strip().lower()
        if given in ("1", "2", "3", "s", "q"):
            return given
        print(KEYS)


def said(prompt: list[dict] | str) -> str:
    """A prompt as text, with who spoke where there was more than one turn."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
