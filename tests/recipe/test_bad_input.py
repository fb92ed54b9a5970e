"""Wrong input stops a run with one clear line, before anything is trained or overwritten."""

import os
import shutil
import time

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from dpo.models.config_check import check_model
from dpo.recipe.parse import parse, share_batch
from support.commands import launch
from support.refusing import edited, refusal


def test_misspelt_key(monkeypatch, tmp_path):
    recipe = edited(tmp_path, "learning_rate:", "learning_rat:")
    message = refusal(monkeypatch, recipe=recipe)
    assert "edited.yaml: unknown key 'learning_rat'" in message
    assert "learning_rate" in message.split("did you mean")[1]


def test_misspelt_flag(monkeypatch):
    message = refusal(monkeypatch, "--bet", "0.5")  # an abbreviation is misspelt too
    assert "unknown argument '--bet'" in message and "beta" in message


def test_repeated_key(monkeypatch, tmp_path):
    recipe = edited(tmp_path, "learning_rate:", "beta: 0.2\nbeta: 0.3\nlearning_rate:")
    message = refusal(monkeypatch, recipe=recipe)
    assert "key 'beta' stands twice" in message and "edited.yaml" in message


def test_value_of_the_wrong_kind(monkeypatch, tmp_path):
    message = refusal(monkeypatch, recipe=edited(tmp_path, "max_steps:", "max_steps: many #"))
    assert "edited.yaml" in message and "max_steps" in message and "many" in message


def test_not_yaml(monkeypatch, tmp_path):
    message = refusal(monkeypatch, recipe=edited(tmp_path, "max_steps:", "max_steps: [1"))
    assert "edited.yaml, line" in message and "not YAML" in message


def test_missing_recipe_file(monkeypatch):
    message = refusal(monkeypatch, recipe="recipes/smolm2-sentiment.yaml")
    assert "no recipe at" in message and "smollm2-sentiment" in message


def test_missing_model_folder(monkeypatch, tmp_path):
    message = refusal(monkeypatch, f"--model_name_or_path={tmp_path}/nothing")
    assert "no model folder" in message and "make install" in message


def test_missing_data(monkeypatch, tmp_path):
    message = refusal(monkeypatch, f"--dataset_name={tmp_path}/nothing")
    assert "no data at" in message and "--dataset_name" in message


def test_broken_data_file(monkeypatch, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": \n')
    assert "cannot load the data set" in refusal(monkeypatch, f"--dataset_name={tmp_path}")


def test_wrong_split_name(monkeypatch, tiny_data):
    message = refusal(monkeypatch, f"--dataset_name={tiny_data}", "--dataset_test_split=held_out")
    assert "no split 'held_out'" in message and "train, test" in message


def test_held_out_pairs_must_not_be_trained_on(monkeypatch, tiny_data):
    message = refusal(monkeypatch, f"--dataset_name={tiny_data}", "--dataset_test_split=train")
    assert "what the run trains on" in message


def test_model_folder_without_weights(monkeypatch, tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    message = refusal(monkeypatch, f"--model_name_or_path={folder}")
    assert "has no weights" in message and str(folder) in message


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_weights_in_half_precision(monkeypatch, tmp_path, tiny_model, dtype):
    folder = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype="bfloat16").save_pretrained(folder)
    flags = [f"--model_name_or_path={folder}", f"--dtype={dtype}"]
    message = refusal(monkeypatch, *flags)
    assert f"dtype {dtype}" in message and "--use_peft" in message and "zero2" in message
    # An adapter's weights are float32 whatever the base is in, and DeepSpeed keeps such copies.
    recipe = ["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu", *flags]
    check_model(parse([*recipe, "--use_peft"]))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_model(parse(recipe))


def other_run(folder, settings: str):
    folder.mkdir()
    (folder / "recipe.yaml").write_text(settings)
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_output_folder_of_another_recipe(monkeypatch, tmp_path):
    folder = other_run(tmp_path / "run", "recipe: zephyr\n")
    message = refusal(monkeypatch, f"--output_dir={folder}")
    assert "recipe (zephyr, now smollm2-sentiment)" in message and "--restart" in message
    assert (folder / "model.safetensors").read_text() == "weights"
    assert (folder / "recipe.yaml").read_text() == "recipe: zephyr\n"


def test_output_folder_that_is_no_run(monkeypatch, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    message = refusal(monkeypatch, f"--output_dir={tmp_path}")
    assert "files that are no run" in message
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_unwritable_output_folder(monkeypatch, tmp_path):
    # Under a file no folder can be made, not even by root.
    (tmp_path / "file").write_text("")
    message = refusal(monkeypatch, f"--output_dir={tmp_path}/file/run")
    assert "cannot write the output folder" in message and "Not a directory" in message


@pytest.mark.parametrize("kind", ["model_name_or_path", "dataset_name"])
def test_unreachable_hub(monkeypatch, kind):
    # Port 9 of this machine answers nobody: what a machine without a network sees.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    message = refusal(monkeypatch, f"--{kind}=someone/something")
    assert time.monotonic() - started < 30
    for word in ("someone/something", "HF_HUB_OFFLINE=1", "HF_ENDPOINT", "--model_name_or_path"):
        assert word in message


def test_processes_that_do_not_divide_the_batch():
    assert share_batch(4, 2, 1) == (4, 2)
    assert share_batch(4, 2, 2) == (4, 1)  # first less accumulation
    assert share_batch(4, 2, 8) == (1, 1)  # then fewer pairs at a time
    assert share_batch(2**31, 1, 2) == (2**30, 1)  # at once, however large
    assert share_batch(3, 4, 2) == (3, 2)
    with pytest.raises(SystemExit, match=r"3 processes cannot share .* 8 pairs .* 1, 2, 4, 8,"):
        share_batch(4, 2, 3)


def test_unknown_names_list_the_choices():
    wrong_recipe = launch("--recipe", "smollm")
    assert wrong_recipe.returncode != 0
    assert wrong_recipe.stderr.startswith("no RECIPE 'smollm': did you mean: ")
    assert "smollm2-sentiment" in wrong_recipe.stderr and wrong_recipe.stderr.count("\n") == 1
    wrong_config = launch("--accelerate_config", "zero9")
    assert wrong_config.returncode != 0
    assert wrong_config.stderr.startswith("no CONFIG 'zero9': one of: ")
    assert "zero3" in wrong_config.stderr and wrong_config.stderr.count("\n") == 1


def test_the_one_line_is_the_last_thing_a_shell_shows(tmp_path):
    """Through accelerate launch as well: exit code not zero, no traceback after the line."""
    result = launch("--", f"--output_dir={tmp_path}/run", "--learning_rat=1")
    assert result.returncode != 0
    assert "unknown argument '--learning_rat=1'" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
