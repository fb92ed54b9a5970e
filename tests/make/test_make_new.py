"""make new writes a recipe that trains."""

import json
import sys

import pytest

from dpo.recipe.parse import FOLDER
from support.commands import make
from support.launched import made
from support.place import ROOT
from support.tiny import pair, recipe_steps


@pytest.fixture
def name(request):
    """A name in recipes/ that no recipe has, taken away again."""
    path = ROOT / FOLDER / "made-by-a-test.yaml"
    request.addfinalizer(lambda: path.unlink(missing_ok=True))
    path.unlink(missing_ok=True)
    return path.stem


def test_make_new_writes_a_recipe_that_trains(tmp_path, tiny_model, name):
    rows = [pair(f"{i}", "It was good.", "It was bad.") for i in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["new", f"RECIPE={name}", f"MODEL={tiny_model}", f"DATASET={path}"]
    result = make(*command)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"make data RECIPE={name}" in result.stdout.splitlines()[-1]
    trainer, _ = recipe_steps(ROOT / FOLDER / f"{name}.yaml", tmp_path)
    assert trainer.state.global_step == 2 and len(trainer.eval_dataset) == 4
    again = made(*command)
    assert again.returncode != 0 and "is there already" in again.stderr


def test_make_new_says_what_is_missing():
    result = made("new", "RECIPE=made-by-a-test")
    assert result.returncode != 0 and "MODEL= is missing: make new RECIPE=" in result.stderr


@pytest.mark.parametrize(
    "given, flags",
    [
        (["FROM=x y.yaml", "GPUS=4"], ["--recipe ", '--from "x y.yaml" --gpus "4"']),
        (["FROM=x.yaml", "RECIPE=a"], ['--recipe "a"', '--from "x.yaml"']),
        (["RECIPE=a", "COLUMNS=prompt=q chosen=c"], ['--columns "prompt=q chosen=c"']),
        (["MODEL=m", "DATASET=d"], ['--recipe ""', '--model "m"', '--dataset "d"']),
    ],
)
def test_make_hands_on_what_it_is_given(given, flags):
    """A terminal's width in COLUMNS is no mapping, and make's own RECIPE no answer."""
    shown = make("-n", "-o", f"{sys.prefix}/ready", "new", *given, COLUMNS="200").stdout
    assert all(flag in shown for flag in flags), shown
    assert ("--columns" in shown) == ("COLUMNS" in str(given)) and "smollm2-sentiment" not in shown
