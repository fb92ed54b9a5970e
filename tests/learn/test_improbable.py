"""make learn WHAT=improbable: answers in capitals, and what the runs come to."""

import json
import re

import numpy as np
import pytest

from dpo.core.files import read_lines
from dpo.evaluation.contestants import Contestant
from dpo.learn import improbable, pictures, runs
from dpo.learn.improbable import capitals, measuring, results
from dpo.models.scoring import score
from support.place import ROOT

CANDIDATES = ROOT / "recipes/data/sentiment/candidates.jsonl"


def said(pair: dict, side: str) -> str:
    (message,) = pair[side]
    assert message["role"] == "assistant"
    return message["content"]


def test_answers_in_capitals_are_told_from_others():
    plain = "I loved the U.S. bakery, 5 stars for a café that's open!"
    assert capitals.in_capitals(plain.upper())
    assert capitals.in_capitals("GREAT BREAD AND A LOVELY PLACE of")  # nine of ten letters
    for other in ("", "5!", plain, plain.title(), "GREAT bread, and a lovely place"):
        assert not capitals.in_capitals(other)


def test_the_best_answer_is_held_against_the_worst_and_both_are_in_capitals(tmp_path):
    counts = capitals.write_data(CANDIDATES, tmp_path / "data", 7, str.upper)
    assert counts["test"] == 7 and counts["train"] > 500
    asked = {str(row["prompt"]): row["answers"] for row in read_lines(CANDIDATES)}
    pairs = read_lines(tmp_path / "data/train.jsonl")
    for pair in pairs[:50]:
        whole = [each for each in asked[str(pair["prompt"])] if each["why"] is None]
        scores = [each["score"] for each in whole]
        assert (pair["vader_chosen"], pair["vader_rejected"]) == (max(scores), min(scores))
        written = {each["text"].upper(): each["score"] for each in whole}
        assert written[said(pair, "chosen")] == max(scores)
        assert written[said(pair, "rejected")] == min(scores)

    assert capitals.write_data(CANDIDATES, tmp_path / "plain", 7, str) == counts
    for pair, plain in zip(pairs, read_lines(tmp_path / "plain/train.jsonl"), strict=True):
        assert pair["prompt"] == plain["prompt"]
        for side in capitals.SIDES:
            assert said(pair, side) == said(plain, side).upper() != said(plain, side)


