"""What scores come to: intervals of a stream, sections, calibration, pairs at either end."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from dpo.core import stats
from dpo.use.score import printed, summary
from dpo.use.score.rows import columns_of, source_of
from dpo.use.score.sections import SECTIONS
from dpo.use.score.selecting import smallest


def lines(margins, prompts=None, longer=None, **columns):
    """Lines as scores.jsonl has them, with their rows."""
    prompts = range(len(margins)) if prompts is None else prompts
    for at, (margin, prompt) in enumerate(zip(margins, prompts, strict=True)):
        tokens = {"tokens_chosen": 10 + (longer[at] if longer else 0), "tokens_rejected": 10}
        row = {name: values[at] for name, values in columns.items()}
        yield {"row": at + 1, "margin": float(margin), "prompt": f"{prompt:016x}", **tokens}, row


def test_intervals_of_a_stream_are_those_of_all_rows_at_once():
    """Rows of one prompt stand far apart, and count together all the same."""
    draw = np.random.default_rng(0)
    prompts = np.tile(np.arange(60), 5)
    margins = np.repeat([1.0, -1.0, 0.0], [180, 90, 30])
    margins = draw.permutation(margins.reshape(60, 5)).T.flatten()
    found = summary.summarise(lines(margins, prompts.tolist()), True, [])
    whole = stats.share(stats.accuracy(margins), prompts)
    alone = stats.share(stats.accuracy(margins))
    mean, low, high = found["accuracy"].values()
    assert mean == pytest.approx(whole.mean) and found["ties"] == 30
    assert low == pytest.approx(whole.low, abs=0.02)
    assert high == pytest.approx(whole.high, abs=0.02)
    assert high - low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize("each", [1, 5])
def test_where_all_are_right_the_interval_is_wilsons_by_the_number_of_prompts(each):
    prompts = np.repeat(np.arange(40), each)
    found = summary.summarise(lines(np.ones(40 * each), prompts.tolist()), True, [])
    expected = stats.share(np.ones(40))
    assert found["accuracy"]["high"] == 1
    assert found["accuracy"]["low"] == pytest.approx(expected.low, abs=0.02)


def test_rewardbench_weighs_subsets_as_its_code_does():
    """Of Reasoning, math is all right and half of one language: 984 rows weigh as all code."""
    subsets = ["math-prm"] * 4 + ["hep-cpp"] * 4 + ["alpacaeval-easy"] * 4 + ["none of them"]
    margins = [1] * 4 + [1, 1, -1, -1] + [1, 1, 1, -1] + [-1]
    found = summary.summarise(lines(margins, subset=subsets), True, ["subset"])["reward_bench"]
    reasoning = (984 * 1 + 164 * 0.5) / (984 + 164)
    sections = {name: each["accuracy"]["mean"] for name, each in found["sections"].items()}
    assert sections == pytest.approx({"Chat": 0.75, "Reasoning": reasoning})
    assert found["score"]["mean"] == pytest.approx((0.75 + reasoning) / 2)
    assert "hep-go" in found["sections"]["Reasoning"]["missing"]
    parts = {name: (each["rows"], each["of"]) for name, each in found["sections"].items()}
    assert parts == {"Chat": (4, 358), "Reasoning": (8, 6 * 164 + 447)}
    weights = {name: sum(subsets.values()) for name, subsets in SECTIONS.items()}
    assert weights == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 2 * 984}


def test_how_much_of_rewardbench_was_scored_is_said(capsys, monkeypatch):
    """As a terminal shows it; nothing is said of a section of which all rows are there."""
    monkeypatch.setenv("COLUMNS", "300")
    chat = [name for name, count in SECTIONS["Chat"].items() for _ in range(count)]
    margins = [1.0] * (len(chat) + 2)
    subsets = {"subset": [*chat, "hep-go", "donotanswer"]}
    found = summary.summarise(lines(margins, **subsets), True, ["subset"])["reward_bench"]
    printed.bench(found)
    shown = capsys.readouterr().out.split("\n")
    whole, chat, safety, reasoning = (line.split("│")[3].strip() for line in shown if "│ " in line)
    assert whole == "360 of 2,985 rows; without Chat Hard" and chat == ""
    assert safety.startswith("1 of 740 rows; without refusals-dangerous")
    assert reasoning.startswith("1 of 1,431 rows; without math-prm")


def test_subsets_are_known_however_they_are_written_and_however_many_come_before(monkeypatch):
    monkeypatch.setattr(summary, "MOST", 2)
    subsets = ["a", "b", "c", "HEP-GO", "hep-go ", "llmbar-adver-gptinst"]
    found = summary.summarise(lines([1] * 6, subset=subsets), True, ["subset"])
    counts = {each["name"]: each["count"] for each in found["by"]["subset"]}
    assert counts == {**{"a": 1, "b": 1, summary.OTHERS: 1, "hep-go": 2, "llmbar-adver-GPTInst": 1}}
    assert {*found["reward_bench"]["sections"]} == {"Chat Hard", "Reasoning"}


def test_class_labels_are_called_by_their_names(tmp_path):
    labels = ClassLabel(names=["donotanswer", "hep-go"])
    features = Features({"prompt": Value("string"), "subset": labels})
    rows = {"prompt": ["a", "b", "c", "d"], "subset": [1, 0, None, -1]}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "pairs.parquet")
    source = source_of(str(tmp_path / "pairs.parquet"), "")
    found = [row["subset"] for row in columns_of(source.rows, ["subset"])]
    assert found == ["hep-go", "donotanswer", None, None]


def test_calibration_is_how_far_what_is_said_is_from_what_is_right():
    """σ says 0.73 where 3 of 4 are right, and 0.95 where one of two is."""
    margins = [1, 1, 1, -1, 3, -3]
    found = summary.summarise(lines(margins), True, [])["calibration"]
    said = 1 / (1 + np.exp(-np.array([1, 3])))
    assert [each["said"] for each in found["bins"]] == pytest.approx(said)
    assert [each["right"]["mean"] for each in found["bins"]] == [0.75, 0.5]
    apart = (4 * abs(said[0] - 0.75) + 2 * abs(said[1] - 0.5)) / 6
    assert found["expected_error"] == pytest.approx(apart)


def test_length_bias_is_by_the_longer_side_and_a_correlation():
    longer, margins = [5, 4, 0, -4, -5], [2, 1, 0.5, -1, -2]
    found = summary.summarise(lines(margins, longer=longer), True, [])
    by = {each["name"]: each["accuracy"]["mean"] for each in found["by_length"]}
    assert by == {"chosen is longer": 1, "about equal": 1, "chosen is shorter": 0}
    expected = np.corrcoef(longer, margins)[0, 1]
    assert found["length_correlation"]["mean"] == pytest.approx(expected)


def test_more_values_than_a_column_of_categories_has_are_one(monkeypatch):
    monkeypatch.setattr(summary, "MOST", 2)
    found = summary.summarise(lines([1, -1, 1, 1], of=["a", "b", "c", None]), True, ["of"])["by"]
    counts = {each["name"]: each["count"] for each in found["of"]}
    assert counts == {"a": 1, "b": 1, summary.OTHERS: 2}


def test_values_that_differ_are_never_one():
    """Not those that begin alike, nor a word for what is missing and a missing one."""
    values = ["a" * 80 + "b", "a" * 80 + "c", "none", None]
    found = summary.summarise(lines([1, -1, 1, 1], of=values), True, ["of"])["by"]["of"]
    assert [each["count"] for each in found] == [1, 1, 1, 1]


def test_rows_that_were_set_aside_are_counted_by_reason():
    aside = [({"row": 9, "reason": "empty", "detail": ""}, {})] * 3
    found = summary.summarise(iter([*lines([1.0]), *aside]), True, [])
    assert (found["rows"], found["scored"], found["set_aside"]) == (4, 1, {"empty": 3})


@pytest.mark.parametrize("count", [1, 7, 500, 999, 1000])
def test_the_smallest_of_a_stream_are_found_without_keeping_it(count):
    draw = np.random.default_rng(count)
    numbers = draw.integers(0, 2**64, 1000, dtype=np.uint64)
    numbers[::3] = numbers[0]  # many are equal
    numbers[1::7] >>= np.uint64(40)
    limit, equal = smallest(lambda: iter(np.split(numbers, 10)), count)
    chosen = np.sort(numbers)[:count]
    assert limit == chosen[-1] and equal == (chosen == limit).sum()
