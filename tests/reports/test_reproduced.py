"""A run's numbers beside those that are expected: what is said of each."""

from dpo.recipe.header import Number
from dpo.reports import reproduced
from dpo.reports.reproduced import DIGIT, MISSING, OUTSIDE, WITHIN


def report(reward: float | None, accuracy: float) -> dict:
    of = {"policy": {"mean": reward, "low": reward, "high": reward}} if reward is not None else {}
    prompts = {"count": 8, "samples": 2, "max_new_tokens": 40, "temperature": 0.7, "seed": 5}
    return {
        "pairs": {"count": 9, "digest": "abc", "accuracy": {"mean": accuracy}},
        "judge": {"name": "vader", "kind": "reward", "reward": of} if of else None,
        "prompts": prompts if of else None,
        "answers": None,
        "versions": {"torch": "1", "vaderSentiment": "3.3.2"},
    }


EXPECTED = (
    Number("true reward", "0.735", 0.698, 0.771, 3),
    Number("Preference accuracy", "0.7", 0.65, 0.81, 2),
)


def verdicts(found: dict) -> list[str]:
    return [row["verdict"] for row in reproduced.beside(EXPECTED, found)]


def test_a_number_holds_within_its_interval_and_to_the_digit_where_it_is_the_same():
    assert verdicts(report(0.73549, 0.749)) == [DIGIT, DIGIT]
    assert verdicts(report(0.7356, 0.76)) == [WITHIN, WITHIN]
    assert verdicts(report(0.771, 0.816)) == [WITHIN, OUTSIDE]
    assert verdicts(report(0.6974, float("nan"))) == [OUTSIDE, OUTSIDE]
    assert verdicts(report(None, 0.7)) == [MISSING, DIGIT]


def test_a_number_is_held_to_its_interval_first_and_as_exactly_as_that_is_written():
    def verdict(got: float, *number) -> str:
        return reproduced.beside((Number("true reward", *number),), report(got, 0))[0]["verdict"]

    assert verdict(0.735, "1", 0.95, 1.05, 2) == OUTSIDE
    assert verdict(0.735, "0.7", 0.699, 0.701, 3) == OUTSIDE
    assert verdict(0.69449, "0.694", 0.693, 0.694, 3) == DIGIT
    assert verdict(0.6949, "0.69", 0.69, 0.7, 2) == DIGIT


def test_the_sentence_names_what_does_not_hold_and_claims_no_more_than_was_run():
    rows = reproduced.beside(EXPECTED, report(0.74, 0.7))
    assert reproduced.holds(rows)
    said = reproduced.verdict("one", (), rows)
    assert said == "one holds here: 1 of 2 numbers to the digit, the others within their tolerance"
    said = reproduced.verdict("one", ("--max_steps=2",), rows)
    assert said.startswith("one with --max_steps=2 holds here")
    assert said.endswith("; what one itself reaches was not tried")
    rows = reproduced.beside(EXPECTED, report(None, 0.5))
    assert not reproduced.holds(rows)
    said = reproduced.verdict("one", (), rows)
    assert "does not hold here: true reward was not measured" in said
    assert said.endswith("; Preference accuracy is 0.5, not 0.65 to 0.81")


def test_the_evaluators_are_named_with_their_versions():
    said = reproduced.evaluators(report(0.7, 0.7))
    assert said.startswith("VADER 3.3.2 on 8 prompts × 2 answers of at most 40 tokens")
    assert said.endswith("; 9 held-out pairs, digest abc")
    assert "VADER" not in reproduced.evaluators(report(None, 0.7))
