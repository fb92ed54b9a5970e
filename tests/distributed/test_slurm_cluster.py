"""A run on a real SLURM cluster of two nodes on this machine, where SLURM is installed (Debian's
slurm-wlm)."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dpo.runs import checkpoints
from support.commands import run, run_flags
from support.place import ROOT

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


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("slurmctld"), reason="SLURM is not installed"
)
def test_a_cluster_requeues_the_run_and_goes_on(real_cluster, tiny_model, tiny_data, tmp_path):
    """Submitted, asked to stop, requeued by SLURM, and trained to its end: one log of it all."""
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
    wait_for(lambda: "Asked to stop: back to the queue" in log.read_text())
    wait_for(lambda: "PENDING" in run("squeue", "--format=%T").stdout)
    run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: (folder / "report.json").exists())
    wait_for(lambda: not run("squeue", "--noheader").stdout)
    first, second = (log.with_name(f"{job}-node{node}.log").read_text() for node in (0, 1))
    step = re.search(r"Asked to stop at step (\d+) of 20: saved in", first)[1]
    assert f"Continuing from {folder}/checkpoint-{step}\n" in first
    assert "2 pairs a device × 1 accumulated × 2 processes = 4 pairs" in first
    assert "--machine_rank 1 --main_process_ip 127.0.0.1" in second
    losses = json.loads((folder / "report.json").read_text())["curves"]["train"]
    assert [point["step"] for point in losses] == [*range(1, 21)]
