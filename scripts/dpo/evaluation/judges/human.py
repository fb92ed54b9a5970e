"""A person as judge: two answers in the terminal, without names."""

import sys
from collections import Counter

import numpy as np
from rich.console import Console
from rich.text import Text

from dpo.core.hashing import name_of
from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.evaluation.judges.verdicts import Comparison, Kept, Verdicts
from dpo.models.sampling import told, turns

FIRST_IS_BETTER = {"1": 1.0, "2": 0.0, "3": 0.5}
QUESTION = "Which is better, 1 or 2? (3 neither, s skip, q quit and keep) "
SKIPPED, QUIT = "skipped by hand", "not judged yet: the same command goes on"


def check() -> None:
    """Raises Refusal if nobody sits at the terminal."""
    if not sys.stdin.isatty():
        raise Refusal("JUDGE=hand asks you, and this is no terminal: run it in one")


def judge(comparisons: list[Comparison], kept: Kept) -> Verdicts:
    """Ask for every comparison that was not judged yet, until the person quits. Identical answers
    are a tie, and nobody is asked. The key of a comparison is a hash, and tells which answer is
    shown first: chance, and the same when it is shown again."""
    differ = [place for place, each in enumerate(comparisons) if each.policy != each.against]
    if differ:
        check()
    about = {"kind": "hand", "name": "hand", "question": QUESTION.strip()}
    kept.introduce(about)
    console = Console()
    left_out: Counter[str] = Counter()
    preferred = np.full(len(comparisons), 0.5)
    if alike := len(comparisons) - len(differ):
        print(f"{alike} of {len(comparisons)} pairs are identical answers: ties, not asked")
    for number, place in enumerate(differ, start=1):
        compared = comparisons[place]
        key = name_of(("hand", turns(compared.prompt), compared.policy, compared.against))
        swapped = int(key, 16) % 2 == 1
        if key not in kept.entries:
            if not left_out[QUIT]:
                console.rule(f"{number} of {len(differ)}")
                show(console, compared, swapped)
                choice = ask()
            if left_out[QUIT] or choice in "sq":
                left_out[QUIT if left_out[QUIT] or choice == "q" else SKIPPED] += 1
                preferred[place] = np.nan
                continue
            first = "against" if swapped else "policy"
            kept.append({"key": key, "choice": choice, "shown_first": first})
        better = FIRST_IS_BETTER[kept.entries[key]["choice"]]
        preferred[place] = 1 - better if swapped else better
    return Verdicts(preferred, None, dict(+left_out), about)


def show(console: Console, compared: Comparison, swapped: bool) -> None:
    answers = [compared.policy, compared.against]
    parts = [(message["role"], told(message)) for message in turns(compared.prompt)]
    parts += zip(("answer 1", "answer 2"), answers[::-1] if swapped else answers, strict=True)
    for heading, text in parts:
        console.print(Text(visible(heading), "bold"))
        console.print(Text(visible(text)), "\n", sep="")


def ask() -> str:
    while True:
        try:
            choice = input(QUESTION).strip().lower()[:1]
        except EOFError:
            return "q"
        if choice in {*FIRST_IS_BETTER, "s", "q"}:
            return choice
