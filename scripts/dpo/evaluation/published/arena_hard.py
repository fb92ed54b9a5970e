"""Arena-Hard (Li et al. 2024, arXiv 2406.11939): by how much a judge finds a model's answers
to hard prompts better or worse than a baseline's.

Prompts, the baselines' answers, the judge's prompts and its settings are read from a checkout of
the suite's own repository, and none of them is kept here. What it prescribes is from there too
(commit 196f6b8): the judge compares twice, the answers' places swapped (gen_judgment.py), and its
last label counts; in show_result.py a verdict of much better or worse counts three times, a tie
half, and the score is the mean over all of a category. Style control is in style_control.py.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core.stats import Interval, bootstrap, resampled, share
from dpo.evaluation.judges import endpoint
from dpo.evaluation.published import style_control
from dpo.evaluation.published.arena_checkout import SCORES, Suite, points, read, text_of
from dpo.evaluation.published.asking import Judge, Messages, check_url
from dpo.evaluation.published.suite import SIDES, Contest, checked

WHOLE = {"arena_hard": 750, "arena_hard_v0.1": 500}
# config/api_config.yaml of now, of models that do not think first; gen_answer_config.yaml of then.
MAX_NEW_TOKENS = {"arena_hard": 8196, "arena_hard_v0.1": 4096}
TEMPERATURE = 0.0


def label_by(patterns: list[str]) -> Callable[[str], str | None]:
    """How a label is read of what a judge says: the last that matches the first pattern which any
    matches; None where it is no verdict."""

    def label(said: str) -> str | None:
        for pattern in patterns:
            found = [each for each in re.findall(pattern, said.upper()) if each]
            if found:
                return found[-1] if found[-1] in SCORES else None
        return None

    return label


def request(suite: Suite, question: dict[str, Any], a: str, b: str) -> Messages:
    """What the judge is asked about two answers, in the suite's own words."""
    words = {"QUESTION": question["prompt"], "ANSWER_A": a, "ANSWER_B": b}
    return [
        {"role": "system", "content": suite.system[question["category"]]},
        {"role": "user", "content": suite.template.format(**words)},
    ]


def evaluate(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Arena-Hard of a run's policy and of what it is held against.

    Returns the file of the results, and the results.

    Raises:
        Refusal: the suite, a model or the judge is not as it must be.
    """
    check_url(args)
    suite = read(args.prompts, args.suite, args.limit)
    others = style_control.others_of(suite, args.judge_model.rpartition("/")[2])
    contest = Contest.of(args, Judge.of(args, suite.how, suite.judge))
    checked(contest.judge)
    temperature = TEMPERATURE if args.temperature is None else args.temperature
    cut = args.max_new_tokens or MAX_NEW_TOKENS[args.suite]
    drawn = contest.answers([each["prompt"] for each in suite.questions], temperature, cut)
    uids = [each["uid"] for each in suite.questions]
    said = {side: dict(zip(uids, drawn[side], strict=True)) for side in SIDES}
    requests = {}
    for side in SIDES:
        for question in suite.questions:
            uid = question["uid"]
            both = [text_of(suite.baseline[uid]), said[side][uid]]
            requests[side, uid, 0] = request(suite, question, *both)
            requests[side, uid, 1] = request(suite, question, *both[::-1])
    reading = label_by(suite.patterns)
    labels, asking = contest.verdicts(requests, lambda answer: endpoint.read(answer, reading))

    def of(side: str, uid: str) -> list[str | None]:
        return [labels.get((side, uid, game)) for game in (0, 1)]

    battles = {side: {uid: points(*of(side, uid)) for uid in uids} for side in SIDES}
    lines = [
        {"uid": each["uid"], "category": each["category"], "prompt": each["prompt"]}
        | {side: said[side][each["uid"]] for side in SIDES}
        | {f"{side}_labels": of(side, each["uid"]) for side in SIDES}
        for each in suite.questions
    ]
    found = {
        "temperature": temperature,
        "max_new_tokens": cut,
        "baselines": suite.baselines,
        "score": scores(suite.questions, battles),
        "style_controlled": style_control.controlled(suite, others, said, battles),
    }
    prescribed = {"temperature": TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS[args.suite]}
    return contest.written(lines, WHOLE[args.suite], prescribed, **found, **asking)


def scores(questions: list[dict], battles: dict[str, dict[str, list]]) -> dict[str, Any]:
    """By category both models' scores, from 0 to 1, a half as good as the baseline, with 95%
    intervals over questions; and the policy's less the other's, of what is judged of both."""

    def sums(side: str, uids: list[str]) -> np.ndarray:
        return np.array([[sum(battles[side][uid]), len(battles[side][uid])] for uid in uids]).T

    found = {}
    for category in dict.fromkeys(each["category"] for each in questions):
        uids = [each["uid"] for each in questions if each["category"] == category]
        judged = {side: [uid for uid in uids if battles[side][uid]] for side in SIDES}
        found[category] = dict.fromkeys((*SIDES, "difference"))
        for side in SIDES:
            if judged[side]:
                points, counts = sums(side, judged[side]).astype(float)
                alike = np.ptp(points / counts) < 1e-12  # then no resample would differ
                of = share(points / counts) if alike else bootstrap(points, weights=counts)
                found[category][side] = asdict(of) | {"judged": len(judged[side])}
        if both := [uid for uid in uids if all(battles[side][uid] for side in SIDES)]:
            each = np.concatenate([sums(side, both) for side in SIDES]).astype(float)
            mean = np.array([1, 0, -1, 0]) @ (each.sum(1) / each.sum(1)[[1, 1, 3, 3]])
            drawn = resampled(each)
            low, high = np.quantile(drawn[0] / drawn[1] - drawn[2] / drawn[3], [0.025, 0.975])
            found[category]["difference"] = asdict(Interval(float(mean), float(low), float(high)))
    return found
