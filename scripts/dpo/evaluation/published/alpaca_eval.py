"""AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475): how sure a judge is that a model answers 805
instructions better than GPT-4 Turbo.

The instructions with GPT-4 Turbo's answers, the judge's prompt and its settings are read from a
checkout of the suite's own repository, and none of them is kept here. What it prescribes is from
there too (src/alpaca_eval, commit cd543a1): the judge says one token, `m` where the first of two
answers is better and `M` where the second is, and the preference is p(m) / (p(m) + p(M)), of the
log-probabilities that come with it (completion_parsers.py); which answer stands first is drawn by
the instruction (processors.py); equal answers are a tie unasked. The win rate is the mean of the
preferences; the length-controlled one is in length_control.py.
"""

import argparse
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core.refusal import Refusal
from dpo.evaluation.judges import endpoint
from dpo.evaluation.published import length_control
from dpo.evaluation.published.asking import Judge, Messages, Reading, check_url
from dpo.evaluation.published.length_control import Calibration
from dpo.evaluation.published.suite import (
    SIDES,
    Contest,
    check_shape,
    checked,
    found_in,
    parsed,
    shares,
    text_in,
)
from dpo.recipe.strict import load_yaml

CLONE = "https://github.com/tatsu-lab/alpaca_eval"
CONFIGS = Path("src/alpaca_eval/evaluators_configs")
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
ANNOTATED = CONFIGS / ANNOTATOR / "configs.yaml"
BASELINE = Path("results/gpt4_1106_preview/model_outputs.json")
CALIBRATION = Path("df_gamed.csv")  # of the data set tatsu-lab/alpaca_eval
CONFIG = {
    "prompt_template": str,
    "completions_kwargs": {"model_name": str, "max_tokens": int},
    "completion_parser_kwargs": {"numerator_token": str, "denominator_tokens": [str, str]},
}
WHOLE = 805
# Every model of the leaderboard has settings of its own; most have these (models_configs).
TEMPERATURE, MAX_NEW_TOKENS = 0.7, 2048
NONE_GIVEN = "the endpoint gives no log-probabilities"
NEITHER = "neither answer is named by the likeliest tokens"


@dataclass
class Suite:
    """What is read of a checkout.

    Attributes:
        rows: with `instruction` and `output`, GPT-4 Turbo's answer.
        template: the judge's prompt, with {instruction}, {output_1} and {output_2}.
        how: of a chat completion.
        first, second: the tokens that name the answers.
        judge: by which the published figures are.
    """

    rows: list[dict[str, Any]]
    template: Messages
    how: dict[str, Any]
    first: str
    second: str
    judge: str
    calibration: Calibration