def test_log_probabilities_are_those_of_the_answers(tiny_model, tmp_path):
    """Of the untrained model on itself: as many nats a token as its scores say, and no KL."""
    capitals.write_data(CANDIDATES, tmp_path, 3, str.upper)
    flags = [f"--model_name_or_path={tiny_model}", f"--dataset_name={tmp_path}"]
    who = Contestant(str(tiny_model), str(tiny_model), dtype="float32")
    held = measuring.Held.of(runs.recipe_of(flags), who, most=2)
    assert len(held.asked) == len(held.ids) == 2 and held.tokens().shape == (2, 3)
    words = who.tokenizer()
    first = words.decode(held.rows[0][1])
    assert first.startswith(said(read_lines(tmp_path / "test.jsonl")[0], "chosen"))
    found = measuring.measure_policy(who, held, "cpu")
    alone = score(who.load("cpu"), held.rows, words.pad_token_id)
    for side, logps, tokens in zip(
        capitals.SIDES, alone.reshape(2, -1), held.tokens(), strict=True
    ):
        assert found[side]["mean"] == pytest.approx(logps.sum() / tokens.sum(), abs=1e-4)
        assert found["each"][side] == pytest.approx(logps, abs=1e-2)
    assert found["greedy"]["mean"] > found["chosen"]["mean"]  # the likeliest token each time
    assert found["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert len(found["texts"]) == len(found["each"]["reward"]) == 2


def point(chosen: list[float], rejected: list[float], reward: list[float] | None = None) -> dict:
    each = {"chosen": chosen, "rejected": rejected, "reward": reward or [0.0] * len(chosen)}
    return {"each": each, "texts": [f"{chosen[0]} at {at}" for at in range(20)]}


def test_changes_are_paired():
    """All pairs lose as much a token, however improbable each is."""
    tokens = np.array([[10, 20, 40], [10, 10, 10]])
    then = point([-90.0, -20.0, -160.0], [-10.0, -20.0, -30.0], [0.1, 0.5, 0.9])
    now = point([-95.0, -30.0, -180.0], [-20.0, -30.0, -40.0], [0.3, 0.7, 1.1])
    found = results.changes(now, then, tokens)
    expected = {"chosen": -0.5, "rejected": -1.0, "reward": 0.2}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert [*found[name].values()] == pytest.approx([value] * 3)


def moved(by: float) -> dict:
    sides = ("chosen", "rejected", "reward")
    return {name: {"mean": by, "low": by - 0.1, "high": by + 0.1} for name in sides}


def test_eight_answers_stand_side_by_side():
    asked = [f"prompt {at}" for at in range(20)]
    before, after = point([-1.0], [-1.0]), point([-2.0], [-1.0])
    shown = results.side_by_side(asked, before, {"sigmoid": after})
    assert len(shown) == 8 and shown[3] == {
        "prompt": "prompt 6",
        "before": "-1.0 at 6",
        "sigmoid": "-2.0 at 6",
    }
    assert len(results.side_by_side(asked[:4], before, {})) == 4


def made() -> dict:
    def measured(of: float) -> dict:
        return {
            name: {"mean": of + at / 8, "low": of - 0.25, "high": of + 1}
            for at, name in enumerate(results.METRICS)
        }

    plain, both = (improbable.SIGMOID, improbable.BESIDE), (improbable.SIGMOID, improbable.BEFORE)
    points = [
        {"pairs": name, "way": way, "step": step}
        | {**measured(at + step / 10), "change": moved(more - step / 100)}
        for name, ways, more in ((capitals.PLAIN, plain, 0), (capitals.CAPITALS, both, 1))
        for at, way in enumerate(ways)
        for step in (4, 8)
    ]
    found = {"before": {name: measured(0.0) for name in capitals.WRITES}, "points": points}
    found |= {"to_sigmoid": [{"pairs": capitals.PLAIN, "way": improbable.BESIDE, **moved(1)}]}
    return json.loads(json.dumps(found | {"claims": results.claims(found)}))


def test_what_is_printed_is_what_is_claimed():
    found = made()
    text = improbable.table(found)
    assert "| as they were | before | 0 |  |  | 0.00 (-0.25 to 1.00) |" in text
    for answers, change in (("as they were", "-0.08 (-0.18 to +0.02)"), ("in capitals", "+0.92")):
        assert f"| {answers} | sigmoid | 8 | {change}" in text
    claimed = {abs(value) for value in found["claims"].values()}
    printed = re.findall(r"\d+(?:\.\d+)?", re.sub(r"\| \d+ \|", "|", text))  # but which step it is
    assert len(printed) > 200 and {float(number) for number in printed} <= claimed


def test_the_picture_is_drawn_from_the_json(tmp_path):
    found = made()
    pictures.write("improbable", found, results.table(found), results.draw(found), tmp_path)
    first = (tmp_path / "improbable.png").read_bytes()
    assert len(first) < 120_000
    figure = results.draw(json.loads((tmp_path / "improbable.json").read_text()))
    shown = {axis.get_title(): axis for axis in figure.axes}
    assert [*shown] == [
        f"{side}, {name}" for name in ("as they were", "in capitals") for side in capitals.SIDES
    ]
    ways = ([improbable.SIGMOID, improbable.BESIDE], [improbable.SIGMOID, improbable.BEFORE])
    for axis, there, ends in zip(figure.axes[::2], ways, (-0.08, 0.92), strict=True):
        lines = {each.get_label(): each[0].get_ydata() for each in axis.containers}
        assert [*lines] == there  # from before training on
        for each in lines.values():
            assert [each[0], each[-1]] == pytest.approx([0, ends])
