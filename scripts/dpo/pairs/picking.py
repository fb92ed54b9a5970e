"""Which two of the answers to a prompt make a pair."""

from __future__ import annotations

import difflib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

DRAWN = "bradley-terry"
WAYS = {
    "best-worst": "the two that differ most in score",
    "best-random": "the best, and one of those with a lower score, by chance",
    "all": "every two that differ",
    "like-length": "of the two that differ, those whose lengths are closest",
    DRAWN: "the two that differ most, the label drawn by sigmoid(difference / label_temperature)",
}
REASONS = {
    "one_answer": "fewer than two answers are left to compare",
    "tie": "all answers have the same score",
    "margin": "no two differ by min_margin",
    "length": "no two that differ are of like length",
    "alike": "those that differ in score are almost the same text",
}


@dataclass
class Answer:
    """An answer that may be in a pair: its number, text, length in tokens, and score."""

    number: int
    text: str
    tokens: int
    score: float


@dataclass
class Picking:
    """How pairs are picked.

    Attributes:
        how: one of WAYS.
        min_margin: what two scores differ by at the least; they differ in any case.
        max_length_difference: tokens that two answers differ by at most; None for any.
        label_temperature: of `bradley-terry`: the lower, the fewer labels go against the scores.
        near_duplicate: two answers whose words are in common to this share make no pair; 1 leaves
            out those alone that have the same words.
    """

    how: str = "best-worst"
    min_margin: float = 0.0
    max_length_difference: int | None = None
    label_temperature: float = 1.0
    near_duplicate: float = 0.9

    def pick(self, prompt: str, answers: list[Answer]) -> tuple[list[tuple[int, int]], str | None]:
        """The pairs of a prompt, as numbers of the chosen and the rejected answer, or why there is
        none: a key of REASONS.

        Args:
            prompt: as text; what is drawn is drawn by it.
        """
        if len(answers) < 2:
            return [], "one_answer"
        differ = [pair for pair in itertools.permutations(answers, 2) if margin(*pair) > 0]
        far = [pair for pair in differ if margin(*pair) >= self.min_margin]
        most = self.max_length_difference
        like = [pair for pair in far if most is None or apart(*pair) <= most]
        found: list[tuple[int, int]] = []
        draw = random.Random(prompt)
        for better, worse in self.in_order(like, draw):
            if self.alike(better.text, worse.text):
                continue
            pair = better.number, worse.number
            found.append(pair if self.truthful(better, worse, draw) else pair[::-1])
            if self.how != "all":
                break
        if found:
            return found, None
        return (
            [],
            "tie" if not differ else "margin" if not far else "length" if not like else "alike",
        )

    def in_order(
        self, pairs: list[tuple[Answer, Answer]], draw: random.Random
    ) -> Iterator[tuple[Answer, Answer]]:
        """Pairs of the better and the worse answer, those that are wanted first. Sorting keeps the
        order of what is equal."""
        if self.how == "best-random":
            pairs = draw.sample(pairs, len(pairs))
            pairs.sort(key=lambda pair: -pair[0].score)
        elif self.how == "like-length":
            pairs = sorted(pairs, key=lambda pair: (apart(*pair), -margin(*pair)))
        else:
            pairs = sorted(pairs, key=lambda pair: -margin(*pair))
        return iter(pairs)

    def alike(self, one: str, other: str) -> bool:
        """Whether two texts are near-duplicates: twice the words that they have in common, in their
        order, as a share of the words of both."""
        if one == other:
            return True
        words = difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False)
        least = self.near_duplicate
        return words.real_quick_ratio() >= least and words.quick_ratio() >= least <= words.ratio()

    def truthful(self, better: Answer, worse: Answer, draw: random.Random) -> bool:
        """Whether the better answer is the chosen one: always, but where the label is drawn from
        the Bradley-Terry model (equation 1 of the DPO paper) with reward score / temperature."""
        if self.how != DRAWN:
            return True
        import torch  # late: pairs.py names the ways at once

        from dpo.losses import bradley_terry

        gap = torch.tensor(margin(better, worse) / self.label_temperature, dtype=torch.float64)
        return draw.random() < bradley_terry(gap, 0.0).item()


def margin(better: Answer, worse: Answer) -> float:
    return better.score - worse.score


def apart(one: Answer, other: Answer) -> int:
    return abs(one.tokens - other.tokens)
