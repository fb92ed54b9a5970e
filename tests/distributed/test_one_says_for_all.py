"""What one process sees holds for all of them: gates, refusals, monitors."""

import hashlib
import re
import sys

import pytest

from support.commands import launch, run, run_flags
from support.monitored import easy, write

OFF = """
from dpo.training.preflight.checks import Gates
del Gates.on_train_begin
"""


@pytest.mark.parametrize("config", ["ddp", "zero1", "zero2", "zero3"])
def test_several_processes_learn_what_they_would_have(
    config, launched, tiny_model, tiny_data, tmp_path
):
    """With four micro-batches a step in all, so that a gradient left behind would be added."""
    written = []
    for on in (True, False):
        folder = tmp_path / str(on) / "run"
        flags = run_flags(tiny_model, tiny_data, folder)
        flags += ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=4"]
        flags += ["--max_steps=2", "--eval_strategy=no", "--save_strategy=no", "--report_to=none"]
        result = launched(*flags, config=config, processes=2, first="" if on else OFF)
        assert result.returncode == 0, result.stderr[-3000:]
        written.append(hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    assert written[0] == written[1]


def test_two_processes_refuse_in_one_line(tiny_model, tiny_data, tmp_path):
    flags = [f"--model_name_or_path={tiny_model}", f"--dataset_name={tiny_data}", "--beta=-1"]
    result = launch(
        "--accelerate_config", "ddp", "--gpus", "2", "--", *flags, f"--output_dir={tmp_path}/run"
    )
    assert result.returncode == 1
    assert result.stderr.strip().startswith("ARGS: beta is -1.0: give a number above 0")
    assert result.stderr.strip().count("\n") == 0


REFUSING = """
import datetime
import sys
import time

sys.path[:0] = ["scripts"]
from accelerate import PartialState
from dpo.core import terminal
from dpo.core.environment import launched

rank, stay = PartialState(cpu=True).process_index, float(sys.argv[1])
terminal.STAY = datetime.timedelta(seconds=stay)
time.sleep(2 * rank)
print(f"rank {rank} comes {time.time()}", flush=True)
if not rank or stay > 2:
    terminal.once("no", launched())
    print(f"rank {rank} goes {time.time()}", flush=True)
"""


@pytest.mark.parametrize(("stay", "together"), [(60, True), (0.1, False)])
def test_processes_that_end_for_one_reason_end_together(stay, together, tmp_path):
    """To one that is still connecting, a process that has gone is an error of its own, told in
    lines of PyTorch's."""
    (tmp_path / "refusing.py").write_text(REFUSING)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    given = ("--nproc_per_node=2", tmp_path / "refusing.py", stay)
    result = run(*torchrun, *given, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    at = {who: float(when) for who, when in re.findall(r"(rank \d \w+) ([\d.]+)", result.stdout)}
    assert (at["rank 0 goes"] > at["rank 1 comes"]) == together, result.stderr[-2000:]
    assert not together or at["rank 1 goes"] - at["rank 0 comes"] < stay


ONE_RANK_ALONE = """
import os
import sys
from pathlib import Path

sys.path[:0] = ["tests", "scripts"]
import numpy as np
import torch
from accelerate import PartialState
from support.monitored import Spoil, trainer_on

folder, model, fault = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rank = PartialState(cpu=True).process_index
flags = ("--max_steps=4", "--ddp_backend=gloo")
trainer = trainer_on(folder, model, [], [], *flags)
if rank == 1 and fault == "loss":
    spoilt = np.full(64, np.inf)
    table = trainer.train_dataset.remove_columns("ref_chosen_logps")
    trainer.train_dataset = table.add_column("ref_chosen_logps", spoilt)
if rank == 1 and fault == "weights":
    trainer.add_callback(Spoil)
try:
    trainer.train()
except SystemExit as error:
    print(f"rank {rank} ends at step {trainer.state.global_step}: {error}", flush=True)
os._exit(0)  # as train.py ends: Python's own end may abort in gloo's threads
"""


@pytest.mark.parametrize("fault", ["loss", "weights"])
def test_what_one_process_sees_ends_all_of_them(fault, tiny_model, tmp_path):
    write(tmp_path / "data", easy(64, 0), easy(8, 1))
    script = tmp_path / "one_rank_alone.py"
    script.write_text(ONE_RANK_ALONE)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    given = ("--nproc_per_node=2", script, tmp_path, tiny_model, fault)
    changes = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = run(*torchrun, *given, **changes)
    assert result.returncode == 0, result.stderr[-3000:]
    says = {"loss": "ends at step 0: not finite: the loss of step 1", "weights": "ends at step 2"}
    for rank in (0, 1):
        assert f"rank {rank} {says[fault]}" in result.stdout
