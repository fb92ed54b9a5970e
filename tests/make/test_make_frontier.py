"""make frontier: what it measures, and that a second one goes on from the first."""

import json
import shlex
import sys
import time

import psutil

from dpo.recipe.flags import name_of
from dpo.runs import checkpoints, output_folder
from support.browser import PHONE, fits, opened, pictures
from support.commands import make, once, run_flags
from support.launched import forked, made
from support.place import ROOT


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
    again = made("frontier", f"ARGS={words}")
    assert again.returncode == 0 and "started" not in again.stdout + again.stderr
    assert json.loads((tmp_path / "out/frontier.json").read_text())["points"] == found["points"]
    other = made("frontier", f"ARGS={words.replace('--samples=1', '--samples=2')}")
    assert other.returncode and "or another --output" in other.stderr


def test_a_frontier_that_is_killed_while_it_trains_goes_on(tiny_model, tiny_data, tmp_path):
    """Its checkpoints hold weights alone, from which no run goes on: it trains anew."""
    flags = once([*run_flags(tiny_model, tiny_data, tmp_path / "x"), "--max_steps=8"])
    ours = {"output_dir", "save_steps", "save_strategy", "save_total_limit", "eval_strategy"}
    flags = [flag for flag in flags if name_of(flag) not in ours]
    command = [sys.executable, "scripts/frontier.py", "--betas=0.1", "--loss_types=sigmoid"]
    command += ["--every=2", "--limit=2", "--samples=1", f"--output={tmp_path / 'out'}", "--"]
    first = tmp_path / "out/loss_type=sigmoid,beta=0.1/checkpoint-2" / checkpoints.MANIFEST
    process = psutil.Popen([*command, *flags, "--report_to=none"], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not first.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    for each in (*process.children(recursive=True), process):
        each.kill()
    process.wait()
    assert not output_folder.finished(first.parent.parent)
    result = forked("frontier", *command[2:], *flags, "--report_to=none", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    found = json.loads((tmp_path / "out/frontier.json").read_text())
    assert [point["step"] for point in found["points"]] == [2, 4, 6, 8]
