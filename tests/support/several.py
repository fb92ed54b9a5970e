"""Configs, what is trained under them, and when two runs have learned the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.commands import run_flags


def under(config: str, *more: str):
    """A test's parameters; DeepSpeed compiles its optimizer for CPUs."""
    compiles = config == "zero3_offload" and not shutil.which("c++")
    return pytest.param(
        config, *more, marks=pytest.mark.skipif(compiles, reason="a C++ compiler is needed")
    )


NAMES = ("ddp", "zero1", "zero2", "zero3", "fsdp2", "zero3_offload")


CONFIGS = [under(config) for config in NAMES]


LORA = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]


HALF = ["--dtype=bfloat16", "--bf16=false", "--learning_rate=0.01"]


MOVES = ["--sync_ref_model", "--ref_model_sync_steps=3", "--eval_strategy=no"]


TRAINED = {
    "full": [],
    "lora": LORA,
    "adapter": ["--use_peft"],
    "half": [*LORA, *HALF],
    "qlora": [*LORA, *HALF, "--load_in_4bit"],
}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (weights,) = folder.glob("*.safetensors")
    return load_file(weights)


def losses_of(folder: Path) -> list[float]:
    curves = json.loads((folder / "report.json").read_text())["curves"]
    assert len(curves["train"]) == 10
    return [point["loss"] for point in curves["train"]]


def assert_learned_alike(folder: Path, other: Path) -> None:
    """Ten losses, and every weight, within 1e-5."""
    assert losses_of(folder) == pytest.approx(losses_of(other), abs=1e-5)
    whole, sharded = weights_of(other), weights_of(folder)
    assert whole.keys() <= sharded.keys()  # sharded, a tied head is saved as a copy
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], atol=1e-5, rtol=0)


def assert_scored_alike(folder: Path, other: Path) -> None:
    """The held-out pairs, by all processes when training has ended, with the model as it lies
    there. They fill the batch of one process: those of the other are the same ones again."""
    found, expected = (json.loads((f / "report.json").read_text()) for f in (folder, other))
    found, expected = found["pairs"], expected["pairs"]
    assert found["margins"] == pytest.approx(expected["margins"], abs=2e-5)
    assert found["accuracy"] == expected["accuracy"]
    assert len(set(found["margins"])) > 1  # the pairs are of three lengths


def ten_steps(model: Path, data: Path, folder: Path) -> list[str]:
    flags = run_flags(model, data, folder)
    return [*flags, "--max_steps=10", "--eval_steps=10", "--report_to=none", "--reward_prompts=1"]
