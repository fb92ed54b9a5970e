"""`make submit` and its batch script, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.commands import run
from support.place import ROOT

COMMANDS = {
    "sbatch": 'echo "sbatch $*"',
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "scontrol $*"; fi',
    # As its fourth task does; or as a run that is asked to stop, and takes a while to.
    "srun": "while [[ $1 == --* ]]; do shift; done\n"
    '[[ $WAITS ]] || SLURM_NODEID=3 exec "$@"\n'
    "trap 'sleep 0.5; touch $DPO_TOLD_IN/left; echo saved; exit 75' USR1 TERM\n"
    "echo training; while :; do sleep 0.05; done",
}
RECIPE = ("smollm2-sentiment", "zero3", "8")
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_JOB_NUM_NODES": "4"}


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    for name, does in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def batch(*arguments: str, **changes: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["scripts/slurm.sh", *arguments],
        cwd=ROOT,
        env=os.environ | JOB | changes,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_submit_asks_for_the_machines(cluster):
    place = ("NODES=4", "GPUS=8", "PARTITION=gpu", "SBATCH=--time=9", "ARGS=--beta 0.05")
    path = os.environ["PATH"]
    command = ("make", "submit", f"VENV={sys.prefix}", "CONFIG=zero3", *place)
    result = run("env", f"PATH={path}", *command)
    assert result.returncode == 0, result.stderr
    assert (
        "sbatch --nodes=4 --gpus-per-node=8 --partition=gpu --time=9 "
        f"scripts/slurm.sh {sys.prefix}/bin/python {' '.join(RECIPE)} --beta 0.05\n"
    ) in result.stdout


@pytest.mark.parametrize("wrong", ["RECIPE=nope", "CONFIG=zero9", "GPUS=many", "ARGS=--betaa 1"])
def test_what_is_misspelt_is_not_queued(wrong, cluster):
    command = ("make", "submit", f"VENV={sys.prefix}", "NODES=4", "CONFIG=zero3", wrong)
    result = run("env", f"PATH={os.environ['PATH']}", *command)
    assert result.returncode and "sbatch" not in result.stdout
    assert wrong.split("=")[1].split()[0] in result.stderr


def test_each_machine_launches_with_its_own_number(cluster):
    job = batch("echo", *RECIPE, "--beta", "0.05")
    assert job.communicate()[0] == (
        "scripts/launch.py --node_rank 3 --recipe smollm2-sentiment "
        "--accelerate_config zero3 --gpus 8 "
        "--nodes 4 --main n1:20007 -- --beta 0.05\n"
    )
    assert job.returncode == 0


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        (signal.SIGUSR1, ["Asked to stop: back to the queue", "scontrol requeue 7"]),
        (signal.SIGTERM, []),
    ],
)
def test_a_run_that_is_asked_to_leave_goes_back_to_the_queue(asked, then, cluster):
    """One that is cancelled does not."""
    job = batch("echo", *RECIPE, WAITS="yes")
    assert job.stdout.readline() == "training\n"
    time.sleep(0.2)
    job.send_signal(asked)
    assert job.communicate(timeout=20)[0].splitlines() == ["saved", *then]
    assert job.returncode == 75
    assert not (ROOT / "outputs/slurm/7-told").exists()


def test_a_run_that_fails_does_not(cluster):
    job = batch("false", *RECIPE)
    assert job.communicate()[0] == ""
    assert job.returncode == 1
