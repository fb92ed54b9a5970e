"""`make submit` and its batch script: with stand-ins for SLURM's commands, and on a real cluster of
two nodes on this machine, where SLURM is installed (Debian's slurm-wlm)."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, run, run_flags

from dpo.runs import checkpoints

COMMANDS = {
    "sbatch": 'echo "sbatch $*"',
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "scontrol $*"; fi',
    # As its fourth task does; or as a run that is asked to leave, and takes a while to.
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


def test_each_machine_launches_with_its_own_number(cluster):
    job = batch("echo", *RECIPE, "--beta", "0.05")
    assert job.communicate()[0] == (
        "scripts/launch.py --node_rank 3 --recipe smollm2-sentiment --config zero3 --gpus 8 "
        "--nodes 4 --main n1:20007 -- --beta 0.05\n"
    )
    assert job.returncode == 0


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        (signal.SIGUSR1, ["Asked to leave: back to the queue", "scontrol requeue 7"]),
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


# Two nodes, told apart by their loopback addresses, which are their names too: the batch script
# makes the first one's the address where all meet.
CLUSTER = """
ClusterName=two
FirstJobId={job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/linear
SwitchType=switch/none
MpiDefault=none
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port=16818 CPUs=1
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.2 Port=16819 CPUs=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@pytest.fixture
def real_cluster(monkeypatch):
    """Its folder is not pytest's: the socket's path would be too long."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    host, job = socket.gethostname().split(".")[0], int(time.time()) % 10_000_000
    (folder / "slurm.conf").write_text(CLUSTER.format(folder=folder, host=host, job=job))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    files = {"key-file": "key", "socket": "socket", "log-file": "log", "seed-file": "seed"}
    munged = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
    daemons = [
        subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for command in (
            ["munged", "--foreground", "--force", f"--pid-file={folder}/munge.pid", *munged],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "127.0.0.1"],
            ["slurmd", "-D", "-N", "127.0.0.2"],
        )
    ]
    try:
        wait_for(lambda: re.search(r"\b2 +idle", run("sinfo").stdout))
        yield
    finally:  # also where the cluster does not come up: its ports would stay taken
        run("scancel", "--full", "--signal=KILL", "--user=root")
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(60)
        for log in (ROOT / "outputs/slurm").glob(f"{job}*"):
            log.unlink()
        shutil.rmtree(folder)


def wait_for(condition, seconds: int = 240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)
    return found


@pytest.mark.distributed
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("slurmctld"), reason="SLURM is not installed"
)
def test_a_cluster_requeues_the_run_and_goes_on(real_cluster, tiny_model, tiny_data, tmp_path):
    """Submitted, asked to leave, requeued by SLURM, and trained to its end: one log of it all."""
    folder = tmp_path / "run"
    flags = [
        *run_flags(tiny_model, tiny_data, folder),
        "--report_to=none",
        "--eval_strategy=no",
        "--max_steps=20",
    ]
    given = ("NODES=2", "GPUS=1", "CONFIG=ddp", f"ARGS={shlex.join(flags)}")
    # No GPUs are here to ask SLURM for.
    submitted = run("make", "submit", f"VENV={sys.prefix}", *given, "SBATCH=--gpus-per-node=0")
    job = re.search(r"Submitted batch job (\d+)", submitted.stdout)[1]
    log = ROOT / f"outputs/slurm/{job}.log"
    wait_for(lambda: (folder / "checkpoint-4" / checkpoints.MANIFEST).exists())
    run("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: "Asked to leave: back to the queue" in log.read_text())
    wait_for(lambda: "PENDING" in run("squeue", "--format=%T").stdout)
    run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: (folder / "report.json").exists())
    wait_for(lambda: not run("squeue", "--noheader").stdout)
    first, second = (log.with_name(f"{job}-node{node}.log").read_text() for node in (0, 1))
    step = re.search(r"Asked to leave at step (\d+) of 20: saved in", first)[1]
    assert f"Continuing from {folder}/checkpoint-{step}\n" in first
    assert "2 pairs a device × 1 accumulated × 2 processes = 4 pairs" in first
    assert "--machine_rank 1 --main_process_ip 127.0.0.1" in second
    losses = json.loads((folder / "report.json").read_text())["curves"]["train"]
    assert [point["step"] for point in losses] == [*range(1, 21)]
