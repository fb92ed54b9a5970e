"""What a checkpoint takes on the disk, as a run of each config writes it, against what the plan of
a run takes for it."""

import json
import os

import pytest

from dpo.plan.arithmetic.disk import checkpoint
from dpo.runs import checkpoints
from support import held
from support.commands import run_flags
from support.launched import end, fork, free_port

WEIGHTS = (".safetensors", ".pt", ".bin")
SMALL = 60_000  # bytes of names and numbers beside the weights, in files of an adapter
GPU = {"bf16": True, "parts": 1, "saves": True}
CASES = [
    {"name": "qwen3", "dtype": "bfloat16"} | GPU,
    {"name": "qwen3"} | GPU,
    {"name": "qwen3", "lora": True, "rank": 64, "dtype": "bfloat16"} | GPU,
]


@pytest.mark.parametrize("config", ["single_gpu", "ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_a_checkpoint_is_as_large_as_planned(config, launched, tmp_path):
    gpus = 1 if config == "single_gpu" else 2
    models = tmp_path / "models"
    held.save_models(models, ["qwen3"])
    together = {"MASTER_PORT": str(free_port())} if gpus > 1 else {}
    asked = "cpu" if config == "single_gpu" else config
    told = [os.environ | each | together for each in launched.told(asked, gpus)]
    code = end([fork(held.be, each, CASES, models, tmp_path) for each in told])
    assert code == 0, (tmp_path / "said-0").read_text()[-3000:]
    for number, case in enumerate(CASES):
        sizes, setting = held.predicted(case, config, gpus)
        folder = tmp_path / f"{number}/run/checkpoint-2"
        files = json.loads((folder / "manifest.json").read_text())["files"]
        there = sum(file["bytes"] for name, file in files.items() if name.endswith(WEIGHTS))
        assert there == pytest.approx(checkpoint(sizes, setting), rel=0.01, abs=SMALL), case


@pytest.mark.parametrize("config", ["zero2", "fsdp2"])
def test_a_sharded_run_has_its_weights_once_and_goes_on(
    config, launched, tiny_model, bare_data, tmp_path
):
    """Beside the optimizer's shards; for more steps it is what it would have been in one go."""

    def trained(name: str, steps: int, *more: str) -> bytes:
        constant = ("--lr_scheduler_type=constant", "--warmup_steps=0", "--report_to=none")
        flags = [*run_flags(tiny_model, bare_data, tmp_path / name), *constant, *more]
        result = launched(*flags, f"--max_steps={steps}", config=config, processes=2)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        assert f"in {tmp_path / name}, " in result.stdout.splitlines()[-2]
        return (tmp_path / name / "model.safetensors").read_bytes()

    trained("short", 4)
    last = tmp_path / "short/checkpoint-4"
    assert (last / "model.safetensors").samefile(tmp_path / "short/model.safetensors")
    checkpoints.checked(last)
    longer = trained("longer", 6, f"--resume_from_checkpoint={last}")
    assert longer == trained("whole", 6)
