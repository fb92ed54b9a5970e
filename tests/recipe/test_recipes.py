"""Every recipe on the shelf: strictly read, complete, true to its name, and it trains."""

import dataclasses
import functools
import math
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments
from trl.scripts.dpo import make_parser

import pairs
import shelf
from dpo.recipe import header
from dpo.recipe.parse import parse, read_yaml
from support.commands import make, run
from support.launched import forked
from support.place import ROOT
from support.shelf_rows import hub_folder, tiny_start
from support.tiny import recipe_steps

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SECTIONS = ["Model", "Data", "DPO", "Optimisation", "Evaluation and output"]
HEADER = ["Source:", "Published:", "Machine:", "Batch:", "Reached:", "Run:"]
# What a loss is while the policy is still the reference: both log-ratios are 0.
START = {
    "sigmoid": lambda beta: math.log(2),
    "sigmoid_norm": lambda beta: math.log(2),
    "ipo": lambda beta: (1 / (2 * beta)) ** 2,
    "apo_zero": lambda beta: 1.0,
}


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request) -> Path:
    return request.param


def test_there_are_recipes():
    assert {"smollm2-sentiment", "qwen-ultrafeedback"} <= {path.stem for path in RECIPES}
    assert len(RECIPES) > 32


def test_it_parses_and_bears_its_name(recipe):
    parsed = parse(["--config", str(recipe), "--use_cpu"])
    assert Path(parsed.training.output_dir) == Path("outputs") / recipe.stem


def test_the_parser_of_trl_dpo_takes_it(recipe):
    parser, keys = make_parser(), read_yaml(recipe)
    _, training, _, mixture = parser.parse_args_and_config(["--config", str(recipe), "--use_cpu"])
    assert training.output_dir == keys["output_dir"]
    assert len(mixture.datasets) == len(keys.get("datasets", []))


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
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    for word in HEADER:
        assert f"# {word}" in head, word
    assert f"RECIPE={recipe.stem}" in head or recipe.stem == "smollm2-sentiment"
    sections = [line[4:] for line in text.splitlines() if line.startswith("### ")]
    assert sections == [section for section in SECTIONS if section in sections]
    assert {"Model", "Data", "Evaluation and output"} <= set(sections)


def pairs_commands(path: Path) -> list[str]:
    """The commands of its header that make its pairs, each on one line."""
    head = path.read_text().split("\n\n")[0]
    return re.findall(r"make (pairs .*)", re.sub(r" \\\n#\s+", " ", head))


@pytest.mark.parametrize("command", [each for path in RECIPES for each in pairs_commands(path)])
def test_the_command_that_makes_its_pairs_is_taken(command):
    """As far as it can be seen to be right without the models and the prompts of the hub."""
    printed = make("-n", *shlex.split(command)).stdout.replace("\\\n", " ")
    (given,) = re.findall(r"scripts/pairs\.py (.*)", printed)
    args = pairs.arguments(shlex.split(given))
    pairs.check(args)
    assert args.prompts and (args.judge or len(args.model) == 2)


def test_the_pairs_that_its_header_makes_are_those_it_trains_on():
    path = ROOT / "recipes/tulu-3-8b-delta-learning.yaml"
    (command,) = pairs_commands(path)
    assert f"TO={read_yaml(path)['dataset_name']}" in shlex.split(command)


def test_its_batch_is_the_sum_that_its_header_states(recipe):
    keys = read_yaml(recipe)
    pairs = keys.get("per_device_train_batch_size", 8)
    accumulated = keys.get("gradient_accumulation_steps", 1)
    batch = f"# Batch: {pairs} pairs × {accumulated} accumulated = {pairs * accumulated}"
    assert batch in recipe.read_text()


def is_4bit(module) -> bool:
    return type(module).__name__ == "Linear4bit"


def test_it_trains_two_steps(recipe, tmp_path):
    """Its own loss, optimizer, schedule, adapter and quantization, on a tiny model of its family
    and rows with the columns of its data."""
    keys, text = read_yaml(recipe), recipe.read_text()
    replaced = {keys["model_name_or_path"]: str(tiny_start(keys["model_name_or_path"], tmp_path))}
    for name in {keys.get("dataset_name"), *(d["path"] for d in keys.get("datasets", []))} - {None}:
        replaced[name] = str(hub_folder(name, keys, tmp_path))
    copy = tmp_path / recipe.name
    for name, folder in replaced.items():
        text = text.replace(f": {name}\n", f": {folder}\n")
    copy.write_text(text)
    trainer, before = recipe_steps(copy, tmp_path)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(START[trainer.args.loss_type[0]](trainer.args.beta), abs=1e-4)
    assert trainer.state.global_step == len(losses) == 2 and math.isfinite(losses[1])
    after = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # Gemma 2 caps its attention scores, which only the eager attention does.
    assert trainer.sharing.startswith("off" if "attn_implementation" in keys else "on")
    if keys.get("load_in_4bit"):
        states = [
            module.weight.quant_state for module in trainer.model.modules() if is_4bit(module)
        ]
        # Repacked weights would have no gradient.
        assert states and not any(getattr(s, "packing_format_for_cpu", 0) for s in states)
    assert trainer.optimizer.optimizer.__class__.__name__ == (
        "RMSprop" if keys.get("optim") == "rmsprop" else "AdamW"
    )


