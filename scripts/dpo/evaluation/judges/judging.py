"""Which of two answers is better: by the known reward, a reward model, another model, a person."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core.hashing import name_of
from dpo.core.refusal import Refusal
from dpo.evaluation.judges import endpoint, human
from dpo.evaluation.judges.known_reward import vader_score
from dpo.evaluation.judges.reward_model import RewardModel
from dpo.evaluation.judges.rule import Rule, is_rule
from dpo.evaluation.judges.verdicts import Comparison, Kept, Verdicts, left_out
from dpo.models.sampling import Messages, row_of, turns

KNOWN, HAND = "vader", "hand"
ABOUT_KNOWN = {"kind": "reward", "name": KNOWN}
Answer = tuple[Messages, str, dict[str, Any]]  # a prompt, an answer, the row of the prompt
# How a judge scores answers: key → prompt and answer in; key, reward, or why there is none, out.
Score = Callable[[dict[str, Any]], Iterator[tuple[str, float | None, str | None]]]


def vader(answers: dict[str, Answer]) -> Iterator[tuple[str, float, None]]:
    return ((key, vader_score(answer), None) for key, (_, answer, _) in answers.items())


def check(name: str, model: str | None = None) -> None:
    """See that there is such a judge, before anything is generated for it.

    Raises:
        Refusal: there is none, or it does not answer.
    """
    if endpoint.is_url(name):
        endpoint.check(name, model)
    elif name == HAND:
        human.check()
    elif is_rule(name):
        Rule(name)
    elif name != KNOWN:
        RewardModel(name)


def judge(
    name: str,
    comparisons: list[Comparison],
    kept: Path,
    *,
    model: str | None = None,
    device: str = "cpu",
    **how: Any,
) -> Verdicts:
    """Ask a judge, and keep each judgement in the file `kept` as it comes: when it is asked again,
    it is asked only for those that are missing.

    Args:
        name: `vader`, `hand`, the URL of an endpoint, a rule, or a reward model.
        model: its name, of an endpoint, which is asked with `how` (endpoint.py).
        device: of a reward model.

    Raises:
        Refusal: the judge gives no verdict at all, or refuses to.
    """
    with Kept(kept) as judgements:
        if endpoint.is_url(name):
            verdicts = endpoint.judge(name, model, comparisons, judgements, **how)
        elif name == HAND:
            verdicts = human.judge(comparisons, judgements)
        elif name == KNOWN:
            verdicts = by_reward(ABOUT_KNOWN, ABOUT_KNOWN, vader, comparisons, judgements)
        else:
            verdicts = by_reward(*scorer(name, device), comparisons, judgements)
    if np.isnan(verdicts.preferred).all():
        why = ", ".join(f"{reason} ({count})" for reason, count in verdicts.left_out.items())
        raise Refusal(f"the judge {name} gave no verdict: {why or 'it was asked nothing'}")
    return verdicts


def scorer(name: str, device: str) -> tuple[dict[str, Any], dict[str, Any], Score]:
    """What a judge that scores each answer says of itself, all that its scores depend on, and how
    it scores. It loads nothing before it is asked.

    Raises:
        Refusal: there is no such judge.
    """
    if name == KNOWN:
        return ABOUT_KNOWN, ABOUT_KNOWN, vader
    if is_rule(name):
        rule = Rule(name)
        return rule.about, rule.about, rule.score
    model = RewardModel(name, device)
    return model.about, model.identity, model.score


def by_known_reward(comparisons: list[Comparison]) -> Verdicts:
    """Verdicts of the known reward, kept nowhere: it takes no time."""
    rewards = [[vader_score(each.policy), vader_score(each.against)] for each in comparisons]
    return of_rewards(rewards, ABOUT_KNOWN, {})


def by_reward(
    about: dict[str, Any],
    identity: dict[str, Any],
    score: Score,
    comparisons: list[Comparison],
    kept: Kept,
) -> Verdicts:
    """Verdicts of a judge that scores each answer alone. The same answer to the same prompt is
    scored once, so that it is exactly as good as itself.

    Args:
        identity: all that the scores depend on.
    """
    kept.introduce(about)
    answers: dict[str, Answer] = {}
    keys = []
    for compared in comparisons:
        asked, row = turns(compared.prompt), row_of(compared.prompt)
        pair = [(asked, text, row) for text in (compared.policy, compared.against)]
        keys.append(tuple(key_of(identity, each) for each in pair))
        answers |= zip(keys[-1], pair, strict=True)
    ask(score, answers, kept)
    found = [[kept.entries[key]["reward"] for key in pair] for pair in keys]
    return of_rewards(found, about, left_out(keys, kept.entries, {}, "reward"))


def key_of(identity: dict[str, Any], answer: Answer) -> str:
    """The name of a judgement, by the judge and all that it is shown."""
    prompt, text, row = answer
    return name_of((identity, prompt, text, *([row] if row else [])))


def ask(score: Score, answers: dict[str, Any], kept: Kept) -> None:
    """Have those answers scored, by key, that are not kept."""
    missing = {key: asked for key, asked in answers.items() if key not in kept.entries}
    for key, reward, reason in score(missing):
        kept.append({"key": key, "reward": reward} | ({"reason": reason} if reason else {}))


def of_rewards(pairs: list, about: dict[str, Any], left_out: dict[str, int]) -> Verdicts:
    """Verdicts by the rewards of the policy's and the other answer, shape (n, 2); None is NaN."""
    rewards = np.array(pairs, dtype=float).reshape(-1, 2).T
    preferred = (np.sign(rewards[0] - rewards[1]) + 1) / 2  # NaN stays NaN
    rewards[:, np.isnan(preferred)] = np.nan
    return Verdicts(preferred, rewards, left_out, about)
