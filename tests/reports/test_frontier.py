"""The reward–KL frontier: its lines, and how its runs are launched."""

import sys

import pytest

import frontier as command
from dpo.reports import frontier_page


def point(loss: str, beta: float, step: int, reward: float, kl: float) -> dict:
    def around(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    return {"loss_type": loss, "beta": beta, "step": step, "reward": around(reward)} | {
        "kl": around(kl)
    }


def test_every_line_begins_at_the_reference():
    found = {"reference": {"reward": {"mean": 0.3}, "kl": {"mean": 0}}}
    found["points"] = [point("ipo", 1, 12, 0.5, 2), point("ipo", 1, 6, 0.4, 1)]
    found["points"] += [point("ipo", 0.1, 6, 0.6, 3)]
    lines = frontier_page.lines(found)
    assert [*lines] == [("ipo", 0.1), ("ipo", 1)]
    assert [p["step"] for p in lines[("ipo", 1)]] == [0, 6, 12]


def test_its_runs_take_one_gpu_each(tiny_model, tiny_data, tmp_path, monkeypatch):
    """However many there are: its batch of eight cannot be shared by three."""
    given = ["--betas=1", "--loss_types=ipo", f"--output={tmp_path}", "--"]
    given += [f"--model_name_or_path={tiny_model}", f"--dataset_name={tiny_data}"]
    monkeypatch.setattr(sys, "argv", ["frontier.py", *given])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    asked = []
    monkeypatch.setattr(command.sweeps, "carry_out", lambda *how: asked.append(how[1]) or True)
    with pytest.raises(SystemExit):
        command.main()
    assert asked == [["--gpus", "1"]]


def test_what_it_sets_itself_is_refused_and_not_dropped(tmp_path, monkeypatch):
    for flag in ("--beta=0.3", "--save-steps=7", "--eval_strategy=steps", "--output_dir=x"):
        monkeypatch.setattr(sys, "argv", ["frontier.py", f"--output={tmp_path}", "--", flag])
        name = flag[2:].partition("=")[0].replace("-", "_")
        with pytest.raises(SystemExit, match=f"ARGS: {name}: the frontier sets this itself"):
            command.main()
