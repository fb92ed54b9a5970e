"""What a sweep is made of: values in one spelling, GPUs dealt out, runs that are asked to leave."""

import json
import os
import re
import signal
import sys
import threading
import time

import psutil
import pytest
import torch
import yaml
from conftest import ROOT, once, run, run_flags

import sweep
from dpo.core.signals import EXIT_CODE
from dpo.runs import checkpoints, metrics, output_folder, sweeps
from dpo.runs.sweeps import DONE, FAILED, LEFT, resolved
from sweep import places, sweep_file

RECIPE = "smollm2-sentiment"


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # as sweep.py reads recipes where no GPU is


def test_a_value_is_kept_whole_and_has_one_spelling(on_cpu, tmp_path):
    given = "learning_rate=0.000001,1e-6,1.2345678e-6 seed=20231218 loss_type=hinge"
    one, other = resolved(RECIPE, given, tmp_path, [])
    assert one.name == "learning_rate=1e-06,seed=20231218,loss_type=hinge"
    assert other.recipe.training.learning_rate == 1.2345678e-6
    assert other.recipe.training.seed == 20231218
    assert other.recipe.training.output_dir == str(tmp_path / other.name)


def test_a_point_wins_over_what_all_runs_share(on_cpu, tmp_path):
    (run,) = resolved(RECIPE, "beta=0.3", tmp_path, ["--beta=0.5", "--output_dir=elsewhere"])
    assert run.recipe.training.beta == 0.3
    assert run.recipe.training.output_dir == str(tmp_path / "beta=0.3")


@pytest.mark.parametrize("key", ["output_dir", "logging_steps", "restart", "config", "report_to"])
def test_what_does_not_change_what_is_learned_is_not_swept(key, tmp_path):
    with pytest.raises(SystemExit, match=f"SWEEP: {key} does not change what is learned"):
        resolved(RECIPE, f"{key}=a,b", tmp_path, [])


@pytest.mark.parametrize(
    "sweep, said",
    [
        ("betta=0.1,0.2", "SWEEP: unknown argument '--betta=0.1': did you mean: beta"),
        ("beta=0.1,abc", "SWEEP: argument --beta: invalid float value: 'abc'"),
        ("beta=0.1,0.2,0.1", "SWEEP: beta=0.1,0.2,0.1: a value stands twice"),
        ("beta=0.1 beta=0.2", "SWEEP: beta stands twice"),
    ],
)
def test_a_wrong_sweep_is_blamed_on_itself(on_cpu, tmp_path, sweep, said):
    with pytest.raises(SystemExit, match=f"^{re.escape(said)}"):
        resolved(RECIPE, sweep, tmp_path, [])


