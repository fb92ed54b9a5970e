"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): two turns a question, each answer graded 1 to 10.

Questions, judge's prompts and reference answers are read from a checkout of FastChat, the suite's
own repository, and none of them is kept here. What it prescribes is from there too
(fastchat/llm_judge, commit 0e6d3e4): gen_model_answer.py cuts answers at 1,024 tokens, common.py
has temperatures by category and asks the judge at temperature 0 for up to 2,048, gen_judgment.py
grades each turn alone, those of math, reasoning and coding beside a reference answer, and
show_result.py takes the mean of all grades.
"""

import argparse
import re
from dataclasses import asdict
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core.refusal import Refusal
from dpo.core.stats import bootstrap
from dpo.evaluation import generations
from dpo.evaluation.contestants import Contestant
from dpo.evaluation.judges import endpoint
from dpo.evaluation.published.asking import Judge, check_url
from dpo.evaluation.published.suite import SIDES, Contest, check_form, checked, found_in, lines_of

CLONE = "https://github.com/lm-sys/FastChat"
DATA = Path("fastchat/llm_judge/data")
FILES = ("mt_bench/question.jsonl", "judge_prompts.jsonl", "mt_bench/reference_answer/gpt-4.jsonl")
# What each of them must have, and by what its lines are told apart.
SHAPES = (
    ({"question_id": int | str, "category": str, "turns": [str, str]}, "question_id"),
    ({"name": str, "system_prompt": str, "prompt_template": str}, "name"),
    ({"question_id": int | str, "choices": [{"turns": [str, str]}]}, "question_id"),
)
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
TEMPERATURES |= dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0)
OTHER = 0.7  # of a category that is none of these
WITH_REFERENCE = ("math", "reasoning", "coding")
MAX_NEW_TOKENS = 1024
JUDGED = {"temperature": 0, "max_tokens": 2048}
PUBLISHED = "gpt-4"  # judged the figures of the paper
WHOLE = 80


def files_of(given: str) -> list[list[dict[str, Any]]]:
    """The questions, the judge's prompts and the reference answers of a checkout.

    Raises:
        Refusal: they are not there, or not as they must be.
    """
    folder = found_in(given, DATA, [*map(Path, FILES)], CLONE)
    paths = [folder / name for name in FILES]
    found = [lines_of(path, *shape) for path, shape in zip(paths, SHAPES, strict=True)]
    questions, prompts, references = found
    for each in questions:
        category = each["category"]
        if category not in TEMPERATURES and (meant := category.strip().lower()) in TEMPERATURES:
            where = f"{paths[0]}, question {each['question_id']}"
            raise Refusal(f"{where}: its category is {category!r}, not {meant!r}: clone anew")
    forms = {each["name"]: each["prompt_template"] for each in prompts}
    graded = {each["question_id"] for each in references}
    needed = [q["question_id"] for q in questions if q["category"] in WITH_REFERENCE]
    kinds = {form_of(*kind): kind for kind in product((False, True), (0, 1))}
    for path, names, there in ((paths[1], kinds, forms), (paths[2], needed, graded)):
        if lacks := [str(name) for name in names if name not in there]:
            raise Refusal(f"{path} lacks {', '.join(lacks)}: clone anew")
    for name, (with_reference, turn) in kinds.items():
        both = ["", ""]
        words = words_of(both, both, turn, both if with_reference else None)
        check_form(forms[name], {*words}, f"{paths[1]}, {name}")
    return found


def form_of(with_reference: bool, turn: int) -> str:
    """The name of the judge's prompt on a turn, 0 or 1."""
    return f"single{'-math' * with_reference}-v1{'-multi-turn' * turn}"


def answers(contest: Contest, questions: list[dict], cut: int) -> dict[str, dict[int, list[str]]]:
    """Both answers of both models to each question, by its number: the second after the first.

    Raises:
        Refusal: a model has no chat template.
    """

    def temperature(question: dict) -> float:
        return TEMPERATURES.get(question["category"], OTHER)

    def drawing(who: Contestant, model: Any, tokenizer: Any) -> dict[int, list[str]]:
        said = {q["question_id"]: [] for q in questions}
        for heat, group in groupby(sorted(questions, key=temperature), temperature):
            asked = [*group]
            for turn in range(2):
                prompts = [conversation(q, said[q["question_id"]], turn) for q in asked]
                settings = generations.Settings(1, heat, cut, contest.seed + turn)
                drawn = generations.draw(who, model, tokenizer, prompts, settings)
                for question, (answer,) in zip(asked, drawn, strict=True):
                    said[question["question_id"]].append(answer.text)
        return said

    return contest.drawn(drawing)


