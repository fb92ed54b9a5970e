"""What `make pairs` does, in its order: prompts, answers, scores, pairs.

Everything that takes time is kept outside the folder by what decides it, and the folder's files are
written whole at the end, from what is kept: after a kill they are the same to the byte.
"""

import json
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from dpo.core import files
from dpo.core.refusal import Refusal
from dpo.data import lint
from dpo.data.tokenize import GIVEN
from dpo.evaluation.generations import KEPT, Settings
from dpo.evaluation.judges import judging
from dpo.models.sampling import said
from dpo.pairs import asked, card, folder
from dpo.pairs.answers import Asked
from dpo.pairs.asked import Block, Found
from dpo.pairs.folder import ABOUT, CANDIDATES, SPLITS, ordered, put
from dpo.pairs.picking import DRAWN, Answer, Picking
from dpo.pairs.scores import Judge, Texts

POLL = 0.5  # seconds between looks at what another process has done


@dataclass
class Work:
    """All that is asked for: who answers, how, who judges, and how pairs are picked.

    `seeds` are those of the answers, each drawn once from every model.
    """

    models: list[Asked]
    settings: Settings
    seeds: list[int]
    judge: Judge
    picking: Picking
    folder: Path
    rank: int = 0
    processes: int = 1
    found: Found = field(default_factory=lambda: Found(""))

    @property
    def size(self) -> int:
        return self.models[0].batch  # so that a block is a whole number of batches

    def blocks(self, *, all_of_them: bool = False) -> Iterator[Block]:
        found = asked.blocks(self.folder, self.size)
        return found if all_of_them else asked.mine(found, self.rank, self.processes)

    def settings_of(self, seed: int) -> Settings:
        return replace(self.settings, seed=seed)

    def pair_of(self, entry: dict[str, Any], chosen: dict, rejected: dict) -> dict[str, Any]:
        """A row of the data set, in TRL's explicit layout: the conversation, and two answers. Their
        scores are called after the known reward where that is the judge: runs measure it then; and
        rewards where labels are drawn: a label that contradicts a score is set aside as wrong."""
        row = {"prompt": entry["prompt"]}
        sides = {"chosen": chosen, "rejected": rejected}
        for side, answer in sides.items():
            row[side] = [{"role": "assistant", "content": answer["text"]}]
        name = "reward" if self.picking.how == DRAWN else "score"
        name = "vader" if self.judge.name == judging.KNOWN else name
        if self.judge.name:  # a rung of a ladder is no rating
            row |= {f"{name}_{side}": answer["score"] for side, answer in sides.items()}
        options = dict(entry.get("options") or {})
        given = {"tools": options.pop("tools", None), "chat_template_kwargs": options}
        return row | {k: json.dumps(v, ensure_ascii=False) if v else "" for k, v in given.items()}


def settings(
    work: Work, source: str, how: dict[str, Any], options: dict[str, Any] | None
) -> dict[str, Any]:
    """All that decides the pairs, as the folder's pairs.json has it.

    Args:
        how: the prompts were read.
        options: of the chat template.
    """
    sampling = asdict(work.settings) | {"seeds": work.seeds, "chat_template_kwargs": options}
    sampling["batch_size"] = work.size  # with others beside it an answer gets other random numbers
    del sampling["seed"]
    return {
        "format": 1,
        "prompts": {"source": source, "digest": work.found.digest, **how},
        "models": [
            {"name": m.who.name, "dtype": m.dtype, "digest": m.digest, "parameters": m.size}
            for m in work.models
        ],
        "sampling": sampling,
        "judge": work.judge.about,
        "pick": asdict(work.picking),
    }


def sample(work: Work) -> None:
    """Have every model answer this process's prompts."""
    total = sum(len(block.entries) for block in work.blocks())
    for model in work.models:
        count = total * len(work.seeds) * work.settings.samples
        named = f"Answers of {Path(model.who.name).name}"
        named += f", process {work.rank + 1} of {work.processes}" * (work.processes > 1)
        with tqdm(total=count, desc=named, unit="answer", disable=work.rank > 0) as bar:
            for block in work.blocks():
                for seed in work.seeds:
                    model.draw(block, work.settings_of(seed), bar)
        model.release()


def answered(work: Work, block: Block) -> list[list[dict[str, Any]]]:
    """The answers to each prompt of a block, of every model and seed, with why one is left out.

    Raises:
        Refusal: they could not be kept.
    """
    found: list[list[dict[str, Any]]] = [[] for _ in block.entries]
    for number, model in enumerate(work.models):
        for seed in work.seeds:
            drawn = model.kept(block, work.settings_of(seed))
            if drawn is None:
                why = "or were taken from there meanwhile"
                raise Refusal(f"answers cannot be kept in {KEPT}, {why}")
            for row, answers in zip(found, drawn, strict=True):
                about = {"model": number, "seed": seed}
                for each in answers:
                    one = {"text": each.text, **about, "tokens": len(each.token_ids)}
                    row.append(one | {"finished": each.finished})
    for row in found:
        texts: set[str] = set()
        for each in row:
            control = work.models[each["model"]].control
            each["why"] = fault(each["text"], each["finished"], texts, control)
            texts |= {each["text"]} if each["finished"] else set()
    return found


def fault(text: str, finished: bool, others: set[str], control: re.Pattern | None) -> str | None:
    """Why an answer is in no pair: a key of folder.NO_ANSWER; a row with it would be set aside
    (lint.py), or teach nothing."""
    if not lint.SEEN.search(text):
        return "empty"
    if not finished:
        return "unfinished"
    if lint.BROKEN.search(text):
        return "broken_text"
    if control and control.search(text):
        return "control_token"
    return "repeated" if text in others else None


