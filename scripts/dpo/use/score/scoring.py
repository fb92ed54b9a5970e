"""Policy and reference over the rows of a file, block by block, into a file of a line a row.

A line is a row's, whatever came of it, so that the lines that are there say how far the scoring
got: after a kill it goes on from the last whole block, and ends with the same bytes.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dpo.core import stats
from dpo.core.files import write_json, written_to
from dpo.core.refusal import Refusal
from dpo.data import fits
from dpo.evaluation.contestants import Contestant
from dpo.losses import implicit_reward
from dpo.models.scoring import score
from dpo.runs.output_folder import LOCK, differences
from dpo.use.score.rows import Given

BLOCK = 64  # rows that are scored, and written, at a time
SCORES, SETTINGS, SUMMARY = "scores.jsonl", "settings.json", "summary.json"
SIDES = ("chosen", "rejected")
TOO_LONG = "too_long"
GOES_ON = ", and the same command goes on from there"
DIGITS = 9


@dataclass
class Loaded:
    """A policy or a reference that is ready to score."""

    who: Contestant
    model: PreTrainedModel
    device: str

    def logps(self, rows: list[Given], pad: int) -> np.ndarray:
        """log π(y | x) in nats of all completions of all rows, one after the other: shape
        (completions,). Two completions of one prompt go through the model together."""
        flat = [each for row in rows for each in row.completions]
        twos, ones, start = [], [], 0
        for row in rows:
            end = start + len(row.completions)
            twos += [*zip(range(start, end - 1, 2), range(start + 1, end, 2), strict=True)]
            ones += [end - 1] * ((end - start) % 2)
            start = end
        order = [one for one, _ in twos] + [other for _, other in twos]
        logps = np.zeros(len(flat))
        with self.who.autocast(self.device):
            logps[order] = score(self.model, [flat[i] for i in order], pad, pairs=True)
            logps[ones] = score(self.model, [flat[i] for i in ones], pad)
        return logps

    def nats_per_token(self) -> float:
        """What rounding may make of one token's log-probability."""
        with self.who.autocast(self.device):
            return stats.NATS_PER_TOKEN[stats.numerics(self.model)]


@dataclass
class Scoring:
    """How rows are scored: by which models, and what of their log-probabilities is the reward."""

    policy: Loaded
    reference: Loaded
    pad: int
    beta: float
    per_token: bool

    def __post_init__(self) -> None:
        both = self.policy, self.reference
        self.nats = max(each.nats_per_token() for each in both)
        rooms = (fits.positions(each.model.config) for each in both)
        self.room = min((room for room in rooms if room), default=np.inf)

    def lines(self, rows: list[Given], pairs: bool) -> list[dict[str, Any]]:
        """A line for each row: its rewards and what they are made of, or why there are none."""
        for row in rows:
            longest = max((len(x) + len(y) for x, y in row.completions), default=0)
            if longest > self.room:
                row.completions, row.reason = [], TOO_LONG
                row.detail = f"{longest} tokens, and the model has {self.room:g} positions"
        policy, reference = (each.logps(rows, self.pad) for each in (self.policy, self.reference))
        found, start = [], 0
        for row in rows:
            if row.reason:
                found.append({"row": row.number, "reason": row.reason, "detail": row.detail})
                continue
            here = slice(start, start + len(row.completions))
            tokens = np.array([len(completion) for _, completion in row.completions])
            start += len(tokens)
            found.append(self.line(row, policy[here], reference[here], tokens, pairs))
        return found

    def line(
        self, row: Given, policy: np.ndarray, reference: np.ndarray, tokens: np.ndarray, pairs: bool
    ) -> dict[str, Any]:
        """Of a row with completions of which policy and reference say this, each of shape
        (completions,). The margin of a pair is 0 where it is no more than rounding."""
        weights = 1 / tokens if self.per_token else np.ones(len(tokens))
        rewards = implicit_reward(policy, reference, self.beta) * weights
        columns = {"reward": rewards, "policy": policy, "reference": reference, "tokens": tokens}
        line: dict[str, Any] = {"row": row.number}
        if pairs:
            # Rounding errs to both sides, token by token: stats.width, each token by its weight.
            width = self.beta * self.nats * np.sqrt((tokens * weights**2).sum())
            line["margin"] = rounded(stats.settled(rewards[0] - rewards[1], width))
            for name, values in columns.items():
                each = zip(SIDES, values, strict=True)
                line |= {f"{name}_{side}": rounded(value) for side, value in each}
        else:
            line |= {name: [*map(rounded, of)] for name, of in columns.items()}
            # 1 for the highest; those that rounding alone tells apart share one.
            noise = tokens * weights**2
            width = self.beta * self.nats * np.sqrt(noise + noise[:, None])
            beaten = stats.settled(rewards - rewards[:, None], width) > 0
            line["ranks"] = (1 + beaten.sum(axis=1)).tolist()
        return line | {"prompt": f"{row.prompt % 2**64:016x}"}


def rounded(value: Any) -> float | int:
    """A number as it is written: nine digits, more than rounding leaves."""
    return int(value) if isinstance(value, np.integer) else float(f"{value:.{DIGITS}g}") + 0.0


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder that of these scores.

    Raises:
        Refusal: it holds scores of something else, or other files.
    """
    path = folder / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise Refusal(f"TO: {folder} is a file: give a folder")
    with written_to(path, GOES_ON):
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                kept = {}
            if changed := differences(kept, settings):
                raise Refusal(
                    f"{folder} holds scores of another file, run or setting: {changed}. Give "
                    "another folder with TO=, or remove that one"
                )
        elif {each.name for each in folder.iterdir()} - {LOCK}:
            raise Refusal(f"{folder} holds files that are no scores: give another folder with TO=")
        else:
            write_json(path, settings)


def finished(folder: Path) -> bool:
    """Whether all rows are scored: the file bears its name only then."""
    return (folder / SCORES).is_file()


def whole_blocks(path: Path) -> int:
    """Rows that are kept already, those of whole blocks; what a kill has left after them is cut
    off."""
    path.touch()
    count = at = end = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, at = count + 1, at + len(line)
            if count % BLOCK == 0:
                end = at
        file.truncate(end)
    return count - count % BLOCK


def carry_out(
    folder: Path, rows: Iterator[Given], count: int | None, scoring: Scoring, pairs: bool
) -> None:
    """Score all rows that are not scored yet, into the folder."""
    part = folder / f"{SCORES}.part"
    with written_to(part, GOES_ON):
        done = whole_blocks(part)
        if done:
            print(f"{done:,} rows are scored already: going on after them")
        bar = tqdm(total=count, initial=done, desc="Scoring", unit="row")
        with part.open("a", encoding="utf-8") as file, bar:
            rows = islice(rows, done, None)
            while block := [*islice(rows, BLOCK)]:
                lines = scoring.lines(block, pairs)
                file.write("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
                bar.update(len(lines))
        part.replace(folder / SCORES)


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of all rows, in their order."""
    with (folder / SCORES).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
