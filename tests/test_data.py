"""make data shows what the model will see; make new writes a recipe that trains."""

import json
import re

import pytest
from conftest import ROOT, make, pair, recipe_steps

import new
from dpo.data.sources.load import load_splits
from dpo.recipe.parse import FOLDER, parse
from dpo.runs.output_folder import claim


@pytest.fixture
def data(tmp_path):
    """Two pairs of which one is cut, and a bad one that no markup may hide in."""
    rows = [
        pair("a day", "Good. " * 30, "Bad."),
        pair("b", "Good [bold]enough[/bold] <script>alert(1)</script> \x1b[31mred.", "Bad, or so."),
        pair("c", "", "Bad."),
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_make_data_shows_what_the_model_will_see(tmp_path, data):
    flags = f"--dataset_name={data} --eval_strategy=no --max_length=80 --quarantine_limit=0.5"
    result = make("data", f"ARGS={flags} --output_dir={tmp_path}/run")
    assert result.returncode == 0, result.stderr[-3000:]
    said = result.stdout
    assert "2 pairs of 3 rows" in said and "1 set aside as empty" in said
    chosen = next(line for line in said.splitlines() if line.startswith("│ chosen"))
    assert "50.0%" in chosen  # one of the two is cut
    assert "chosen is the longer one in 100.0% of the pairs" in said
    assert "<|im_start|>user\nHow was a day?<|im_end|>\n<|im_start|>assistant" in said
    assert "[bold]enough[/bold]" in said and "\x1b" not in said and r"\x1b[31mred" in said
    assert said.splitlines()[-1] == "Next: make train RECIPE=smollm2-sentiment"
    page = (tmp_path / "run/data.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in re.sub("</?[ib][^>]*>", "", page)
    assert "Content-Security-Policy" in page.partition("<style>")[0]
    assert 'class="special"' in page and 'class="cut"' in page and "viewport" in page
    (line,) = (tmp_path / "run/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 3


def test_make_data_refuses_what_a_run_would_refuse(tmp_path, data):
    flags = f"--dataset_name={data} --eval_strategy=no --output_dir={tmp_path}/run"
    result = make("data", f"ARGS={flags}")
    assert result.returncode != 0
    assert "1 of 3 train rows are set aside (33.3%)" in result.stderr
    assert (tmp_path / "run/data.html").is_file()


def test_what_make_data_wrote_does_not_keep_a_run_from_starting(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("data.html", "quarantine.jsonl"):
        (tmp_path / "run" / name).write_text("")
    recipe = ["--config", str(ROOT / "recipes/smollm2-sentiment.yaml"), "--use_cpu"]
    claim(parse([*recipe, f"--output_dir={tmp_path}/run"]))
    assert (tmp_path / "run/recipe.yaml").is_file()


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
    again = make(*command)
    assert again.returncode != 0 and "is there already" in again.stderr


def test_make_new_says_what_is_missing():
    result = make("new", "RECIPE=made-by-a-test")
    assert result.returncode != 0 and "MODEL= is missing: make new RECIPE=" in result.stderr


@pytest.mark.parametrize(
    "parameters, rate, shards", [(3e8, None, False), (7e9, "5.0e-7", True), (7e10, "2.0e-7", True)]
)
def test_make_new_goes_by_the_models_size(monkeypatch, tiny_data, parameters, rate, shards):
    monkeypatch.setattr(new, "parameters", lambda model: int(parameters))
    monkeypatch.setattr(new, "has_chat_template", lambda model: True)
    text = new.recipe("mine", "someone/model", str(tiny_data))
    assert (f"\nlearning_rate: {rate}" in text) == (rate is not None)
    assert ("CONFIG=zero3" in text) == shards
    assert "\ntest_split_size" not in text  # the data have a test split
    assert {*load_splits(str(tiny_data))} == {"train", "test"}
