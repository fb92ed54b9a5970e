"""make learn WHAT=improbable: styles, which one is gone on with, and what the runs come to."""

import json
import re

import numpy as np
import pytest

from dpo.core.files import read_lines
from dpo.evaluation.contestants import Contestant
from dpo.learn import improbable, pictures, runs
from dpo.learn.improbable import measuring, results, styles
from dpo.models.scoring import score
from support.place import ROOT

CANDIDATES = ROOT / "recipes/data/sentiment/candidates.jsonl"


def said(pair: dict, side: str) -> str:
    (message,) = pair[side]
    assert message["role"] == "assistant"
    return message["content"]


def test_answers_are_rewritten_and_told_apart():
    plain = "I loved the U.S. bakery, 5 stars for a café that's open!"
    capitals, title = styles.STYLES["both in capitals"], styles.STYLES["both in title case"]
    assert capitals.write(plain) == plain.upper() and title.write(plain) == plain.title()
    for style, other in ((capitals, title), (title, capitals)):
        assert style.written(style.write(plain)) and not style.written(other.write(plain))
        assert not style.written("") and not style.written(plain)
    assert not capitals.written("GREAT bread, and a lovely place")
    assert not title.written("Great Bread, and a lovely Place")


@pytest.mark.parametrize("name", styles.STYLES)
def test_the_best_answer_is_held_against_the_worst(name, tmp_path):
    style = styles.STYLES[name]
    counts = styles.write_data(CANDIDATES, tmp_path, style, held_out=7)
    assert counts["test"] == 7 and counts["train"] > 500
    asked = {str(row["prompt"]): row["answers"] for row in read_lines(CANDIDATES)}
    for pair in read_lines(tmp_path / "train.jsonl")[:50]:
        whole = [each for each in asked[str(pair["prompt"])] if each["why"] is None]
        scores = [each["score"] for each in whole]
        assert (pair["vader_chosen"], pair["vader_rejected"]) == (max(scores), min(scores))
        texts = {each["text"]: each["score"] for each in whole}
        written = {style.write(text): value for text, value in texts.items()}
        assert written[said(pair, "chosen")] == max(scores)
        assert (written if style.both else texts)[said(pair, "rejected")] == min(scores)


def test_log_probabilities_are_those_of_the_answers(tiny_model, tmp_path):
    """Of the untrained model on itself: as many nats a token as its scores say, and no KL."""
    style = styles.STYLES["chosen in capitals"]
    styles.write_data(CANDIDATES, tmp_path, style, held_out=3)
    flags = [f"--model_name_or_path={tiny_model}", f"--dataset_name={tmp_path}"]
    who = Contestant(str(tiny_model), str(tiny_model), dtype="float32")
    held = measuring.Held.of(runs.recipe_of(flags), who, style, most=2)
    assert len(held.asked) == len(held.ids) == 2 and held.tokens().shape == (2, 3)
    words = who.tokenizer()
    first = words.decode(held.rows[0][1])
    assert first.startswith(said(read_lines(tmp_path / "test.jsonl")[0], "chosen"))
    found = measuring.measure_policy(who, held, "cpu")
    alone = score(who.load("cpu"), held.rows, words.pad_token_id)
    for side, logps, tokens in zip(styles.SIDES, alone.reshape(2, -1), held.tokens(), strict=True):
        assert found[side]["mean"] == pytest.approx(logps.sum() / tokens.sum(), abs=1e-4)
        assert found["each"][side] == pytest.approx(logps, abs=1e-2)
    assert found["greedy"]["mean"] > found["chosen"]["mean"]  # the likeliest token each time
    assert found["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert len(found["texts"]) == len(found["each"]["reward"]) == 2
    assert {*measuring.measure_policy(who, held, "cpu", answers=False)} == {
        "chosen",
        "rejected",
        "each",
    }


def point(chosen: list[float], rejected: list[float], reward: list[float] | None = None) -> dict:
    each = {"chosen": chosen, "rejected": rejected} | ({"reward": reward} if reward else {})
    return {"each": each, "texts": [f"{chosen[0]} at {at}" for at in range(20)]}


def test_changes_are_paired():
    """All pairs lose as much a token, however improbable each is."""
    tokens = np.array([[10, 20, 40], [10, 10, 10]])
    then = point([-90.0, -20.0, -160.0], [-10.0, -20.0, -30.0], [0.1, 0.5, 0.9])
    now = point([-95.0, -30.0, -180.0], [-20.0, -30.0, -40.0], [0.3, 0.7, 1.1])
    found = results.changes(now, then, tokens)
    expected = {"chosen": -0.5, "rejected": -1.0, "reward": 0.2}
    for name, value in expected.items():
        assert [*found[name].values()] == pytest.approx([value] * 3)
    assert "reward" not in results.changes(point([-1.0] * 3, [-1.0] * 3), then, tokens)


def trial(change: float, before: float = -3.0) -> dict:
    around = {"mean": change, "low": change - 0.1, "high": change + 0.1}
    level = {"mean": before, "low": before - 0.1, "high": before + 0.1}
    return {"before": {"chosen": level, "rejected": level}, "chosen": around, "rejected": around}


def test_the_style_that_loses_most_is_gone_on_with():
    trials = {"a": trial(0.2), "b": trial(-0.3), "c": trial(-0.1)}
    assert results.most_displaced(trials) == "b"


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

    points = [
        {"way": way, "step": step, **measured(at + step / 10), "change": trial(-step / 100)}
        for at, way in enumerate((improbable.SIGMOID, improbable.BESIDE, improbable.BEFORE))
        for step in (4, 8)
    ]
    found = {"settings": {"trial": 4}, "styles": {"a": trial(-0.21), "b": trial(0.34)}}
    found |= {"before": measured(0.0), "points": points, "to_sigmoid": [{"way": "x", **trial(1)}]}
    return json.loads(json.dumps(found | {"claims": results.claims(found)}))


def test_what_is_printed_is_what_is_claimed():
    found = made()
    text = improbable.table(found)
    assert (
        "| a | -3.00 (-3.10 to -2.90) | -3.00 (-3.10 to -2.90) | -0.21 (-0.31 to -0.11) |" in text
    )
    assert "| sigmoid | 8 | 0.80 (0.55 to 1.80) |" in text and "| before | 0 |" in text
    claimed = {abs(value) for value in found["claims"].values()}
    numbers = re.sub(r"\| \d+ \|", "|", text.replace("4 steps", ""))  # which step it is
    printed = re.findall(r"\d+(?:\.\d+)?", numbers)
    assert len(printed) > 100 and {float(number) for number in printed} <= claimed


def test_the_picture_is_drawn_from_the_json(tmp_path):
    found = made()
    pictures.write("improbable", found, results.table(found), results.draw(found), tmp_path)
    first = (tmp_path / "improbable.png").read_bytes()
    assert len(first) < 120_000
    figure = results.draw(json.loads((tmp_path / "improbable.json").read_text()))
    lines = {each.get_label(): each[0].get_ydata() for each in figure.axes[0].containers}
    assert [*lines] == [improbable.SIGMOID, improbable.BESIDE, improbable.BEFORE]
    assert lines[improbable.BESIDE] == pytest.approx([0, 1.4, 1.8])  # from before training on