def read(given: str) -> Suite:
    """The suite of a checkout, with the data set's calibration of lengths beside.

    Raises:
        Refusal: a file is not there, or is not as it must be.
    """
    folder = found_in(given, Path(), [ANNOTATED, BASELINE], CLONE)
    path = folder / ANNOTATED
    try:
        config = load_yaml(path, path.read_text(encoding="utf-8"))[ANNOTATOR]
        check_shape(config, CONFIG, path)
        template = folder / CONFIGS / config["prompt_template"]
        how, reading = dict(config["completions_kwargs"]), config["completion_parser_kwargs"]
        judge, first = how.pop("model_name"), reading["numerator_token"]
        (second,) = {*reading["denominator_tokens"]} - {first}
        asked = turns_of(template.read_text(encoding="utf-8"))
    except (KeyError, TypeError, ValueError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise Refusal(f"{path} is not as it was at commit cd543a1 ({why}): clone anew") from error
    path = folder / BASELINE
    rows = parsed(text_in(path), str(path))
    check_shape({"rows": rows}, {"rows": [{"instruction": str, "output": str}]}, path)
    if not (folder / CALIBRATION).is_file():
        raise Refusal(
            f"{folder} lacks {CALIBRATION}, by which lengths are controlled: hf download "
            f"tatsu-lab/alpaca_eval {CALIBRATION} --repo-type dataset --local-dir {folder}"
        )
    calibration = length_control.read(folder / CALIBRATION, len(rows))
    return Suite(rows, asked, how, first, second, judge, calibration)


def turns_of(template: str) -> Messages:
    """A template of ChatML as messages.

    Raises:
        ValueError: it is none, or lacks a place.
    """
    found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", template, re.DOTALL)
    places = {name for _, content in found for name in re.findall(r"\{(\w+)\}", content)}
    lacks = {"instruction", "output_1", "output_2"} - places
    if not found or lacks:
        raise ValueError(f"no prompt with {', '.join(sorted(lacks)) or 'turns'}")
    return [{"role": role, "content": content.strip()} for role, content in found]


def swapped(instruction: str) -> bool:
    """Whether the model's answer stands first: as the suite draws it, with its seed 0."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def request(template: Messages, instruction: str, first: str, second: str) -> Messages:
    """What the judge is asked, in the suite's own words."""
    words = {"instruction": instruction, "output_1": first, "output_2": second}

    def filled(text: str) -> str:
        return re.sub(r"\{(instruction|output_1|output_2)\}", lambda at: words[at[1]], text)

    return [turn | {"content": filled(turn["content"])} for turn in template]


def top_of(answer: Any) -> dict[str, float]:
    """The likeliest first tokens of a completion with their log-probabilities; none, if it has
    none."""
    try:
        top = answer.choices[0].logprobs.content[0].top_logprobs
        return {each.token: float(each.logprob) for each in top}
    except (AttributeError, TypeError, IndexError, ValueError):
        return {}


def preference_by(first: str, second: str) -> Reading:
    """How the judgement of a completion is read: the probability that the first answer is better,
    of the tokens that name the one and the other; one that is not among the likeliest has none."""

    def reading(answer: Any) -> dict[str, Any]:
        judgement, top = endpoint.read(answer, lambda said: None), top_of(answer)
        with np.errstate(over="ignore"):
            named = np.exp([top.get(token, -np.inf) for token in (first, second)])
        if not 0 < named.sum() < np.inf:  # NaN, too
            return judgement | {"reason": NEITHER if top else NONE_GIVEN}
        del judgement["reason"]
        return judgement | {"verdict": float(named[0] / named.sum())}

    return reading


def evaluate(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """AlpacaEval 2 of a run's policy and of what it is held against.

    Returns the file of the results, and the results.

    Raises:
        Refusal: the suite, a model or the judge is not as it must be.
    """
    check_url(args)
    suite = read(args.prompts)
    rows = suite.rows[: args.limit]
    contest = Contest.of(args, Judge.of(args, suite.how, suite.judge))
    if not top_of(checked(contest.judge)):
        raise Refusal(
            f"JUDGE={args.judge} answers without log-probabilities, of which AlpacaEval 2 is made: "
            "name an endpoint whose chat completions have them"
        )
    temperature = TEMPERATURE if args.temperature is None else args.temperature
    cut = args.max_new_tokens or MAX_NEW_TOKENS
    said = contest.answers([row["instruction"] for row in rows], temperature, cut)
    requests = {
        (side, at): request(suite.template, row["instruction"], *in_order(row, said[side][at]))
        for side in SIDES
        for at, row in enumerate(rows)
        if said[side][at] != row["output"]
    }
    verdicts, asking = contest.verdicts(requests, preference_by(suite.first, suite.second))
    preferred = {side: preferences(verdicts, side, rows, requests) for side in SIDES}
    lines = [
        {"instruction": row["instruction"], "baseline": row["output"]}
        | {side: said[side][at] for side in SIDES}
        | {f"{side}_preferred": number(preferred[side][at]) for side in SIDES}
        for at, row in enumerate(rows)
    ]
    found = scores(rows, said, preferred, suite.calibration)
    settings = {"temperature": temperature, "max_new_tokens": cut}
    prescribed = {"temperature": TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS}
    return contest.written(lines, WHOLE, prescribed, **settings, **found, **asking)


def in_order(row: dict[str, Any], answer: str) -> list[str]:
    """GPT-4 Turbo's answer and a model's, in the order in which the judge reads them."""
    both = [row["output"], answer]
    return both[::-1] if swapped(row["instruction"]) else both


def preferences(verdicts: dict, side: str, rows: list[dict], asked: dict) -> np.ndarray:
    """How sure the judge is that a model's answer is the better one, shape (rows,), NaN where it
    did not say. Answers that it was not asked about are equal."""

    def preference(at: int, row: dict[str, Any]) -> float:
        if (side, at) not in asked:
            return 0.5
        first = verdicts.get((side, at), np.nan)
        return first if swapped(row["instruction"]) else 1 - first

    return np.array([preference(at, row) for at, row in enumerate(rows)])


def number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def scores(
    rows: list[dict], said: dict[str, list[str]], preferred: dict[str, np.ndarray], by: Calibration
) -> dict[str, Any]:
    """Both models' win rates against GPT-4 Turbo, plain and length-controlled, with 95% intervals
    over instructions, how the two differ, and their answers' mean length in characters."""
    baseline = np.array([len(row["output"]) for row in rows])
    lengths = {side: np.array([len(text) for text in said[side]]) for side in SIDES}
    shorter = {side: baseline - lengths[side] for side in SIDES}
    lengths["baseline"] = baseline
    return {
        "win_rate": shares(preferred),
        "length_controlled_win_rate": length_control.both(preferred, shorter, by),
        "length": {name: float(of.mean()) for name, of in lengths.items()},
    }
