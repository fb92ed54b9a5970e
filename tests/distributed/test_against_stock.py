"""Several processes with our trainer against one with stock TRL."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from support.commands import launch


@pytest.fixture(scope="module")
def one_process(tiny_model, tiny_data, tmp_path_factory):
    """Stock losses of one process: nothing shared, reference live."""
    return printed_losses(
        *(tiny_model, tiny_data, tmp_path_factory.mktemp("one"), "cpu", "1"),
        *("--share_prefix=false", "--precompute_ref_log_probs=false"),
    )


def flags(model: Path, data: Path, folder: Path) -> list[str]:
    return [
        *(f"--model_name_or_path={model}", f"--dataset_name={data}", f"--output_dir={folder}/run"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4", "--max_steps=4"),
        *("--logging_steps=1", "--eval_steps=4", "--reward_prompts=1", "--learning_rate=0.001"),
        *("--bf16=false", "--report_to=none", f"--reference_cache={folder}/cache"),
    ]


def printed_losses(model, data, folder, config: str, processes: str, *more: str) -> list[float]:
    given = flags(model, data, folder)
    result = launch("--config", config, "--gpus", processes, "--", *given, *more)
    assert result.returncode == 0, result.stderr[-3000:]
    return logged(folder)


def logged(folder: Path) -> list[float]:
    history = json.loads((folder / "run/trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_two_processes_under_ddp_are_one(one_process, tiny_model, tiny_data, tmp_path):
    ours = printed_losses(tiny_model, tiny_data, tmp_path, "ddp", "2")
    assert ours == pytest.approx(one_process, abs=1e-4)


def test_an_adapter_under_zero3_on_two_processes(tiny_model, tiny_data, tmp_path):
    """Stock TRL's losses; and of another checkpoint of the same architecture other reference
    log-probabilities, though ZeRO-3 shows each process the same empty weights.

    Full fine-tuning under ZeRO is in test_distributed.py.
    """
    adapter = ("--use_peft", "--lora_target_modules", "q_proj", "v_proj")
    plain = ("--share_prefix=false", "--precompute_ref_log_probs=false")
    stock = printed_losses(tiny_model, tiny_data, tmp_path / "stock", "cpu", "1", *adapter, *plain)
    ours = printed_losses(tiny_model, tiny_data, tmp_path / "ours", "zero3", "2", *adapter)
    assert ours == pytest.approx(stock, abs=1e-4)

    cache = tmp_path / "ours/cache"
    before = set(cache.iterdir())
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for parameter in model.parameters():
        parameter.data *= 1.1
    other = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    model.save_pretrained(other)
    last = ("--max_steps=1", "--eval_strategy=no", f"--reference_cache={cache}")
    printed_losses(other, tiny_data, tmp_path / "other", "zero3", "2", *last)
    (made,) = set(cache.iterdir()) - before
    kept = [load_file(path)["ref_chosen_logps"] for path in (made, *before)]
    assert all(not np.allclose(kept[0][:8], values[:8], equal_nan=True) for values in kept[1:])
