"""What a judge says of every answer: one number each, kept as it comes."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core.hashing import name_of
from dpo.core.refusal import Refusal
from dpo.evaluation.judges import endpoint, human, judging
from dpo.evaluation.judges.verdicts import Comparison, Kept
from dpo.models.sampling import parts, row_of, turns
from dpo.pairs.asked import Block

KEPT = Path("cache/judgements")
LADDER = "ladder"
# The answers to each prompt that are judged; None for one that is not.
Texts = list[list[str | None]]


@dataclass
class Scores:
    """The score of each answer to each prompt, None where there is none; and why not."""

    scores: list[list[float | None]]
    why: list[list[str | None]]


@dataclass
class Judge:
    """Scores answers: alone, two at a time, or, of several models without a judge, by whose they
    are.

    Args:
        name: as `judging.judge` takes it; "" for a ladder of models.
        rungs: of each answer to a prompt in its order, how large its model is among them.
        how: of an endpoint, as endpoint.py takes it.
        undecided: comparisons without a verdict so far, by the reason.
    """

    name: str
    device: str
    rungs: list[float]
    model: str | None = None
    how: dict[str, Any] = field(default_factory=dict)
    cost: Counter[str] = field(default_factory=Counter)
    undecided: Counter[str] = field(default_factory=Counter)
    disagreed: float = 0
    compared: int = 0

    def __post_init__(self) -> None:
        self.about: dict[str, Any] = {"kind": LADDER, "name": LADDER}
        self.identity, self.alone = self.about, None
        if endpoint.is_url(self.name):
            self.about = {"kind": "endpoint", "name": self.name, "model": self.model}
        elif self.name == judging.HAND:
            self.about = {"kind": "hand", "name": self.name}
        elif self.name:
            self.about, self.identity, self.alone = judging.scorer(self.name, self.device)

    @property
    def by_one(self) -> bool:
        """Whether one process alone asks it: an endpoint, which answers several requests at a time,
        a person, or what takes no time."""
        return self.name in ("", judging.KNOWN) or self.alone is None

    def judge(self, block: Block, texts: Texts) -> Scores:
        """Ask for every answer of a block that is not judged yet."""
        if not self.name:
            scores = [
                [None if t is None else r for t, r in zip(row, self.rungs, strict=True)]
                for row in texts
            ]
            return Scores(scores, [[None] * len(row) for row in texts])
        if self.name == judging.KNOWN:
            return self.by_score(block, texts, None)
        about = [self.about, [lead["draw"] for lead in block.entries]]
        with Kept(KEPT / f"{name_of(about)}.jsonl") as kept:
            kept.introduce(self.about)
            by = self.by_score if self.alone else self.by_places
            return by(block, texts, kept)

    def by_score(self, block: Block, texts: Texts, kept: Kept | None) -> Scores:
        keys: list[list[str | None]] = []
        answers: dict[str, judging.Answer] = {}
        for prompt, row in zip(block.prompts(), texts, strict=True):
            asked = [(turns(prompt), text, row_of(prompt)) if text else None for text in row]
            keys.append([judging.key_of(self.identity, each) if each else None for each in asked])
            answers |= {k: each for k, each in zip(keys[-1], asked, strict=True) if k and each}
        score: Any = self.alone
        if kept is None:
            found = {key: {"reward": reward} for key, reward, _ in score(answers)}
        else:
            judging.ask(score, answers, kept)
            found = kept.entries
        scores = [[found[key]["reward"] if key else None for key in row] for row in keys]
        why = [[found[key].get("reason") if key else None for key in row] for row in keys]
        return Scores(scores, why)

    def by_places(self, block: Block, texts: Texts, kept: Kept) -> Scores:
        """Each answer's share of the other answers to its prompt that it is preferred to, ties
        halved: every two are held against each other."""
        comparisons, places = [], []
        for at, (prompt, row) in enumerate(zip(block.prompts(), texts, strict=True)):
            there = [number for number, text in enumerate(row) if text is not None]
            for one, other in itertools.combinations(there, 2):
                comparisons.append(Comparison(parts_alone(prompt), str(row[one]), str(row[other])))
                places.append((at, one, other))
        if self.name == judging.HAND:
            verdicts = human.judge(comparisons, kept)
        else:
            asked_of = (self.name, str(self.model), comparisons, kept)
            verdicts = endpoint.judge(*asked_of, **self.how, some=False)
        if endpoint.GIVEN_UP in verdicts.left_out:
            failed = [reason for reason in verdicts.left_out if reason != endpoint.GIVEN_UP]
            raise Refusal(
                f"the judge at {self.name} fails: {', '.join(failed)}. What it said is kept, and "
                "the same command goes on from there"
            )
        known = ~np.isnan(verdicts.preferred)
        asked = np.array([each.policy != each.against for each in comparisons], dtype=bool)
        count, cost = int((known & asked).sum()), dict(verdicts.cost or {})
        self.disagreed += cost.pop("orders_disagree", 0) * count
        self.compared += count
        self.cost.update(cost)
        self.undecided.update(verdicts.left_out)
        points: list[list[list[float]]] = [[[] for _ in row] for row in texts]
        for (at, one, other), preferred in zip(places, verdicts.preferred, strict=True):
            if not np.isnan(preferred):
                points[at][one].append(float(preferred))
                points[at][other].append(1 - float(preferred))
        scores = [[float(np.mean(each)) if each else None for each in row] for row in points]
        reason = next(iter(verdicts.left_out), "the judge gave no verdict")
        why = [
            [reason if t is not None and s is None else None for t, s in zip(*both, strict=True)]
            for both in zip(texts, scores, strict=True)
        ]
        return Scores(scores, why)

    @property
    def orders_disagree(self) -> float | None:
        """Of an endpoint, the share of comparisons whose verdict changed with the places."""
        return self.disagreed / self.compared if self.compared else None


def parts_alone(prompt: Any) -> Any:
    """A prompt as a judge reads it, without the row that it stands in."""
    said, options = parts(prompt)
    return {"prompt": said, "options": options} if options else said
