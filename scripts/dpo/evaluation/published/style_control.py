"""Style control of Arena-Hard: a model's score, were its answers as long and marked up as others.

A Bradley-Terry fit of all that a judge has said of the suite, of other models' answers too, with
four terms of style beside the models (show_result.py, utils/math_utils.py and
utils/add_markdown_info.py of the suite's own repository, commit 196f6b8). Style is centred over all
of these, so that without other models there is nothing to control by.
"""

import importlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dpo.core.refusal import one_line
from dpo.evaluation.published.arena_checkout import Suite, answers_of, labels_of, points
from dpo.evaluation.published.suite import SIDES, interval

FEATURES = ("token_len", "header_count", "list_count", "bold_count")
CODE = re.compile(r"```([^`]*)```")
MARKS = (
    re.compile(r"^#{1,6}\s", re.MULTILINE),
    re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
)
COUNTED_BY = "gpt-4o"  # whose tokens an answer's length is in
ROUNDS = 100
Battles = dict[str, dict[str, list[float]]]  # model, uid, and what its verdicts count


@dataclass
class Others:
    """Other models that a judge has compared: their answers' style, and what its verdicts count;
    or what the checkout `lacks` of them."""

    styles: dict[str, dict[str, list[float]]]
    battles: Battles
    lacks: str = ""


def others_of(suite: Suite, judge: str) -> Others:
    """What lies in a checkout.

    Raises:
        Refusal: a file of it is not as it must be.
    """
    found, folder = Others({}, {}), suite.folder
    for model, labels in labels_of(folder, judge).items():
        if (folder / "model_answer" / f"{model}.jsonl").is_file():
            lines = answers_of(folder, model)
            styles = {uid: known(line) for uid, line in lines.items() if has_style(line)}
            found.styles[model] = styles
            found.battles[model] = {u: points(*each) for u, each in labels.items() if u in styles}
    if not any(found.battles.values()):
        found.lacks = f"other models' answers with verdicts of {judge} on them in {folder}"
    elif not all(map(has_style, suite.baseline.values())):
        found.lacks = f"the style of the baseline's answers in {folder}"
    return found


def controlled(
    suite: Suite, others: Others, said: dict[str, dict[str, str]], battles: Battles
) -> dict[str, Any]:
    """By category both models' scores with style controlled, and the policy's less the other's,
    with 95% intervals over questions; or what it `lacks`.

    Args:
        said: side, uid, and the answer.
        battles: of both sides.
    """
    if others.lacks:
        return {"lacks": others.lacks}
    try:
        mine = {side: {uid: style_of(text) for uid, text in said[side].items()} for side in SIDES}
    except (ImportError, OSError) as error:
        why = f"tiktoken, for lengths in {COUNTED_BY}'s tokens ({one_line(error)}): pip install "
        return {"lacks": why + "--requirement requirements-arena.txt, and the same command again"}
    found = {}
    for category in suite.baselines:
        uids = [each["uid"] for each in suite.questions if each["category"] == category]
        baseline = {uid: known(suite.baseline[uid]) for uid in uids}
        styles, taken = others.styles | mine, others.battles | battles
        found[category] = of_category(uids, baseline, styles, taken)
    return found


def style_of(text: str) -> list[float]:
    """An answer's length in tokens, and its headers, list items and bold words outside of code.

    Raises:
        ImportError: tiktoken is not installed.
        OSError: it cannot get the tokens.
    """
    encoding: Any = importlib.import_module("tiktoken").encoding_for_model(COUNTED_BY)
    return [len(encoding.encode(text, disallowed_special=())), *marks_of(text)]


def marks_of(text: str) -> list[float]:
    for block in CODE.findall(text):
        text = text.replace(block, "")
    return [len(mark.findall(text)) for mark in MARKS]


def has_style(line: dict[str, Any]) -> bool:
    try:
        return bool(np.isfinite(known(line)).all())
    except (KeyError, TypeError):
        return False


def known(line: dict[str, Any]) -> list[float]:
    """The same of a line of model_answer, which has it."""
    each = (line["metadata"][name] for name in FEATURES)
    return [sum(value.values()) if isinstance(value, dict) else value for value in each]


def features(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How two answers differ in style, shape (n, 4) as each: in length by their sum, in marks by
    how dense they are."""
    total = mine[:, :1] + other[:, :1]
    longer = (mine[:, :1] - other[:, :1]) / np.maximum(total, 1)
    dense, others = (each[:, 1:] / (each[:, :1] + 1) for each in (mine, other))
    return np.concatenate([longer, (dense - others) / (dense + others + 1)], axis=1)


def of_category(
    uids: list[str], baseline: dict[str, list], styles: dict[str, dict], battles: Battles
) -> dict[str, Any]:
    """What `controlled` finds of a category's questions, and how many other models took part."""
    models = [name for name in battles if any(battles[name].get(uid) for uid in uids)]
    rows = [
        (models.index(model), at, styles[model][uid], baseline[uid], point)
        for model in models
        for at, uid in enumerate(uids)
        for point in battles[model].get(uid, ())
    ]
    if not all(side in models for side in SIDES) or len(models) == len(SIDES):
        return dict.fromkeys((*SIDES, "difference"))
    who, question, mine, other, outcome = zip(*rows, strict=True)
    style = features(np.array(mine, float), np.array(other, float))
    spread = style.std(axis=0, ddof=1)
    style = (style - style.mean(axis=0)) / np.where(spread, spread, 1)
    plays = np.eye(len(models))[list(who)]
    inputs = np.concatenate([plays, -np.ones((len(rows), 1)), style], axis=1)
    design = torch.tensor(inputs, dtype=torch.float32)
    won = torch.tensor(outcome, dtype=torch.float32)
    draws = np.random.default_rng(0).integers(0, len(uids), size=(ROUNDS, len(uids)))
    counts = [np.ones(len(uids)), *(np.bincount(draw, minlength=len(uids)) for draw in draws)]
    scores = []
    for count in counts:
        weights = torch.tensor(count[list(question)], dtype=torch.float32)
        coefficients = fit(design, won, weights)
        apart = coefficients[: len(models)] - coefficients[len(models)]
        scores.append([torch.sigmoid(apart[models.index(side)]).item() for side in SIDES])
    policy, against = np.array(scores).T
    found = {"policy": policy, "against": against, "difference": policy - against}
    return {name: interval(of) for name, of in found.items()} | {"others": len(models) - len(SIDES)}


def fit(design: torch.Tensor, won: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The coefficients of a Bradley-Terry model, found as the suite finds them: with the same
    optimiser, from the same start."""
    coefficients = torch.full((design.shape[1],), 0.5, requires_grad=True)
    how = {"lr": 0.1, "max_iter": 50, "tolerance_grad": 1e-9, "tolerance_change": 1e-9}
    optimizer = torch.optim.LBFGS([coefficients], **how)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = design @ coefficients
        loss = binary_cross_entropy_with_logits(logits, won, weights, reduction="sum")
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return coefficients.detach()
