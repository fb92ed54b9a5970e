"""Several processes with our trainer against one with stock TRL."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def losses(launched, tiny_data):
    """The losses of four steps, as the run has logged them."""

    def losses(model: Path, folder: Path, config: str, processes: int, *more: str) -> list[float]:
        flags = [
            *(f"--model_name_or_path={model}", f"--dataset_name={tiny_data}", "--max_steps=4"),
            *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4"),
            *("--logging_steps=1", "--eval_steps=4", "--reward_prompts=1", "--bf16=false"),
            *("--learning_rate=0.001", "--report_to=none", f"--output_dir={folder}/run"),
            f"--reference_cache={folder}/cache",
        ]
        result = launched(*flags, *more, config=config, processes=processes)
        assert result.returncode == 0, result.stderr[-3000:]
        history = json.loads((folder / "run/trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]

    return losses


# Stock: nothing shared, and the reference live.
PLAIN = ("--share_prefix=false", "--precompute_ref_log_probs=false")


def test_two_processes_under_ddp_are_one(losses, tiny_model, tmp_path):
    stock = losses(tiny_model, tmp_path / "stock", "cpu", 1, *PLAIN)
    assert losses(tiny_model, tmp_path / "ours", "ddp", 2) == pytest.approx(stock, abs=1e-4)


def test_an_adapter_under_zero3_on_two_processes(losses, tiny_model, tmp_path):
    """Stock TRL's losses; and of another checkpoint of the same architecture other reference
    log-probabilities, though ZeRO-3 shows each process the same empty weights.

    Full fine-tuning under ZeRO is in test_learning.py.
    """
    adapter = ("--use_peft", "--lora_target_modules", "q_proj", "v_proj")
    stock = losses(tiny_model, tmp_path / "stock", "cpu", 1, *adapter, *PLAIN)
    ours = losses(tiny_model, tmp_path / "ours", "zero3", 2, *adapter)
    assert ours == pytest.approx(stock, abs=1e-4)

    cache = tmp_path / "ours/cache"
    before = set(cache.iterdir())
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for parameter in model.parameters():
        parameter.data *= 1.1
    other = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    model.save_pretrained(other)
    last = ("--max_steps=1", "--eval_strategy=no", f"--reference_cache={cache}")
    losses(other, tmp_path / "other", "zero3", 2, *last)
    (made,) = set(cache.iterdir()) - before
    kept = [load_file(path)["ref_chosen_logps"] for path in (made, *before)]
    assert all(not np.allclose(kept[0][:8], values[:8], equal_nan=True) for values in kept[1:])
