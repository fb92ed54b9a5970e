"""make learn WHAT=length: which answers make a pair, and what the runs come to."""

import json
import re

import numpy as np
import pytest

from dpo.core.files import read_lines
from dpo.core.stats import mean_at_equal_length
from dpo.learn import length, pictures
from support.place import ROOT

CANDIDATES = ROOT / "recipes/data/sentiment/candidates.jsonl"


def answer(text: str, score: float, tokens: int, why: str | None = None) -> dict:
    return {"text": text, "score": score, "tokens": tokens, "why": why}


def test_a_pair_is_better_and_longer():
    row = {"prompt": [], "answers": [answer("bad", -0.5, 10), answer("long", 0.5, 18)]}
    pair = length.pair_of(row)
    assert pair["chosen"] == [{"role": "assistant", "content": "long"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "bad"}]
    row["answers"] += [answer("best", 0.9, 17), answer("longest", 0.9, 40, "unfinished")]
    assert length.pair_of(row) == pair  # the best is too short, the longest was left out
    row["answers"].append(answer("both", 0.7, 30))
    assert length.pair_of(row)["chosen"][0]["content"] == "both"
    assert length.pair_of({"prompt": [], "answers": row["answers"][:1]}) is None
    worse = [answer("short", 0.5, 10), answer("long", 0.5, 30)]
    assert length.pair_of({"prompt": [], "answers": worse}) is None


def test_chosen_is_always_longer_and_better(tmp_path):
    about = length.write_data(CANDIDATES, tmp_path, None)
    tokens = {
        (str(row["prompt"]), each["text"]): each["tokens"]
        for row in read_lines(CANDIDATES)
        for each in row["answers"]
    }
    for split in length.SPLITS:
        rows = read_lines(tmp_path / f"{split}.jsonl")
        assert len(rows) == about[split]["pairs"] > 100
        sides = [
            [tokens[str(row["prompt"]), row[side][0]["content"]] for row in rows]
            for side in ("chosen", "rejected")
        ]
        assert all(a >= b + length.GAP for a, b in zip(*sides, strict=True))
        assert all(row["vader_chosen"] > row["vader_rejected"] for row in rows)
        assert [*about[split]["tokens"].values()] == pytest.approx(np.mean(sides, axis=1))
    length.write_data(CANDIDATES, tmp_path / "few", 5)
    assert read_lines(tmp_path / "few/train.jsonl") == read_lines(tmp_path / "train.jsonl")[:5]


def test_beta_of_means_gives_an_answer_of_mean_length_the_same_reward():
    (norm,) = (own for own in length.ways(0.1, 24.0).values() if "--loss_type=sigmoid_norm" in own)
    assert "--beta=2.4" in norm


def test_reward_at_equal_length_is_what_length_does_not_explain():
    """A policy whose answers are longer by 10 and no better, and one that is better by 0.3 too."""
    rng = np.random.default_rng(0)
    for better in (0.0, 0.3):
        tokens = rng.integers(5, 40, size=(2, 400, 2)).astype(float)
        tokens[0] += 10
        rewards = 0.02 * tokens + rng.normal(scale=0.2, size=tokens.shape)
        rewards[0] += better
        plain = rewards[0].mean() - rewards[1].mean()
        found = mean_at_equal_length(rewards, tokens)
        assert plain == pytest.approx(better + 0.2, abs=0.05)
        assert found.low < better < found.high and found.high - found.low < 0.1


def test_answers_of_one_length_differ_as_they_are():
    rewards = np.random.default_rng(0).random((2, 50, 1))
    found = mean_at_equal_length(rewards, np.full_like(rewards, 7.0))
    assert found.mean == pytest.approx(rewards[0].mean() - rewards[1].mean())
    assert found.low < found.mean < found.high


def results() -> dict:
    """Of three seeds, in which ways differ by the same."""
    found = []
    for seed, level in ((2, 0.5), (1, 0.2), (3, 0.9)):
        for at, way in enumerate(length.ways(0.1, 24)):
            values = dict.fromkeys(length.METRICS, level - at / 10)
            found.append({"way": way, "seed": seed})
            found[-1] |= {k: {"mean": v, "low": v - 1, "high": v + 1} for k, v in values.items()}
    made = length.over_seeds((1, 2, 3), [*length.ways(0.1, 24)], found)
    side = {"chosen": 30.52, "rejected": 17.6}
    made["data"] = {"train": {"pairs": 464, "tokens": side, "score": side}}
    made["reference"] = {"tokens": found[0]["tokens"], "reward": found[0]["reward"]}
    return json.loads(json.dumps(made | {"claims": length.claims(made)}))


def test_ways_are_held_against_sigmoid_seed_by_seed():
    found = results()
    (sigmoid, norm, _), (less, ld) = found["points"], found["to_sigmoid"]
    assert sigmoid["reward"]["mean"] == pytest.approx(1.6 / 3)
    assert sigmoid["reward"]["high"] - sigmoid["reward"]["low"] > 1  # seeds differ by much
    assert (less["way"], ld["way"]) == ("sigmoid_norm", "sigmoid, ld_alpha")
    assert [less["tokens"][end] for end in ("low", "high")] == pytest.approx([-0.1, -0.1])
    assert norm["gain"]["mean"] == pytest.approx(sigmoid["gain"]["mean"] - 0.1)


def test_what_is_printed_is_what_is_claimed():
    found = results()
    text = length.table(found)
    shares = "| -10% (-10% to -10%) | -0.100 (-0.100 to -0.100) |"
    assert f"| sigmoid_norm − sigmoid | -0.1 (-0.1 to -0.1) {shares}" in text
    claimed = {abs(value) for value in found["claims"].values()}
    printed = re.findall(r"\d+\.\d+", text)
    assert len(printed) == 3 * 5 * 5 and {float(number) for number in printed} <= claimed


def test_the_picture_is_drawn_from_the_json(tmp_path):
    made = results()
    pictures.write("length", made, length.table(made), length.draw(made), tmp_path)
    first = (tmp_path / "length.png").read_bytes()
    made["points"][2]["tokens"]["mean"] += 5
    pictures.write("length", made, length.table(made), length.draw(made), tmp_path)
    assert (tmp_path / "length.png").read_bytes() != first and len(first) < 120_000
    figure = length.draw(json.loads((tmp_path / "length.json").read_text()))
    (line,) = [each for each in figure.axes[0].containers if each.get_label()]
    means = [point["tokens"]["mean"] for point in made["points"]]
    assert line[0].get_ydata() == pytest.approx(means)
