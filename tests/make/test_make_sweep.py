"""make sweep: what starts, what fails, what is left alone, what goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from dpo.runs import metrics, output_folder, sweeps
from dpo.runs.sweeps import DONE, FAILED, LEFT, resolved
from support.commands import make, once, run, run_flags
from support.place import ROOT

RECIPE = "smollm2-sentiment"


def test_every_point_is_run_and_compared(swept):
    folder, _, said = swept
    for beta in ("0.1", "0.3"):
        report = json.loads((folder / f"beta={beta}/report.json").read_text())
        assert report["beta"] == float(beta) and len(report["pairs"]["margins"]) == 8
    assert "Compared:" in said and (folder / "comparison.html").is_file()
    assert "| held-out accuracy |" in (folder / "comparison.md").read_text()


def test_the_reference_is_scored_once_for_all(swept):
    folder, _, _ = swept
    first, second = ((folder / f"beta={beta}.log").read_text() for beta in ("0.1", "0.3"))
    assert re.search(r"(\d+) train pairs: \1 scored as they came, and kept in", first)
    assert "all found in" in second and "Reference on" not in second


def test_finished_points_are_left_alone_and_a_failed_one_is_named(swept):
    folder, flags, _ = swept
    taken = folder / "beta=0.5"
    taken.mkdir()
    (taken / "mine.txt").write_text("not a run")

    def files() -> dict[Path, int]:
        """Of the two runs, but for what other tests find of them meanwhile."""
        found = [path for path in folder.glob("beta=0.[13]/**/*") if path.is_file()]
        return {p: p.stat().st_mtime_ns for p in found if "evaluations" not in p.parts}

    before = files()
    given = ("SWEEP=beta=0.1,0.3,0.5", f"OUTPUT={folder}", f"ARGS={shlex.join(flags)}")
    result = make("sweep", *given, WANDB_MODE="offline")
    assert result.returncode != 0
    assert "beta=0.5 failed:" in result.stdout
    assert "holds files that are no run of this repository" in result.stdout
    assert before == files()
    assert (folder / "comparison.md").stat().st_size


def test_a_sweep_that_is_asked_to_leave_saves_and_starts_no_other(swept, tmp_path):
    _, flags, _ = swept
    into = tmp_path / "sweep"
    command = [sys.executable, "scripts/sweep.py", "--recipe", RECIPE, "--output", str(into)]
    command += ["--sweep", "beta=0.7,0.9", "--"]
    command += once([*flags, "--max_steps=3000", "--save_steps=5000"])
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    metrics, deadline = into / "beta=0.7/metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75
    assert [*into.glob("beta=0.7/checkpoint-*/manifest.json")]
    assert not (into / "beta=0.9").exists()
    assert "the same command goes on from here" in (tmp_path / "log").read_text()


def test_a_wandb_sweep_runs_the_same_points_by_agents(swept):
    """What an agent would run for a point of the file, as W&B documents its macros, finds the point
    that is there already."""
    folder, flags, _ = swept
    given = ("SWEEP=beta=0.1,0.3 learning_rate=1e-3", "WANDB=1", f"OUTPUT={folder}")
    result = make("sweep", *given)
    assert result.returncode == 0, result.stderr
    assert f"wandb sweep {folder}/sweep.yaml" in result.stdout
    about = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert about["method"] == "grid"
    assert about["parameters"] == {
        "beta": {"values": [0.1, 0.3]},
        "learning_rate": {"values": [0.001]},
    }
    macros = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [about["program"]],
        "${args_no_hyphens}": ["beta=0.1"],
    }
    command = [word for part in about["command"] for word in macros.get(part, [part])]
    result = run(*command, "--", *flags)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "done" in result.stdout and "started" not in result.stdout


@pytest.fixture
def tiny_runs(tiny_model, tiny_data, tmp_path, monkeypatch):
    """Runs of a sweep and the flags they share; and what is true as each of them starts."""
    flags = [*run_flags(tiny_model, tiny_data, tmp_path / "x"), "--report_to=none"]
    started = []

    def start(run, how, gpus, arguments, original=sweeps.start):
        going = [folder for folder, _ in started if not output_folder.finished(folder)]
        trains = [(folder / output_folder.METRICS).exists() for folder in going]
        started.append((run.folder, (gpus, trains)))
        original(run, how, gpus, arguments)

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # as sweep.py reads recipes where no GPU is
    monkeypatch.setattr(sweeps, "start", start)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda sweep, *more: (
        resolved(RECIPE, sweep, tmp_path / "sweep", once([*flags, *more])),
        once([*flags, *more]),
        started,
    )


def test_side_by_side_the_first_trains_before_others_start(tiny_runs):
    runs, flags, started = tiny_runs("beta=0.1,1e38,0.3", "--max_steps=12")
    assert not sweeps.carry_out(runs, ["--gpus", "1"], ["0", "1"], flags)
    assert [run.state for run in runs] == [DONE, FAILED, DONE]
    (_, first), (_, second), (_, third) = started
    assert first == ("0", [])
    assert second == ("1", [True]) and True in third[1]
    assert "not finite" in runs[1].last_line()
    for other in runs[1:]:
        log = other.log.read_text()
        assert "all found in" in log and "Reference on" not in log
    # Finished ones are not started again, the failed one is.
    again = resolved(RECIPE, "beta=0.1,0.3", runs[0].folder.parent, flags)
    assert not sweeps.carry_out(again, ["--gpus", "1"], ["0", "1"], flags)
    assert [run.state for run in again] == [DONE, DONE] and len(started) == 3


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
