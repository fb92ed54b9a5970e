"""A whole run, as a user starts it, is killed in the middle and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from dpo.runs import checkpoints
from support.commands import run_flags
from support.place import ROOT


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_killed_run_continues_as_if_it_had_not_been(
    launched, finished, tiny_model, tiny_data, tmp_path
):
    folder = tmp_path / "killed"
    flags = run_flags(tiny_model, tiny_data, folder)
    command = [sys.executable, "scripts/launch.py", "--accelerate_config", "cpu", "--", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    first = folder / "checkpoint-2" / checkpoints.MANIFEST
    deadline = time.monotonic() + 120
    while not first.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "report.json").exists()
    # What a kill in the middle of a checkpoint leaves: a newer folder without its last file.
    half = folder / "checkpoint-3"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    result = launched(*flags)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "checkpoint-3 is broken: it has no manifest.json" in result.stdout
    assert f"Continuing from {folder}/checkpoint-" in result.stdout
    whole, resumed = weights_of(finished[0]), weights_of(folder)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
