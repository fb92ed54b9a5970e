"""How a run of several processes ends early, and goes on."""

import json
import re
import shutil
import signal
import time

import pytest

from support.commands import launch, running
from support.several import assert_learned_alike, ten_steps


def test_a_run_that_dies_before_its_report_is_evaluated_from_what_was_scored(
    launched, tiny_model, bare_data, tmp_path
):
    """Without a known reward, no model is loaded for it: the policy is garbage by then."""
    folder = tmp_path / "run"
    flags, reports = ten_steps(tiny_model, bare_data, folder), []
    for said in ("step 10/10", "Trained already"):
        result = launched(*flags, config="zero3", processes=2)
        assert result.returncode == 0, result.stderr[-3000:]
        assert said in result.stdout + result.stderr
        reports.append(json.loads((folder / "report.json").read_text()))
        (folder / "report.json").unlink()
        (folder / "model.safetensors").write_bytes(b"killed while it was read")
    assert reports[0]["pairs"] == reports[1]["pairs"]


def test_a_run_goes_on_after_one_process_dies(
    launched, one_process, tiny_model, tiny_data, tmp_path
):
    """Within a minute the others are told and the run ends; one process goes on where two were."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    with running(
        folder, "checkpoint-2", "--accelerate_config", "ddp", "--gpus", "2", "--", *flags
    ) as process:
        workers = [p for p in process.children(recursive=True) if "RANK" in p.environ()]
        (second,) = [p for p in workers if p.environ()["RANK"] == "1"]
        second.kill()
        assert process.wait(60) != 0
        assert not any(worker.is_running() for worker in workers)
    log = (tmp_path / "log").read_text()
    assert "local_rank: 1" in log and "SIGKILL" in log
    assert not (folder / "report.json").exists()

    result = launched(*flags, config="ddp")
    assert result.returncode != 0
    assert "was written by 2 processes, and this run has 1: run on 2, or allow" in result.stderr
    result = launched(*flags, "--other_processes", config="ddp")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-" in result.stdout
    assert_learned_alike(folder, one_process("full"))


def test_what_two_sharded_by_fsdp_one_goes_on_with(
    launched, learn, one_process, tiny_model, bare_data, tmp_path
):
    """Under FSDP; without it, it would start the optimizer anew."""
    folder, saving = tmp_path / "run", "--save_steps=4"
    learn(folder, "full", "fsdp2", 2, saving)
    for name in ("report.json", "trainer_state.json", "model.safetensors"):
        (folder / name).unlink()
    for step in (8, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    flags = [*ten_steps(tiny_model, bare_data, folder), saving]
    result = launched(*flags)
    assert result.returncode != 0
    assert "was written with FSDP, and this run has no shards: go on" in result.stderr
    said = learn(folder, "full", "fsdp2", 1, saving, "--other_processes")
    assert f"Continuing from {folder}/checkpoint-4" in said
    assert_learned_alike(folder, one_process("full"))


def test_a_run_that_is_asked_to_leave_goes_on(
    launched, one_process, tiny_model, tiny_data, tmp_path
):
    """Asked at one process of two; what ZeRO sharded over two, two go on with."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    two = ("--accelerate_config", "zero3", "--gpus", "2", "--", *flags)
    with running(folder, "checkpoint-2", *two) as process:
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 75
    log = (tmp_path / "log").read_text()
    step = int(re.search(r"Asked to stop at step (\d+) of 10: saved in", log)[1])
    assert 2 <= step < 10 and (folder / f"checkpoint-{step}/trainer_state.json").exists()
    assert not (folder / "model.safetensors").exists()

    for config, processes in (("zero3", 1), ("zero2", 2), ("ddp", 2)):
        result = launched(*flags, config=config, processes=processes)
        assert result.returncode != 0
        assert "was written with ZeRO-3 on 2 processes, and this run has" in result.stderr
    result = launched(*flags, config="zero3", processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-{step}" in result.stdout
    assert_learned_alike(folder, one_process("full"))


KILLED = """
import os, signal
if os.environ["RANK"] == "1":
    import torch
    stock = torch.save
    def save(content, path, *args, **kwargs):
        if ".writing/checkpoint-4/" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        stock(content, path, *args, **kwargs)
    torch.save = save
"""


@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_a_checkpoint_counts_when_all_have_written_it(
    config, launched, one_process, tiny_model, tiny_data, tmp_path
):
    """The second process is killed when it begins its part of the second checkpoint."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    result = launched(*flags, config=config, processes=2, first=KILLED)
    assert result.returncode == -signal.SIGKILL
    assert (folder / ".writing/checkpoint-4/model.safetensors").exists()

    result = launched(*flags, config=config, processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-2" in result.stdout
    assert_learned_alike(folder, one_process("full"))


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
    result = launch(
        *("--accelerate_config", "zero2", "--gpus", "2", "--", *flags), PYTHONPATH=str(tmp_path)
    )
    assert result.returncode != 0 and time.monotonic() - started < 300
    assert "ValueError: a disk was pulled out" in "\n".join(result.stderr.splitlines()[-5:])