def test_its_run_line_takes_no_other_config_than_its_machine_is_for(recipe):
    """On that machine the plan takes its config; another might not fit there."""
    said = header.fields(recipe)
    named = re.findall(r"CONFIG=(\w+)", said["Run"])
    if "make rounds" not in said["Run"]:  # for which no plan is made
        assert all(f"CONFIG={config}," in said["Machine"] for config in named), said


def test_what_stands_beside_its_machine_stays_as_it_is(recipe, tmp_path):
    said = "one GPU of 24 GB, 11 GB on each by its plan; some 7.2 GPU-hours on 8 × H100."
    (tmp_path / recipe.name).write_text(once := shelf.with_machine(recipe, said))
    assert shelf.with_machine(tmp_path / recipe.name, said) == once


def test_the_shelf_is_written_from_headers_and_plans(tmp_path, monkeypatch):
    """Of two recipes, one of which says nothing of its plan yet."""
    few = [
        ROOT / f"recipes/{name}.yaml" for name in ("smollm2-sentiment", "zephyr-7b-gemma-dpomix")
    ]
    for path in few:
        text = re.sub(r"# Machine: .* by its plan\. ", "# Machine: ", path.read_text())
        (tmp_path / path.name).write_text(text)
    assert (tmp_path / few[1].name).read_text() != few[1].read_text()
    monkeypatch.setattr(shelf, "FOLDER", tmp_path)
    monkeypatch.setattr(shelf, "TABLE", tmp_path / "README.md")
    monkeypatch.setattr(sys, "argv", ["shelf.py"])
    shelf.main()
    for path in few:
        assert (tmp_path / path.name).read_text() == path.read_text()
    whole = (ROOT / "recipes/README.md").read_text().splitlines()
    lines = [line for line in whole if line[:3] != "| [" or f"({few[0].name})" in line
             or f"({few[1].name})" in line]  # fmt: skip
    assert (tmp_path / "README.md").read_text().splitlines() == lines


def test_the_table_of_the_shelf_is_up_to_date():
    assert (ROOT / "recipes/README.md").read_text() == shelf.table(), "make shelf"


# `trl`, in a fork: what accelerate would start goes on here.
TRL = """
import os, runpy, sys
from accelerate.commands import launch
from trl.cli import main

def go_on(args):
    command, environment = launch.prepare_simple_launcher_cmd_env(args)
    os.environ.update(environment)
    sys.argv = command[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

launch.simple_launcher = go_on
main()
raise SystemExit
"""


def trl_dpo(trl: Callable, recipe: Path, output: Path, *flags: str):
    """Run a recipe file as it is under TRL's own command."""
    accelerate = ROOT / "accelerate_configs/cpu.yaml"
    words = ("dpo", "--config", recipe, "--accelerate_config", accelerate, "--output_dir", output)
    words += ("--max_steps", "2", "--logging_steps", "1", "--gradient_accumulation_steps", "1")
    result = trl(*map(str, (*words, "--save_only_model", *flags)))
    assert result.returncode == 0, result.stderr[-3000:]
    assert (output / "model.safetensors").is_file()
    log = (output / "checkpoint-2/trainer_state.json").read_text()
    history = yaml.safe_load(log)["log_history"]
    # Policy = reference at the first step: the loss is ln 2 whatever the data.
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    shutil.rmtree(output)  # a 135M model, twice, is 1 GB


def test_the_default_runs_unchanged_under_trl_dpo(tmp_path):
    trl_dpo(
        functools.partial(forked, "trl", first=TRL),
        ROOT / "recipes/smollm2-sentiment.yaml",
        tmp_path / "run",
        *("--eval_strategy", "no", "--per_device_train_batch_size", "1"),
    )


def test_qwen_ultrafeedback_runs_unchanged_under_trl_dpo(tmp_path, tiny_model, tiny_data):
    trl_dpo(
        functools.partial(run, "trl"),
        ROOT / "recipes/qwen-ultrafeedback.yaml",
        tmp_path / "run",
        *("--model_name_or_path", tiny_model, "--dataset_name", tiny_data, "--use_cpu"),
        *("--per_device_train_batch_size", "2"),
    )
