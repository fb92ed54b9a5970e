"""Every recipe on the shelf: strictly read, complete, true to its name, and it trains."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run
from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

from dpo.recipe import parse, read_yaml

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SECTIONS = ["Model", "Data", "DPO", "Optimisation", "Evaluation and output"]
HEADER = ["Source:", "Machine:", "Batch:", "Reached:", "Run:"]


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request) -> Path:
    return request.param


def test_there_are_recipes():
    assert {"smollm2-sentiment", "qwen-ultrafeedback"} <= {path.stem for path in RECIPES}


def test_it_parses_and_bears_its_name(recipe):
    parsed = parse(["--config", str(recipe), "--use_cpu"])
    assert Path(parsed.training.output_dir) == Path("outputs") / recipe.stem


def test_it_states_only_what_was_chosen(recipe):
    fields = {
        field.name: field
        for kind in (ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig)
        for field in dataclasses.fields(kind)
    }
    for key, value in read_yaml(recipe).items():
        assert key in fields, f"{key} is not one of TRL's own keys"
        assert value != fields[key].default, f"{key}: {value} is the default"


def test_its_header_and_sections_are_complete(recipe):
    text = recipe.read_text()
    header = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in HEADER:
        assert f"# {word}" in header, word
    assert f"RECIPE={recipe.stem}" in header or recipe.stem == "smollm2-sentiment"
    sections = [line[4:] for line in text.splitlines() if line.startswith("### ")]
    assert sections == [section for section in SECTIONS if section in sections]
    assert {"Model", "Data", "Evaluation and output"} <= set(sections)


def test_its_batch_is_the_sum_that_its_header_states(recipe):
    keys = read_yaml(recipe)
    pairs = keys.get("per_device_train_batch_size", 8)
    accumulated = keys.get("gradient_accumulation_steps", 1)
    batch = f"# Batch: {pairs} pairs × {accumulated} accumulated = {pairs * accumulated}"
    assert batch in recipe.read_text()


def trl_dpo(recipe: Path, output: Path, *flags: str):
    """Run a recipe file as it is under TRL's own command."""
    accelerate = ROOT / "accelerate_configs/cpu.yaml"
    result = run(
        *("trl", "dpo", "--config", recipe, "--accelerate_config", accelerate),
        *("--output_dir", output, "--max_steps", "2", "--logging_steps", "1", *flags),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (output / "model.safetensors").is_file()
    log = (output / "checkpoint-2/trainer_state.json").read_text()
    history = yaml.safe_load(log)["log_history"]
    # Policy = reference at the first step: the loss is ln 2 whatever the data.
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    shutil.rmtree(output)  # a 135M model with its optimizer is 2 GB


def test_the_default_runs_unchanged_under_trl_dpo(tmp_path):
    trl_dpo(
        ROOT / "recipes/smollm2-sentiment.yaml",
        tmp_path / "run",
        *("--eval_strategy", "no", "--per_device_train_batch_size", "1"),
    )


def test_qwen_ultrafeedback_runs_unchanged_under_trl_dpo(tmp_path, tiny_model, tiny_data):
    trl_dpo(
        ROOT / "recipes/qwen-ultrafeedback.yaml",
        tmp_path / "run",
        *("--model_name_or_path", tiny_model, "--dataset_name", tiny_data, "--use_cpu"),
        *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"),
    )
