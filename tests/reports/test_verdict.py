"""A report begins with what the intervals say, and with what speaks against it."""

import pytest

from dpo.reports.parts.verdict import definitions, verdict


def of(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def found(**changed) -> dict:
    """A run that got better by its true reward, and in nothing worse."""
    reward = {"against": of(0.33, 0.2, 0.4), "policy": of(0.73, 0.6, 0.8)}
    judge = {"name": "vader", "reward": reward | {"difference": of(0.4, 0.3, 0.5)}}
    judge |= {"win_rate": of(0.7, 0.6, 0.8), "length_controlled_win_rate": of(0.7, 0.6, 0.8)}
    sides = {"against": of(20.0, 18.0, 22.0), "policy": of(21.0, 19.0, 23.0)}
    answers = {"mean_tokens": sides | {"difference": of(1.0, 0.5, 1.5)}, "kl": {}, "on_topic": None}
    pairs = {"accuracy": of(0.73, 0.65, 0.81)}
    return {"judge": judge, "answers": answers, "pairs": pairs} | changed


def said(report: dict) -> tuple[str, str]:
    tone, sentences = verdict(report)
    return tone, " ".join(sentences)


def judged(**changed) -> dict:
    return found(judge=found()["judge"] | changed)


def by_reward(difference: dict) -> dict:
    return judged(reward=found()["judge"]["reward"] | {"difference": difference})


def topic(difference: dict) -> dict:
    sides = {"against": of(0.88, 0.8, 0.9), "policy": of(0.71, 0.6, 0.8)}
    of_topic = {"prompts": 124, **sides, "difference": difference}
    return found(answers=found()["answers"] | {"on_topic": of_topic})


def longer(controlled: dict | None) -> dict:
    sides = {"against": of(20.0, 18.0, 22.0), "policy": of(40.0, 38.0, 42.0)}
    answers = found()["answers"] | {"mean_tokens": sides | {"difference": of(20.0, 18.0, 22.0)}}
    return judged(length_controlled_win_rate=controlled) | {"answers": answers}


LEARNED = "accuracy 0.73, 95% interval 0.65 to 0.81"
# name: (the results, the tone, what is said, what is not)
CASES = {
    "better": (found(), "up", "Better in true reward (+0.33 → +0.73, difference +0.40", "price"),
    "worse": (by_reward(of(-0.4, -0.5, -0.3)), "down", "Worse in true reward", "Better"),
    "noise": (by_reward(of(0.1, -0.1, 0.3)), "dim", "No difference beyond noise", "Better"),
    "the pairs too": (found(), "up", LEARNED, "no judge"),
    "a judge": (judged(reward=None, name="m"), "up", "Better in win rate by m (0.70", "reward"),
    "a judge, noise": (
        judged(reward=None, name="m", win_rate=of(0.5, 0.4, 0.6)),
        *("dim", "No difference beyond noise in win rate by m", "Better"),
    ),
    "off topic": (
        topic(of(-0.17, -0.24, -0.11)),
        *("up", "88% → 71% name what was asked about, 11 to 24 points fewer", "longer"),
    ),
    "off topic at a price": (topic(of(-0.17, -0.24, -0.11)), "up", "at a price.", "Worse"),
    "on topic within noise": (topic(of(-0.1, -0.24, 0.01)), "up", "Better", "topic"),
    "longer": (longer(None), "up", "Answers are much longer: 20 → 40 tokens", "At one length"),
    "longer alone": (longer(of(0.5, 0.4, 0.6)), "up", "At one length nothing is left", "topic"),
    "longer and better": (longer(of(0.7, 0.6, 0.8)), "up", "much longer", "At one length"),
    "no judge": (
        found(judge=None),
        "up",
        "It tells held-out preferences apart: " + LEARNED,
        "Better",
    ),
    "no judge, the opposite": (
        found(judge=None, pairs={"accuracy": of(0.3, 0.2, 0.4)}),
        *("down", "the opposite of the held-out preferences", "It learned the preferences"),
    ),
    "no judge, chance": (
        found(judge=None, answers=None, pairs={"accuracy": of(0.5, 0.4, 0.6)}),
        *("dim", "does not tell held-out preferences apart", "learned"),
    ),
    "nothing": (
        found(judge=None, answers=None, pairs=None),
        *("dim", "Nothing says whether it is better: no held-out pairs", "learned"),
    ),
}


@pytest.mark.parametrize("report, tone, says, says_not", CASES.values(), ids=CASES)
def test_the_verdict_says_what_the_intervals_say(report, tone, says, says_not):
    found, text = said(report)
    assert found == tone and says in text and says_not not in text, text


def test_what_is_not_measured_is_not_defined():
    assert [*definitions(found(judge=None, answers=None))] == ["Preference accuracy"]
    assert "Win rate" in definitions(judged(name="m")) and "True reward" in definitions(found())
