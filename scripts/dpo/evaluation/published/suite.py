"""What the published suites share: the two models and their answers, the judge, what is written."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Self

import numpy as np
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpo.core import files
from dpo.core.machine import device_name, measuring_device, now, versions
from dpo.core.refusal import Refusal
from dpo.core.stats import Interval, paired, share
from dpo.evaluation import generations
from dpo.evaluation.command import folder_of
from dpo.evaluation.contestants import Contestant, find, reference_of
from dpo.evaluation.judges import endpoint
from dpo.evaluation.judges.verdicts import Kept
from dpo.evaluation.measure import SEED
from dpo.evaluation.published.asking import Judge, Messages, Reading, ask_all

SIDES = ("policy", "against")
JUDGED, HOW = "judgements.jsonl", ", and the same command goes on: what was said is kept"
WORDS = {str: "text", int: "whole number", int | float: "number", int | str: "number or text"}
WORDS |= {dict: "object", list: "list"}


@dataclass
class Contest:
    """Two models that a suite is asked of, by side, and who judges them."""

    suite: str
    sides: dict[str, Contestant]
    judge: Judge
    device: str
    seed: int
    folder: Path
    first: int | None = None  # questions alone, for a trial

    @property
    def stem(self) -> str:
        """What files of the results are called: a trial takes the place of nothing else."""
        return f"{self.suite}-first-{self.first}" if self.first else self.suite

    @classmethod
    def of(cls, args: argparse.Namespace, judge: Judge) -> Self:
        """What the arguments of evaluate.py name.

        Raises:
            Refusal: a model is not as it must be.
        """
        policy = find(args.run)
        if not args.against and not policy.recipe:
            raise Refusal(f"{args.run} is no run: name with AGAINST= what it is held against")
        against = find(args.against, policy) if args.against else reference_of(policy.recipe)
        seed = SEED if args.seed is None else args.seed
        folder, sides = folder_of(args, policy, against), (policy, against)
        with files.written_to(folder / JUDGED, HOW), Kept(folder / JUDGED):
            pass  # before hours of answers
        both = dict(zip(SIDES, sides, strict=True))
        return cls(args.suite, both, judge, measuring_device(), seed, folder, args.limit)

    def drawn(
        self, drawing: Callable[[Contestant, PreTrainedModel, PreTrainedTokenizerBase], Any]
    ) -> dict[str, Any]:
        """What `drawing` makes of both models, one at a time in memory.

        Raises:
            Refusal: a model has no chat template.
        """
        found = {}
        tokenizers = {side: who.tokenizer() for side, who in self.sides.items()}
        for side, who in self.sides.items():
            if not tokenizers[side].chat_template:
                raise Refusal(f"{who.name} has no chat template: {self.suite} asks chat models")
        for side, who in self.sides.items():
            with who.autocast(self.device):
                model = who.load(self.device)
                found[side] = drawing(who, model, tokenizers[side])
            del model
            clear_device_cache(garbage_collection=True)
        return found

    def answers(self, prompts: list[str], temperature: float, cut: int) -> dict[str, list[str]]:
        """Both models' answers to prompts of one turn.

        Raises:
            Refusal: a model has no chat template.
        """
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        settings = generations.Settings(1, temperature, cut, self.seed)

        def drawing(who: Contestant, model: Any, tokenizer: Any) -> list[str]:
            drawn = generations.draw(who, model, tokenizer, asked, settings)
            return [answer.text for (answer,) in drawn]

        return self.drawn(drawing)

    def verdicts(
        self, requests: dict[Any, Messages], reading: Reading
    ) -> tuple[dict[Any, Any], dict[str, Any]]:
        """What the judge says to requests, and what asking came to.

        Raises:
            Refusal: the endpoint refuses the key or the model, or gives no verdict.
        """
        file = self.folder / JUDGED
        with files.written_to(file, HOW), Kept(file) as kept:
            about = {"kind": self.suite, "name": self.judge.url, "model": self.judge.model}
            kept.introduce(about | self.judge.how)
            found, left_out, cost = ask_all(self.judge, requests, kept, reading)
        return found, {"left_out": left_out, "cost": cost}

    def written(
        self, lines: list[dict[str, Any]], whole: int, prescribed: dict[str, float], **found: Any
    ) -> tuple[Path, dict[str, Any]]:
        """The file of the results and these, once they and `lines`, one for each question, are
        written.

        Args:
            whole: how many questions the suite has.
            prescribed: how it has answers drawn, by the keys that say in `found` how they were.
        """
        found = {
            "suite": self.suite,
            **{side: who.name for side, who in self.sides.items()},
            "judge": self.judge.about(),
            "questions": len(lines),
            "whole": whole,
            "prescribed": prescribed,
            "seed": self.seed,
            **found,
            "finished": now(),
            "machine": device_name(),
            "versions": versions(),
        }
        path, part = self.folder / f"{self.stem}.json", self.stem.removeprefix(self.suite)
        with files.written_to(path, HOW):
            files.write_lines(self.folder / f"answers{part}.jsonl", lines)
            files.write_json(path, found)
        return path, found


def checked(judge: Judge) -> Any:
    """Ask the judge for a word as it will be asked. Returns the completion.

    Raises:
        Refusal: there is none.
    """
    return endpoint.check(judge.url, judge.model or None, judge.how)


def found_in(given: str, within: Path, names: list[Path], clone: str) -> Path:
    """The folder that has files of these names: the one given, or `within` it.

    Args:
        clone: the suite's own repository.

    Raises:
        Refusal: one of them is not there.
    """
    folders = [Path(given) / within, Path(given)] if given else []
    lacks = [[name for name in names if not (folder / name).is_file()] for folder in folders]
    for folder, lacking in zip(folders, lacks, strict=True):
        if not lacking:
            return folder
    name = clone.rpartition("/")[2]
    wanted = ", ".join(map(str, min(lacks, key=len) if lacks else names))
    raise Refusal(
        f"PROMPTS={given}: {wanted} {'is' if wanted.count(',') == 0 else 'are'} not there, of a "
        f"checkout of {clone}: git clone {clone}, then PROMPTS={name}"
    )


def lines_of(path: Path, shape: dict[str, Any], key: str = "") -> list[dict[str, Any]]:
    """The objects of a suite's file with one a line.

    Args:
        shape: of each, as `check_shape` has it.
        key: a field in which no two are alike.

    Raises:
        Refusal: a line is none, or not as it must be.
    """
    found, known = [], dict[Any, int]()
    for number, line in enumerate(text_in(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            check_shape(row := parsed(line, where), shape, where)
            found.append(row)
            if key and (first := known.setdefault(row[key], number)) != number:
                raise Refusal(f"{where}: {key} {row[key]} is that of line {first}: clone anew")
    if not found:
        raise Refusal(f"{path} is empty: clone anew")
    return found


def text_in(path: Path) -> str:
    """The text of a suite's file.

    Raises:
        Refusal: it is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is no text in UTF-8 ({error}): clone anew") from error


