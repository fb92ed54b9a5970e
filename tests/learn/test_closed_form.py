"""make learn WHAT=closed_form: labels as often as they should be, distances by hand, and what is
found again."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from dpo.core.refusal import Refusal
from dpo.learn import closed_form, listed
from dpo.losses import optimal_logps

SHAPE = (len(listed.PROMPTS), len(listed.COMPLETIONS))


def found_of(policy: np.ndarray, rewards: np.ndarray, inside: float = 0.5) -> dict:
    """What a run has found that began with all nine alike, `inside` in all."""
    even = np.full(SHAPE, math.log(inside / SHAPE[1]))
    parts = {"rewards": rewards, "reference": even, "policy": policy}
    return {name: values.tolist() for name, values in parts.items()}


def optimum(rewards: np.ndarray, beta: float) -> np.ndarray:
    """π*, by numpy, from a reference to which all nine are alike."""
    weights = np.exp(rewards / beta)
    return np.log(weights / weights.sum(axis=1, keepdims=True))


def test_labels_are_as_often_as_bradley_and_terry_have_them():
    rewards = listed.rewards_of(1)
    assert rewards.shape == SHAPE and not np.allclose(rewards, listed.rewards_of(2))
    rows = listed.preferences(rewards, 40)
    assert len(rows) == 3 * 36 * 40
    for x, a, b in ((0, 0, 1), (2, 3, 7)):
        texts = [f" {listed.COMPLETIONS[at]}" for at in (a, b)]
        mine = [
            row["chosen"] == texts[0]
            for row in rows
            if row["prompt"] == f"x{x}" and {row["chosen"], row["rejected"]} == {*texts}
        ]
        wins = 1 / (1 + math.exp(rewards[x, b] - rewards[x, a]))
        assert len(mine) == 40 and sum(mine) == round(40 * wins)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_at_the_optimum_nothing_is_left(beta):
    """A policy that is it, whatever probability it has beside the nine."""
    rewards = listed.rewards_of(3)
    best = optimum(rewards, beta)
    said = closed_form.numbers(found_of(best + math.log(0.25), rewards), beta)
    assert said["after"] == pytest.approx(0, abs=1e-9) and said["before"] > 0.05
    assert said["error"] == pytest.approx(0, abs=1e-9)
    assert said["kl"] == pytest.approx(said["kl_optimal"])
    by_hand = (np.exp(best) * (best + math.log(SHAPE[1]))).sum(axis=1).mean()
    assert said["kl_optimal"] == pytest.approx(by_hand)
    assert said["inside_before"] == pytest.approx(0.5) and said["inside"] == pytest.approx(0.25)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_no_policy_has_more_than_the_optimum(beta):
    """Half way to it has less, and so has the reference; and the reward itself explains labels that
    were drawn from it best."""
    rewards = listed.rewards_of(3)
    best, half = (optimum(rewards, times * beta) for times in (1, 2))
    found = closed_form.reached(found_of(half, rewards), beta, 4000)
    objectives = [found[f"objective_{name}"] for name in closed_form.POLICIES]
    assert objectives[0] == pytest.approx(rewards.mean())
    kl = (np.exp(best) * (best + math.log(SHAPE[1]))).sum(axis=1)
    assert objectives[1] == pytest.approx(((np.exp(best) * rewards).sum(axis=1) - beta * kl).mean())
    assert objectives[0] < objectives[2] < objectives[1]
    assert found["loss_π_ref"] == pytest.approx(math.log(2))
    assert found["loss_r"] < found["loss_π"] < found["loss_π_ref"]
    first, second = rewards[:, listed.TWO[0]], rewards[:, listed.TWO[1]]
    p = 1 / (1 + np.exp(second - first))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert found["loss_r"] == pytest.approx(entropy, abs=1e-4)


def test_a_policy_that_went_nowhere_is_as_far_as_its_reference():
    rewards = listed.rewards_of(3)
    still = found_of(np.full(SHAPE, math.log(0.5 / 9)), rewards)
    said = closed_form.numbers(still, 0.5)
    half = np.abs(np.exp(optimum(rewards, 0.5)) - 1 / 9).sum(axis=1) / 2
    assert said["before"] == said["after"] == pytest.approx(half.mean())
    assert closed_form.distances(still, 0.5, "π").tolist() == pytest.approx(half.tolist())
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    assert said["kl"] == 0 and said["error"] == pytest.approx(np.sqrt((centred**2).mean()))


def trained(into, beta, seed, labels, epochs, given):
    """As far as half of the way, in nats."""
    rewards = listed.rewards_of(seed)
    return found_of(optimum(rewards, 2 * beta), rewards)


def test_it_goes_on_from_what_is_there(tmp_path, monkeypatch):
    asked, failing = [], {"at": 3}

    def some(into, beta, seed, *more):
        if len(asked) == failing["at"]:
            raise Refusal("it failed")
        asked.append((beta, seed))
        return trained(into, beta, seed, *more)

    monkeypatch.setattr(listed, "trained", some)
    out, docs = tmp_path / "out", tmp_path / "docs"
    out.mkdir()
    with pytest.raises(Refusal):
        closed_form.run(out, docs, True, [])
    assert asked == [(0.5, 1), (2.0, 1), (0.5, 2)]  # seed by seed
    failing["at"] = None
    closed_form.run(out, docs, True, [])
    assert asked[3:] == [(2.0, 2)]
    closed_form.run(out, docs, True, ["--learning_rate=0.001"])  # which is another question
    assert len(asked) == 8
    closed_form.run(out, docs, True, ["--beta=0.25"])
    assert asked[8:] == [(0.25, 1), (0.25, 2)]


def results(folder: Path, monkeypatch) -> dict:
    monkeypatch.setattr(listed, "trained", trained)
    (folder / "out").mkdir(parents=True)
    written = closed_form.run(folder / "out", folder, True, [])
    assert written == [folder / "closed_form.json", folder / "closed_form.png"]
    return json.loads(written[0].read_text())


def test_what_is_printed_is_what_is_claimed(tmp_path, monkeypatch):
    found = results(tmp_path, monkeypatch)
    text = closed_form.table(found)
    printed = re.findall(r"\d+\.\d+", text.replace("| 0.5 |", ""))
    claimed = {abs(value) for value in found["claims"].values()}
    assert len(printed) == 2 * 13 * 3 and {float(number) for number in printed} <= claimed
    (point,) = [each for each in found["points"] if each["beta"] == 2]
    each = [run["after"] for run in found["runs"] if run["beta"] == 2]
    assert point["after"]["mean"] == pytest.approx(np.mean(each)) and len(each) == 2


def test_the_picture_is_drawn_from_the_json(tmp_path, monkeypatch):
    found = results(tmp_path, monkeypatch)
    assert (tmp_path / "closed_form.png").stat().st_size < 120_000
    shown, figure = found["shown"], closed_form.draw(found)
    assert len(figure.axes) == len(shown) == 2
    order = np.argsort(shown[1]["rewards"])
    best = optimal_logps(*map(closed_form.torch.tensor, ([0.0] * 9, shown[1]["rewards"])), 2.0)
    bars = [bar.get_height() for bar in figure.axes[1].containers[1]]
    assert bars == pytest.approx(best.exp().numpy()[order], rel=1e-4)
    dots = figure.axes[1].lines[0].get_ydata()
    assert dots.tolist() == pytest.approx([shown[1]["π"][at] for at in order])