def conversation(question: dict, said: list[str], turn: int) -> list[dict[str, str]]:
    """What a model is asked at a turn, 0 or 1: the question's turns with what it said before."""
    asked = [{"role": "user", "content": text} for text in question["turns"][: turn + 1]]
    before = [{"role": "assistant", "content": text} for text in said[:turn]]
    return [m for pair in zip(asked, [*before, None], strict=True) for m in pair if m]


def words_of(
    turns: list[str], said: list[str], turn: int, known: list[str] | None
) -> dict[str, str]:
    """What fills the judge's prompt on a turn.

    Args:
        known: reference answers, of a category that has any.
    """
    words = {"question": turns[0], "answer": said[0]}
    if turn:
        words = {}
        for at in range(2):
            words |= {f"question_{at + 1}": turns[at], f"answer_{at + 1}": said[at]}
    return words | {f"ref_answer_{at + 1}": known[at] for at in range(turn + 1) if known}


def request(
    question: dict, said: list[str], turn: int, prompts: dict[str, dict], references: dict
) -> list[dict[str, str]]:
    """What the judge is asked about an answer, in the suite's own words."""
    with_reference = question["category"] in WITH_REFERENCE
    known = None
    if with_reference:
        known = references[question["question_id"]]["choices"][0]["turns"]
    words = words_of(question["turns"], said, turn, known)
    form = prompts[form_of(with_reference, turn)]
    return [
        {"role": "system", "content": form["system_prompt"]},
        {"role": "user", "content": form["prompt_template"].format(**words)},
    ]


RATING = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def rating_of(said: str) -> float | None:
    """The first rating in double brackets, else in single ones: fastchat/llm_judge/common.py."""
    found = next((match for form in RATING if (match := form.search(said))), None)
    return float(found[1]) if found else None


def evaluate(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """MT-Bench of a run's policy and of what it is held against.

    Returns the file of the results, and the results.

    Raises:
        Refusal: the suite, a model or the judge is not as it must be.
    """
    check_url(args)
    questions, *judging = files_of(args.prompts)
    questions = questions[: args.limit]
    prompts = {each["name"]: each for each in judging[0]}
    references = {each["question_id"]: each for each in judging[1]}
    contest = Contest.of(args, Judge.of(args, JUDGED, PUBLISHED))
    checked(contest.judge)
    cut = args.max_new_tokens or MAX_NEW_TOKENS
    said = answers(contest, questions, cut)
    requests = {
        (side, q["question_id"], turn): request(
            q, said[side][q["question_id"]], turn, prompts, references
        )
        for side in SIDES
        for q in questions
        for turn in range(2)
    }
    grades, asking = contest.verdicts(requests, lambda answer: endpoint.read(answer, rating_of))
    lines = [
        {"question_id": q["question_id"], "category": q["category"]}
        | {side: said[side][q["question_id"]] for side in SIDES}
        | {
            f"{side}_grades": [grades.get((side, q["question_id"], t)) for t in (0, 1)]
            for side in SIDES
        }
        for q in questions
    ]
    found = scores(questions, grades)
    prescribed = {"max_new_tokens": MAX_NEW_TOKENS}
    return contest.written(lines, WHOLE, prescribed, max_new_tokens=cut, **found, **asking)


def scores(questions: list[dict], grades: dict[tuple[str, int, int], float]) -> dict[str, Any]:
    """Mean grades of both models: all of them, by turn and by category, each with its interval over
    questions; and how the two differ, on what is graded of both."""

    def of(side: str, turns: tuple[int, ...], category: str | None) -> dict | None:
        known = [
            (grades[side, q["question_id"], turn], q["question_id"])
            for q in questions
            for turn in turns
            if category in (None, q["category"]) and (side, q["question_id"], turn) in grades
        ]
        if not known:
            return None
        values, numbers = (np.array(each) for each in zip(*known, strict=True))
        return asdict(bootstrap(values.astype(float), prompts=numbers)) | {"graded": len(known)}

    def both(turns: tuple[int, ...], category: str | None = None) -> dict[str, Any]:
        return {side: of(side, turns, category) for side in SIDES}

    apart = [
        (grades["policy", q["question_id"], turn] - grades["against", q["question_id"], turn], at)
        for at, q in enumerate(questions)
        for turn in range(2)
        if all((side, q["question_id"], turn) in grades for side in SIDES)
    ]
    difference = None
    if apart:
        values, numbers = (np.array(each) for each in zip(*apart, strict=True))
        difference = asdict(bootstrap(values.astype(float), prompts=numbers))
    categories = dict.fromkeys(q["category"] for q in questions)
    return {
        "score": both((0, 1)) | {"difference": difference},
        "turns": [both((0,)), both((1,))],
        "categories": {name: both((0, 1), name) for name in categories},
    }