def parsed(text: str, where: str) -> Any:
    """JSON of a suite's own file.

    Raises:
        Refusal: it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        why = "a pointer of git-lfs: git lfs pull" if "git-lfs" in text else f"no JSON ({error})"
        raise Refusal(f"{where} is {why}{'' if 'git-lfs' in text else ': clone anew'}") from error


def check_shape(value: Any, shape: Any, where: object, at: str = "") -> None:
    """Raises Refusal where a value in a suite's file, or a part of it, is of another shape.

    Args:
        shape: a type; an object with the shapes of fields that must be there; or a list, of as many
            or more, all shaped as its first.
        at: what the value is called, if it is a part.
    """
    kind = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(value, kind) or isinstance(value, bool):
        shown = json.dumps(value, default=str)[:40]
        raise Refusal(f"{where}: {at or 'it'} is {shown}, no {WORDS[kind]}: clone anew")
    keys = shape if kind is dict else range(max(len(shape), len(value))) if kind is list else ()
    for key in keys:
        part = f"{at}[{key}]" if kind is list else f"{at}.{key}".lstrip(".")
        try:
            check_shape(value[key], shape[0 if kind is list else key], where, part)
        except LookupError:
            raise Refusal(f"{where}: {part} is not there: clone anew") from None


def check_form(form: str, words: set[str], where: str) -> None:
    """Raises Refusal where a judge's prompt has no place for each of these words, or has others."""
    try:
        form.format(**dict.fromkeys(words, ""))
        lacks = words - {name for _, name, _, _ in Formatter().parse(form)}
        why = f"no place for {', '.join(sorted(lacks))}" if lacks else ""
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        raise Refusal(f"{where}: it cannot be filled ({why}): clone anew")


def interval(values: np.ndarray) -> dict[str, float]:
    """A value, the first, with its 95% interval: between which those of resamples, the others, lie,
    shape (1 + resamples,)."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return asdict(Interval(float(values[0]), float(low), float(high)))


def shares(values: dict[str, np.ndarray]) -> dict[str, dict | None]:
    """Means of values from 0 to 1, shape (questions,), of both sides, NaN where there is none,
    each with its 95% interval over questions; and the policy's less the other's."""
    found: dict[str, dict | None] = {
        side: asdict(share(known)) if len(known := of[~np.isnan(of)]) else None
        for side, of in values.items()
    }
    both = np.stack([values[side] for side in SIDES])
    both = both[:, ~np.isnan(both).any(axis=0)]
    found["difference"] = asdict(paired(both)[0][1]) if both.shape[1] else None
    return found
