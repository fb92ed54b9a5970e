"""The checkout of Arena-Hard that a user brings: prompts, answers and verdicts of other models, how
the judge is asked, and what its labels count. Nothing of it is kept here, and no code of it run."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.core.refusal import Refusal
from dpo.evaluation.published.suite import check_form, check_shape, found_in, lines_of
from dpo.recipe.strict import load_yaml

CLONE = "https://github.com/lmarena/arena-hard-auto"
SETTINGS = Path("utils/judge_utils.py")
BENCHMARKS = {"arena_hard": "arena-hard-v2.0", "arena_hard_v0.1": "arena-hard-v0.1"}
# Beside the one that its settings name: of v2.0 the leaderboards have both.
JUDGES = {"arena_hard": ("gemini-2.5",)}
QUESTION = {"uid": str, "category": str, "prompt": str}
SETTING = {"baseline": str, "system_prompt": str}  # of a category
STATED = {"judge_model": str, "temperature": int | float, "max_tokens": int}
STATED |= {"prompt_template": str, "regex_patterns": [str]}
PLACES = {"QUESTION", "ANSWER_A", "ANSWER_B"}
# What a label says of answer A: 1 it is better, 0 it is worse, as many times as it counts.
SCORES = {"A>>B": [1, 1, 1], "A>B": [1], "A=B": [0.5], "A<B": [0], "A<<B": [0, 0, 0]}
SCORES |= {"B>>A": [0, 0, 0], "B>A": [0], "B=A": [0.5], "B<A": [1], "B<<A": [1, 1, 1]}


@dataclass
class Suite:
    """What is read of a checkout.

    Attributes:
        folder: of the benchmark, with question.jsonl and answers of other models.
        questions: with `uid`, `category` and `prompt`.
        baselines: category → its baseline's name.
        baseline: uid → the baseline's line of answer.
        system: category → the judge's system prompt.
        template: the judge's prompt, with {QUESTION}, {ANSWER_A} and {ANSWER_B}.
        patterns: of a label, the first that is met counts.
        how: of a chat completion.
        judge: by which the published figures are.
    """

    folder: Path
    questions: list[dict[str, Any]]
    baselines: dict[str, str]
    baseline: dict[str, dict[str, Any]]
    system: dict[str, str]
    template: str
    patterns: list[str]
    how: dict[str, Any]
    judge: str


def read(given: str, name: str, limit: int | None = None) -> Suite:
    """The suite of a checkout, its first `limit` questions.

    Raises:
        Refusal: a file is not there, or is not as it must be.
    """
    benchmark = BENCHMARKS[name]
    config, place = Path(f"config/{benchmark}.yaml"), Path("data", benchmark)
    folder = found_in(given, Path(), [SETTINGS, config, place / "question.jsonl"], CLONE)
    questions = lines_of(folder / place / "question.jsonl", QUESTION, "uid")[:limit]
    asked = [(each["uid"], each["category"]) for each in questions]
    try:
        settings = constant((folder / SETTINGS).read_text(encoding="utf-8"), "JUDGE_SETTINGS")
        stated = load_yaml(folder / config, (folder / config).read_text(encoding="utf-8"))
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        said = f"{folder} is not as it was at commit 196f6b8 ({why}): clone anew"
        raise Refusal(said) from error
    categories = dict.fromkeys(category for _, category in asked)
    check_shape(settings, dict.fromkeys(categories, SETTING), folder / SETTINGS)
    check_shape(stated, STATED, folder / config)
    template, patterns = stated["prompt_template"], stated["regex_patterns"]
    check_form(template, PLACES, f"{folder / config}, prompt_template")
    check_patterns(patterns, f"{folder / config}, regex_patterns")
    system = {each: settings[each]["system_prompt"] for each in categories}
    baselines = {each: settings[each]["baseline"] for each in categories}
    how = {key: stated[key] for key in ("temperature", "max_tokens")}
    judges = " or ".join(dict.fromkeys((stated["judge_model"], *JUDGES.get(name, ()))))
    answers = {model: answers_of(folder / place, model) for model in {*baselines.values()}}
    baseline = {}
    for uid, category in asked:
        model = baselines[category]
        if uid not in answers[model] or not isinstance(text_of(answers[model][uid]), str):
            path = folder / place / "model_answer" / f"{model}.jsonl"
            raise Refusal(f"{path} has no answer to {uid}: clone anew")
        baseline[uid] = answers[model][uid]
    parts = (baselines, baseline, system, template, patterns, how, judges)
    return Suite(folder / place, questions, *parts)


def check_patterns(patterns: list[str], where: str) -> None:
    """Raises Refusal where one is no regular expression of one label."""
    for pattern in patterns:
        try:
            why = "it has several groups" if re.compile(pattern).groups > 1 else ""
        except re.error as error:
            why = str(error)
        if why:
            raise Refusal(f"{where}: {pattern} reads no label ({why}): clone anew")


def constant(code: str, name: str) -> Any:
    """What a module assigns to a name, of constants alone: its code is read, and never run.

    Raises:
        KeyError: it assigns nothing to that name.
        ValueError: it assigns what is no constant.
    """
    known: dict[str, ast.expr] = {}

    class Known(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return known.get(node.id, node)

    for line in ast.parse(code).body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            known[line.targets[0].id] = Known().visit(line.value)
    return ast.literal_eval(known[name])


def answers_of(folder: Path, model: str) -> dict[str, dict[str, Any]]:
    """A model's lines of model_answer, by uid.

    Raises:
        Refusal: the file is not there, or a line is no answer.
    """
    path = folder / "model_answer" / f"{model}.jsonl"
    if not path.is_file():
        raise Refusal(f"{path} is not there, the answers of a baseline: clone {CLONE} anew")
    found = {e["uid"]: e for e in lines_of(path, {}) if isinstance(e.get("uid"), str)}
    for uid, line in found.items():
        try:
            text_of(line)
        except (KeyError, TypeError, IndexError) as error:
            raise Refusal(f"{path} has no answer to {uid}: clone anew") from error
    return found


def text_of(line: dict[str, Any]) -> str:
    """The answer in a line of model_answer."""
    return line["messages"][-1]["content"]["answer"]


def labels_of(folder: Path, judge: str) -> dict[str, dict[str, list[str | None]]]:
    """What a judge has said of other models: model, uid, and both labels.

    Raises:
        Refusal: a line is no verdict.
    """
    found: dict[str, dict[str, list[str | None]]] = {}
    for path in sorted((folder / "model_judgment" / judge).glob("*.jsonl")):
        for number, line in enumerate(lines_of(path, {}), start=1):
            try:
                first, second = (game and game["score"] for game in line["games"])
                hash((first, second))  # a TypeError where a label is a list
                found.setdefault(line["model"], {})[line["uid"]] = [first, second]
            except (KeyError, TypeError, ValueError) as error:
                raise Refusal(f"{path}, line {number} is no verdict: copy it anew") from error
    return found


def points(first: str | None, second: str | None) -> list[float]:
    """What two labels of an answer count, 1 where it is better: in the first it is answer B, in the
    second answer A. None where either lacks."""
    if first not in SCORES or second not in SCORES:
        return []
    return [1 - each for each in SCORES[first]] + SCORES[second]
