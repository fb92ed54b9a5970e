"""What several processes and machines learn, and how a run of them ends early."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, launch
from test_train import run_flags, weights_of

pytestmark = pytest.mark.distributed


def assert_learned_alike(folder: Path, other: Path) -> None:
    """Ten losses, and every weight, within 1e-5."""
    two, one = (
        json.loads((run / "report.json").read_text())["curves"]["train"] for run in (folder, other)
    )
    assert len(one) == 10
    assert [p["loss"] for p in two] == pytest.approx([p["loss"] for p in one], abs=1e-5)
    whole, sharded = weights_of(other), weights_of(folder)
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], atol=1e-5, rtol=0)


def ten_steps(model: Path, data: Path, folder: Path) -> list[str]:
    flags = run_flags(model, data, folder)
    return [*flags, "--max_steps=10", "--eval_steps=10", "--report_to=none", "--reward_prompts=1"]


@pytest.fixture(scope="module")
def one_process(tiny_model, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    result = launch("--config", "cpu", "--", *ten_steps(tiny_model, tiny_data, folder))
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.parametrize(
    "config",
    [
        *("ddp", "zero1", "zero2", "zero3"),
        pytest.param(
            "zero3_offload",
            marks=pytest.mark.skipif(
                not shutil.which("c++"), reason="DeepSpeed compiles its optimizer for CPUs"
            ),
        ),
    ],
)
def test_two_processes_learn_what_one_learns(config, one_process, tiny_model, tiny_data, tmp_path):
    """The global batch is the recipe's, however many processes share it."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    result = launch("--config", config, "--gpus", "2", "--", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 pairs a device × 1 accumulated × 2 processes = 4 pairs" in result.stdout
    stage = f", ZeRO-{config[4]}" if config.startswith("zero") else ""
    assert f"2 × 1 threads{stage}\n" in result.stdout
    assert_learned_alike(folder, one_process)


def test_zero3_shards_policy_and_reference(one_process, tiny_model, tiny_data, tmp_path):
    """The reference live and no prefix shared: still the losses of one process with both."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    plain = ["--share_prefix=false", "--precompute_ref_log_probs=false"]
    result = launch("--config", "zero3", "--gpus", "2", "--", *flags, *plain)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "each process holds 50% of the policy and 50% of the reference\n" in result.stdout
    assert "sharing  off" in result.stdout
    assert_learned_alike(folder, one_process)


@pytest.mark.parametrize("config", ["ddp", "zero3"])
def test_two_machines_learn_what_one_learns(config, one_process, tiny_model, tiny_data, tmp_path):
    """Two launches, each with its own rank, that meet on the loopback address."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["--config", config, "--gpus", "1", "--nodes", "2", "--main", f"127.0.0.1:{port}"]
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(
            lambda rank: launch(*together, "--node_rank", rank, "--", *flags, OMP_NUM_THREADS="1"),
            ("0", "1"),
        )
    assert first.returncode == 0, first.stderr[-3000:]
    assert second.returncode == 0, second.stderr[-3000:]
    assert "2 pairs a device × 1 accumulated × 2 processes = 4 pairs" in first.stdout
    assert_learned_alike(folder, one_process)


@contextmanager
def running(folder: Path, checkpoint: str, *arguments: str, **changes: str):
    """A run that has just written a checkpoint; its output goes to `folder`/../log."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder.parent / "log").open("w") as log:
        process = psutil.Popen(
            [sys.executable, "scripts/launch.py", *arguments],
            cwd=ROOT,
            env={**os.environ, "PATH": path, **changes},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while not (folder / checkpoint / "trainer_state.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        yield process
    finally:
        if process.is_running():
            for child in (*process.children(recursive=True), process):
                child.kill()


def test_a_run_goes_on_after_one_process_dies(one_process, tiny_model, tiny_data, tmp_path):
    """Within a minute the others are told and the run ends; one process goes on where two were."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    with running(
        folder, "checkpoint-2", "--config", "ddp", "--gpus", "2", "--", *flags
    ) as launched:
        workers = [p for p in launched.children(recursive=True) if "RANK" in p.environ()]
        (second,) = [p for p in workers if p.environ()["RANK"] == "1"]
        second.kill()
        assert launched.wait(60) != 0
        assert not any(worker.is_running() for worker in workers)
    log = (tmp_path / "log").read_text()
    assert "local_rank: 1" in log and "SIGKILL" in log
    assert not (folder / "report.json").exists()

    result = launch("--config", "ddp", "--gpus", "1", "--", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-" in result.stdout
    assert_learned_alike(folder, one_process)


def test_a_run_that_is_asked_to_leave_goes_on(one_process, tiny_model, tiny_data, tmp_path):
    """Asked at one process of two; what ZeRO sharded over two, two go on with."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    two = ("--config", "zero3", "--gpus", "2", "--", *flags)
    with running(folder, "checkpoint-2", *two) as launched:
        launched.send_signal(signal.SIGUSR1)
        assert launched.wait(60) == 0
    log = (tmp_path / "log").read_text()
    step = int(re.search(r"Asked to leave at step (\d+) of 10: saved in", log)[1])
    assert 2 <= step < 10 and (folder / f"checkpoint-{step}/trainer_state.json").exists()
    assert not (folder / "model.safetensors").exists()

    for config, processes in (("zero3", "1"), ("zero2", "2"), ("ddp", "2")):
        result = launch("--config", config, "--gpus", processes, "--", *flags)
        assert result.returncode != 0
        assert "was written with ZeRO-3 on 2 processes, and this run has" in result.stderr
    result = launch(*two)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-{step}" in result.stdout
    assert_learned_alike(folder, one_process)


def test_the_error_of_the_process_that_failed_comes_last(tiny_model, tiny_data, tmp_path):
    """The second process fails in its fourth micro-batch, while the first waits for it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from trl import DPOTrainer\n"
        "    step, calls = DPOTrainer.training_step, []\n"
        "    def training_step(*args, **kwargs):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 4:\n"
        "            raise ValueError('a disk was pulled out')\n"
        "        return step(*args, **kwargs)\n"
        "    DPOTrainer.training_step = training_step\n"
    )
    flags = ten_steps(tiny_model, tiny_data, tmp_path / "run")
    started = time.monotonic()
    result = launch(*("--config", "zero2", "--gpus", "2", "--", *flags), PYTHONPATH=str(tmp_path))
    assert result.returncode != 0 and time.monotonic() - started < 60
    assert "ValueError: a disk was pulled out" in "\n".join(result.stderr.splitlines()[-5:])
