"""Every command of README and docs runs as it stands there."""

import json
import re
import shlex

import pytest

from support.commands import make, run
from support.docs import FIVE_MINUTES, OWN_DATA, README, assert_runs, blocks, commands, page
from support.place import ROOT


@pytest.mark.parametrize("command", commands(processes=False))
def test_every_command_of_the_docs_runs(command, tiny_flags):
    assert_runs(command, tiny_flags)


def test_five_minutes_with_pairs_of_ones_own(tmp_path, tiny_model, request):
    """As README says it, with its row, on the tiny model, under a name that no recipe has."""
    assert "\n".join(FIVE_MINUTES) in re.sub(r" +#.*", "", README)
    (row,) = map(json.loads, blocks("json", README))
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


def test_ones_own_data_from_a_file_to_a_comparison(tiny_model, request):
    """All commands of the guide in its order, with the file that it writes, on the tiny model,
    under a name that no recipe has."""
    (code,) = blocks("python", page("your-own-data.md"))
    name = "guide-example"
    written = [ROOT / f"recipes/{name}.yaml", ROOT / f"{name}.csv", ROOT / f"{name}.py"]
    request.addfinalizer(lambda: [path.unlink(missing_ok=True) for path in written])
    written[-1].write_text(code.replace("sums", name))
    flags = {"train": "--max_steps=2 --report_to=none --eval_steps=2", "evaluate": "--limit=2"}
    for command in OWN_DATA:
        command = re.sub(r"\bsums\b", name, command)
        words = shlex.split(command.replace("models/SmolLM2-135M-Instruct", str(tiny_model)))
        if words[0] == "make":
            more = flags.get(words[1], "")
            given = next((word[5:] for word in words if word.startswith("ARGS=")), "")
            given = given.replace("max_new_tokens 40", "max_new_tokens 4")
            words = [word for word in words[1:] if not word.startswith("ARGS=")]
            result = make(*words, f"ARGS={given} {more}")
        else:
            result = run(*words)
        assert result.returncode == 0, f"{command}\n{result.stderr[-3000:]}"
    recipe = written[0].read_text()
    assert "\ntest_split_size: 32\n" in recipe and "\nnum_train_epochs: 1\n" in recipe
    results = json.loads((ROOT / "outputs/comparison/comparison.json").read_text())
    assert [run["differs"] for run in results["runs"]] == [
        {"learning_rate": rate} for rate in ("1e-06", "1e-05")
    ]


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
