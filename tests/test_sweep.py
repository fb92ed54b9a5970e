"""A sweep: which points, what starts, what fails, what is left alone."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, make, once, run

from dpo.runs.sweeps import points

RECIPE = "smollm2-sentiment"


def test_the_grid():
    given = "beta=0.05,0.1 learning_rate=1e-6,5e-7 loss_type=sigmoid"
    assert points(given) == [
        {"beta": beta, "learning_rate": rate, "loss_type": "sigmoid"}
        for beta in ("0.05", "0.1")
        for rate in ("1e-6", "5e-7")
    ]


@pytest.mark.parametrize(
    ("sweep", "says_so"),
    [
        ("", "nothing to sweep"),
        ("beta", "'beta' is not key=value"),
        ("beta=0.1,,0.3", "is not key=value,value"),
        ("beta=0.1 beta=0.3", "beta stands twice"),
        ("output_dir=a,b", "output_dir does not change what is learned"),
        ("bet=0.1", "unknown argument '--bet=0.1'"),
        ("beta=high", "invalid float value: 'high'"),
        ("beta=0.1,-1", "beta"),
    ],
)
def test_a_point_that_is_none_is_refused_before_any_starts(sweep, says_so, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from dpo.runs.sweeps import resolved

    with pytest.raises(SystemExit, match=re.escape(says_so)):
        resolved(RECIPE, sweep, tmp_path / "sweep", [])
    assert not (tmp_path / "sweep").exists()


@pytest.mark.sight
def test_every_point_is_run_and_compared(swept):
    folder, _, said = swept
    for beta in ("0.1", "0.3"):
        report = json.loads((folder / f"beta={beta}/report.json").read_text())
        assert report["beta"] == float(beta) and len(report["pairs"]["margins"]) == 8
    assert "Compared:" in said and (folder / "comparison.html").is_file()
    assert "| held-out accuracy |" in (folder / "comparison.md").read_text()


@pytest.mark.sight
def test_the_reference_is_scored_once_for_all(swept):
    folder, _, _ = swept
    first, second = ((folder / f"beta={beta}.log").read_text() for beta in ("0.1", "0.3"))
    assert "Reference on train pairs" in first
    assert "Reference on" not in second.replace("Reference on train pairs: found", "")


@pytest.mark.sight
def test_finished_points_are_left_alone_and_a_failed_one_is_named(swept):
    folder, flags, _ = swept
    taken = folder / "beta=0.5"
    taken.mkdir()
    (taken / "mine.txt").write_text("not a run")
    before = {p: p.stat().st_mtime_ns for p in folder.glob("beta=0.[13]/**/*") if p.is_file()}
    given = ("SWEEP=beta=0.1,0.3,0.5", f"OUTPUT={folder}", f"ARGS={shlex.join(flags)}")
    result = make("sweep", *given, WANDB_MODE="offline")
    assert result.returncode != 0
    assert "beta=0.5 failed:" in result.stdout
    assert "holds files that are no run of this repository" in result.stdout
    assert before == {
        p: p.stat().st_mtime_ns for p in folder.glob("beta=0.[13]/**/*") if p.is_file()
    }
    assert (folder / "comparison.md").stat().st_size


@pytest.mark.sight
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


@pytest.mark.sight
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
