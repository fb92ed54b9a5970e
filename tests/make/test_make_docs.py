"""Every command of README and docs runs as it stands there."""

import json
import re
import shlex

import pytest

from support.commands import make
from support.docs import FIVE_MINUTES, README, assert_runs, blocks, commands
from support.place import ROOT


@pytest.mark.parametrize("command", commands(processes=False))
def test_every_command_of_the_docs_runs(command, tiny_flags):
    assert_runs(command, tiny_flags)


def test_five_minutes_with_pairs_of_ones_own(tmp_path, tiny_model, request):
    """As README says it, with its row, on the tiny model, under a name that no recipe has."""
    assert "\n".join(FIVE_MINUTES) in re.sub(r" +#.*", "", README)
    (row,) = map(json.loads, blocks("json"))
    rows = [row | {"prompt": f"{row['prompt']} ({i})"} for i in range(20)]
    pairs, name = tmp_path / "pairs.jsonl", "readme-example"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request.addfinalizer(lambda: (ROOT / f"recipes/{name}.yaml").unlink(missing_ok=True))
    flags = {
        "train": "--max_steps=2 --report_to=none",
        "evaluate": "--max_new_tokens=4 --limit=2",
    }
    ours = {"my-recipe": name, "models/SmolLM2-135M-Instruct": str(tiny_model)}
    for command in FIVE_MINUTES:
        for theirs, mine in (ours | {"pairs.jsonl": str(pairs)}).items():
            command = command.replace(theirs, mine)
        words = shlex.split(command)[1:]
        result = make(*words, f"ARGS={flags.get(words[0], '')}")
        assert result.returncode == 0, result.stderr[-3000:]
    assert next(ROOT.glob(f"outputs/{name}/evaluations/*/evaluation.html"))


def test_the_recipe_of_the_docs_trains(tmp_path, tiny_model, tiny_data, request):
    """Written where docs/recipes.md says, under a name that no recipe has, and removed again."""
    text = next(text for text in blocks("yaml") if "dataset_name" in text)
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
