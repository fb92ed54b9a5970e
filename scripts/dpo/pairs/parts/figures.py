"""What can be counted of pairs: lengths, margins, label noise; and a picture of the margins."""

import json
import random
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dpo.core.secrets import mask
from dpo.core.terminal import visible
from dpo.losses import bradley_terry
from dpo.models.sampling import said
from dpo.pairs.folder import SPLITS
from dpo.reports.parts.run_picture import AFTER, BEFORE, INK, SCALES, head

EXAMPLES = 3


@dataclass
class Figures:
    """Numbers of each pair, in the order of candidates.jsonl; shape (pairs,) each.

    Attributes:
        split: index in SPLITS.
        characters: of the prompt.
        prompt: its tokens, NaN where they were not counted.
        chosen, rejected: tokens of the answers.
        margin: score of chosen less that of rejected, NaN without scores.
        examples: pairs drawn at random, the same ones each time, with their texts.
    """

    split: np.ndarray
    characters: np.ndarray
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    margin: np.ndarray
    examples: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def scored(self) -> bool:
        """Whether every pair has a margin."""
        return len(self) > 0 and bool(np.isfinite(self.margin).all())

    def of(self, split: str) -> np.ndarray:
        """Which pairs are of a split, shape (pairs,)."""
        return self.split == SPLITS.index(split)


def read(candidates: Path, scored: bool = True) -> Figures:
    """The figures of candidates.jsonl, which is read line by line: of a pair six numbers are kept,
    and of three pairs the texts. Where it is not `scored`, its scores say nothing of an answer."""
    none = {} if scored else {"score": None}
    columns = [array("d") for _ in range(6)]
    examples: list[tuple[int, dict[str, Any]]] = []
    draw, count = random.Random(0), 0
    with candidates.open(encoding="utf-8", newline="\n") as lines:
        for row in map(json.loads, lines):
            asked = said(row["prompt"])
            for pair in row["pairs"]:
                chosen, rejected = (row["answers"][at] | none for at in pair)
                scores = [_number(answer["score"]) for answer in (chosen, rejected)]
                numbers = [
                    SPLITS.index(row["split"]),
                    len(asked),
                    _number(row.get("prompt_tokens")),
                ]
                numbers += [chosen["tokens"], rejected["tokens"], scores[0] - scores[1]]
                for column, number in zip(columns, numbers, strict=True):
                    column.append(number)
                # Reservoir sampling: each pair is as likely to be shown, however many there are.
                place = count if count < EXAMPLES else draw.randrange(count + 1)
                if place < EXAMPLES:
                    sides = {"chosen": chosen, "rejected": rejected}
                    examples[place : place + 1] = [(count, {"prompt": asked, **sides})]
                count += 1
    examples.sort(key=lambda example: example[0])
    arrays = [np.array(column) for column in columns]
    return Figures(*arrays, examples=[example for _, example in examples])


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def against(margins: np.ndarray) -> int:
    """How many labels go against the score: the lower-scored answer was chosen."""
    return int((margins < 0).sum())


def expected_against(margins: np.ndarray, temperature: float) -> float:
    """The share of labels that Bradley-Terry draws against the score, by expectation: the mean of
    σ(-|margin| / temperature)."""
    gaps = torch.from_numpy(np.abs(margins) / temperature)
    return bradley_terry(-gaps, 0.0).mean().item()


def draw_margins(figures: Figures, judge: str) -> Figure:
    """The margins of train and test as histograms, each split's bars adding up to 1."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="tight")
    parts = {name: figures.margin[figures.of(name)] for name in SPLITS}
    parts = {name: margins for name, margins in parts.items() if len(margins)}
    axis.hist(
        [*parts.values()],
        bins=25,
        weights=[np.full(len(margins), 1 / len(margins)) for margins in parts.values()],
        color=[{"train": BEFORE, "test": AFTER}[name] for name in parts],
        label=[f"{name}: {len(margins):,}" for name, margins in parts.items()],
    )
    if figures.margin.min() < 0:
        axis.axvline(0, color=INK, linestyle=":", linewidth=1)
    scale = SCALES.get(judge, f"{visible(mask(judge)):.60}").replace("$", r"\$")  # no mathematics
    axis.set(xlabel=f"score of chosen - rejected ({scale})", ylabel="share of pairs")
    head(axis, "Margins of the pairs")
    return figure