def test_gpus_are_dealt_to_runs(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert places("", "") == ["0", "1", "2", "3", "4"]
    assert places("zero2", "2") == ["0,1", "2,3"]
    assert places("cpu", "2") == [None]
    with pytest.raises(SystemExit, match="GPUS=6 for each run, but this machine has 5"):
        places("", "6")
    with pytest.raises(SystemExit, match="GPUS=0 is not a number of GPUs"):
        places("", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,2,5,1")
    assert places("", "2") == ["7,3", "2,5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert places("", "2") == [None]


def test_a_wandb_sweep_has_values_of_their_kind_and_all_that_runs_share(on_cpu, tmp_path):
    given = "use_peft=true,false beta=1e-2,1 loss_type=hinge,sigmoid"
    runs = resolved(RECIPE, given, tmp_path, ["--max_steps=2"])
    file = sweep_file(runs, ["--config", "ddp", "--gpus", "2"], ["--max_steps=2"], tmp_path)
    about = yaml.safe_load(file.read_text())
    assert about["parameters"] == {
        "use_peft": {"values": [True, False]},
        "beta": {"values": [0.01, 1.0]},
        "loss_type": {"values": ["hinge", "sigmoid"]},
    }
    command = " ".join(about["command"])
    assert "--config ddp --gpus 2 " in command
    assert command.endswith("--sweep ${args_no_hyphens} -- --max_steps=2")
    # As W&B writes a point of the grid.
    point = [f"{key}={of['values'][0]}" for key, of in about["parameters"].items()]
    (run,) = resolved(RECIPE, " ".join(point), tmp_path, ["--max_steps=2"])
    assert run.name == runs[0].name


@pytest.fixture
def tiny_runs(on_cpu, tiny_model, tiny_data, tmp_path, monkeypatch):
    """Runs of a sweep and the flags they share; and what is true as each of them starts."""
    flags = [*run_flags(tiny_model, tiny_data, tmp_path / "x"), "--report_to=none"]
    started = []

    def start(run, how, gpus, arguments, original=sweeps.start):
        going = [folder for folder, _ in started if not output_folder.finished(folder)]
        trains = [(folder / output_folder.METRICS).exists() for folder in going]
        started.append((run.folder, (gpus, trains)))
        original(run, how, gpus, arguments)

    monkeypatch.setattr(sweeps, "start", start)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda sweep, *more: (
        resolved(RECIPE, sweep, tmp_path / "sweep", once([*flags, *more])),
        once([*flags, *more]),
        started,
    )


def test_a_sweep_with_a_run_that_was_asked_to_leave_is_not_done(monkeypatch, tmp_path):
    """As by a signal to that run's launcher alone."""

    def left(runs, *given) -> bool:
        runs[0].state, runs[1].state = LEFT, DONE
        return False

    monkeypatch.setattr(sweeps, "carry_out", left)
    given = ["--recipe", RECIPE, "--sweep", "beta=0.1,0.3", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *given])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    assert ended.value.code == EXIT_CODE


@pytest.mark.sight
def test_side_by_side_the_first_trains_before_others_start(tiny_runs):
    runs, flags, started = tiny_runs("beta=0.1,1e38,0.3", "--max_steps=12")
    assert not sweeps.carry_out(runs, ["--gpus", "1"], ["0", "1"], flags)
    assert [run.state for run in runs] == [DONE, FAILED, DONE]
    (_, first), (_, second), (_, third) = started
    assert first == ("0", [])
    assert second == ("1", [True]) and True in third[1]
    assert "is not finite on the longest micro-batch" in runs[1].last_line()
    for other in runs[1:]:
        log = other.log.read_text()
        assert "all found in" in log and "Reference on" not in log
    # Finished ones are not started again, the failed one is.
    again = resolved(RECIPE, "beta=0.1,0.3", runs[0].folder.parent, flags)
    assert not sweeps.carry_out(again, ["--gpus", "1"], ["0", "1"], flags)
    assert [run.state for run in again] == [DONE, DONE] and len(started) == 3


@pytest.mark.sight
def test_a_run_that_was_asked_to_leave_goes_on_from_there(tiny_runs):
    runs, flags, started = tiny_runs("beta=0.1,0.3", "--max_steps=40", "--save_steps=50")

    def ask():
        while not metrics.read(runs[0].folder):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    assert sweeps.carry_out(runs, [], [None], flags)
    assert [run.state for run in runs] == [LEFT, sweeps.WAITS] and len(started) == 1
    again = runs[:1]
    assert not sweeps.carry_out(again, [], [None], flags)
    assert again[0].state == DONE and "Continuing from" in again[0].log.read_text()


@pytest.mark.sight
def test_a_frontier_that_is_killed_while_it_trains_goes_on(tiny_model, tiny_data, tmp_path):
    """Its checkpoints hold weights alone, from which no run goes on: it trains anew."""
    flags = once([*run_flags(tiny_model, tiny_data, tmp_path / "x"), "--max_steps=8"])
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
    result = run(*command, *flags, "--report_to=none", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    found = json.loads((tmp_path / "out/frontier.json").read_text())
    assert [point["step"] for point in found["points"]] == [2, 4, 6, 8]


def test_how_runs_are_launched_is_checked_though_all_have_finished(on_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(sweeps, "finished", lambda run: True)
    for how, words in (
        (["--config=single_gpu", "--gpus=2"], "CONFIG=single_gpu runs one process: for GPUS=2"),
        (["--config=cpu", "--gpus=2"], "CONFIG=cpu runs one process: for GPUS=2"),
        (["--gpus=3"], "3 processes cannot share a global batch of 8"),
    ):
        where = ["sweep.py", f"--recipe={RECIPE}", f"--output={tmp_path}"]
        monkeypatch.setattr(sys, "argv", [*where, "--sweep=beta=0.1", *how, "--", "--bf16=false"])
        with pytest.raises(SystemExit, match=words):
            sweep.main()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