def texts_of(answers: list[list[dict[str, Any]]]) -> Texts:
    return [[None if each["why"] else each["text"] for each in row] for row in answers]


def judge(work: Work) -> None:
    """Have this process's answers judged, where several share that: it takes time, and needs no
    other. One process alone asks an endpoint, or scores by the known reward."""
    if work.processes == 1 or work.judge.by_one:
        return
    for block in tqdm(work.blocks(), desc="Judging", unit="block", disable=work.rank > 0):
        work.judge.judge(block, texts_of(answered(work, block)))


def done(work: Work, rank: int) -> Path:
    """What a process that only helps leaves when its part is done."""
    return work.folder / f".done-{rank}"


def wait_for(path: Path) -> None:
    """Until another process of this launch has written a file."""
    launcher: Any = psutil.Process(os.getppid())
    while not (path.is_file() and path.stat().st_mtime >= launcher.create_time()):
        time.sleep(POLL)


def judged(work: Work) -> Iterator[dict[str, Any]]:
    """Every prompt with its answers, their scores, and the pairs that are picked of them."""
    for block in tqdm(work.blocks(all_of_them=True), desc="Judged and paired", unit="block"):
        answers = answered(work, block)
        found = work.judge.judge(block, texts_of(answers))
        rows = zip(block.entries, answers, found.scores, found.why, strict=True)
        for entry, row, scores, why in rows:
            for each, score, reason in zip(row, scores, why, strict=True):
                each |= {"score": score, "why": each.pop("why") or reason}
            usable = [
                Answer(number, each["text"], each["tokens"], each["score"])
                for number, each in enumerate(row)
                if not each["why"] and each["score"] is not None
            ]
            picked, none = work.picking.pick(said(entry["prompt"]), usable)
            yield {**entry, "answers": row, "pairs": picked, "why": none}


def write(work: Work, stated: dict[str, Any], test_size: float) -> dict[str, Any]:
    """Pick the pairs, and write all files of the folder.

    Raises:
        Refusal: there is no pair to train on. What was answered is in candidates.jsonl.
    """
    left_out, without, count = Counter[str](), Counter[str](), 0
    pairs, draws = dict.fromkeys(SPLITS, 0), []
    options: dict[str, set[str]] = {name: set() for name in GIVEN}  # two of each at most
    with ExitStack() as stack:
        all_of_them = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        for each in judged(work):
            count += len(each["answers"])
            left_out.update(one["why"] for one in each["answers"] if one["why"])
            without.update([each["why"]] if each["why"] else [])
            draws += [each["draw"]] if each["pairs"] and not each["split"] else []
            for chosen, rejected in each["pairs"][:1]:
                row = work.pair_of(each, each["answers"][chosen], each["answers"][rejected])
                for name, texts in options.items():
                    texts |= {row[name]} if len(texts) < 2 else set()
            put(all_of_them, each)
        held_out = lowest(draws, test_size)
        names = [*(f"{split}.jsonl" for split in SPLITS), CANDIDATES]
        *splits, candidates = (
            stack.enter_context(files.written_whole(work.folder / name)) for name in names
        )
        to = dict(zip(SPLITS, splits, strict=True))
        all_of_them.seek(0)
        for each in map(json.loads, all_of_them):
            split = each["split"] or ("test" if each["draw"] <= held_out else "train")
            pairs[split] += len(each["pairs"])
            for chosen, rejected in each["pairs"]:
                row = work.pair_of(each, each["answers"][chosen], each["answers"][rejected])
                put(to[split], folder.alike(row, options))
            line = {"prompt": each["prompt"], "split": split, "row": each["at"]}
            put(candidates, line | {key: each[key] for key in ("answers", "pairs", "why")})
    found = work.found
    about = {"count": found.rows, "asked": found.asked, "left_out": ordered(found.left_out)}
    results = stated | {
        "prompts": stated["prompts"] | about,
        "answers": {"count": count, "left_out": ordered(left_out)},
        "without_pair": ordered(without),
        "pairs": pairs,
        "undecided": ordered(work.judge.undecided),
        "orders_disagree": work.judge.orders_disagree,
        "cost": dict(work.judge.cost) or None,
    }
    for split, number in pairs.items():
        if not number:  # a split without rows is none
            (work.folder / f"{split}.jsonl").unlink()
    if not pairs["train"]:
        why = folder.why_none(without, left_out)
        if disagree := results["orders_disagree"]:
            why += f"; in {disagree:.0%} of its comparisons the judge went by the places"
        raise Refusal(
            f"no pair to train on comes of {found.asked} prompts: {why}. All answers are in "
            f"{work.folder / CANDIDATES}"
        )
    files.write_json(work.folder / ABOUT, results)
    card.write(work.folder)
    return results


def lowest(draws: list[int], size: float) -> float:
    """The number up to which prompts are held out: a share of them, or so many from 1 on; of two or
    more one at the least, and never all."""
    count = round(size * len(draws) if size < 1 else size)
    count = min(max(count, 1), len(draws) - 1) if size else 0
    return sorted(draws)[count - 1] if count > 0 else -math.inf


def run(work: Work, stated: dict[str, Any], test_size: float) -> dict[str, Any] | None:
    """All of it; None in the processes that only help."""
    sample(work)
    judge(work)
    if work.rank:
        done(work, work.rank).touch()
        return None
    for other in range(1, work.processes):
        wait_for(done(work, other))
        done(work, other).unlink()
    results = write(work, stated, test_size)
    folder.show(results, work.folder)
    return results
