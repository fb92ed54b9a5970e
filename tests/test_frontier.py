"""The reward–KL frontier, in small and for real."""

import json
import shlex
import sys

import pytest
from browser import PHONE, fits, opened, pictures
from conftest import make

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


@pytest.mark.sight
def test_the_frontier_through_make(tiny_model, tiny_data, tmp_path):
    """Two values of β, two checkpoints each; again, and nothing is trained or measured anew."""
    flags = [f"--model_name_or_path={tiny_model}", f"--dataset_name={tiny_data}", "--max_steps=4"]
    flags += ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=2"]
    flags += ["--learning_rate=0.01", "--report_to=none", f"--reference_cache={tmp_path / 'cache'}"]
    ours = ["--betas=0.05,5", "--loss_types=sigmoid", "--every=2", "--samples=1"]
    words = shlex.join([*ours, f"--output={tmp_path / 'out'}", "--", *flags])
    result = make("frontier", f"ARGS={words}")
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "out/frontier.json").read_text())
    assert [(p["beta"], p["step"]) for p in found["points"]] == [
        *((0.05, 2), (0.05, 4), (5, 2), (5, 4))
    ]
    kl = [p["kl"]["mean"] for p in found["points"]]
    assert kl[1] > kl[0] > 0 and kl[3] > kl[2] > 0  # further away along each run
    assert not [*(tmp_path / "out").glob("*/checkpoint-*")]
    assert "| sigmoid | 0.05 | 2 |" in result.stdout
    with opened((tmp_path / "out/frontier.html").as_uri(), PHONE) as page:
        assert page.errors == [] and fits(page) and min(pictures(page)) > 800
    again = make("frontier", f"ARGS={words}")
    assert again.returncode == 0 and "started" not in again.stdout + again.stderr
    assert json.loads((tmp_path / "out/frontier.json").read_text())["points"] == found["points"]
    other = make("frontier", f"ARGS={words.replace('--samples=1', '--samples=2')}")
    assert other.returncode and "or another --output" in other.stderr
