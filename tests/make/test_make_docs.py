"""Every command of README and docs runs as it stands there."""

import shlex

import pytest

from support.commands import make
from support.docs import assert_runs, blocks, commands
from support.place import ROOT


@pytest.mark.parametrize("command", commands(processes=False))
def test_every_command_of_the_docs_runs(command, tiny_flags):
    assert_runs(command, tiny_flags)


def test_the_recipe_of_the_readme_trains(tmp_path, tiny_model, tiny_data, request):
    """Written where the README says, under a name that no recipe has, and removed again."""
    (text,) = blocks("yaml")
    path = ROOT / "recipes/readme-example.yaml"
    request.addfinalizer(lambda: path.unlink(missing_ok=True))
    path.write_text(text)
    flags = [
        *(f"--model_name_or_path={tiny_model}", f"--dataset_name={tiny_data}", "--max_steps=2"),
        *(f"--output_dir={tmp_path / 'run'}", "--reward_prompts=2", "--eval_steps=2"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=1", "--bf16=false"),
        f"--reference_cache={tmp_path / 'cache'}",
    ]
    result = make("train", "RECIPE=readme-example", f"ARGS={shlex.join(flags)}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run/report.html").is_file()
