"""make reproduce: a recipe that holds, one that does not, and runs that fail or are ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import reproduce
from dpo.runs import checkpoints, output_folder
from support.commands import make
from support.launched import made
from support.place import ROOT

NAME = "reproduce-example"
OWN = ROOT / "outputs/reproduce" / NAME
TEXT = """# A tiny model, to be run again.
# Published: none.
# Machine: one CPU core.
# Reached: {reached}.
{more}
### Model
model_name_or_path: {model}

### Data
dataset_name: {data}

### Optimisation
learning_rate: 1.0e-3
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
max_steps: {steps}

### Evaluation and output
eval_strategy: steps
eval_steps: 2
logging_steps: 1
save_steps: 1
report_to: none
reward_prompts: 2
reference_cache: {cache}
output_dir: outputs/reproduce-example
"""
OFF = "answer tokens 1 (0 to 2)"


@pytest.fixture
def recipe(tiny_model, tiny_data, tmp_path, request):
    """Writes a recipe with a header that says this, under a name that none has."""
    path = ROOT / f"recipes/{NAME}.yaml"
    request.addfinalizer(lambda: path.unlink(missing_ok=True))

    def write(reached: str = OFF, *more: str, steps: int = 2) -> None:
        of = {"model": tiny_model, "data": tiny_data, "cache": tmp_path / "cache", "steps": steps}
        lines = "".join(f"# {line}.\n" for line in more)
        path.write_text(TEXT.format(reached=reached, more=lines, **of))

    return write


def found(folder: Path = OWN) -> dict:
    return json.loads((folder / "reproduced.json").read_text())


def as_it_is(folder: Path = OWN) -> str:
    """What the header of a recipe would say of this run."""
    rows, names = json.loads((folder / "report.json").read_text()), []
    for name, of in (
        ("true reward", rows["judge"]["reward"]["policy"]),
        ("preference accuracy", rows["pairs"]["accuracy"]),
        ("KL nats per sequence", rows["answers"]["kl"]["nats_per_sequence"]),
    ):
        names.append(f"{name} {of['mean']:.4f} ({of['low'] - 0.1:.4f} to {of['high'] + 0.1:.4f})")
    return ", ".join(names)


def test_a_recipe_is_held_to_what_its_header_says(recipe, launched):
    asked = ("reproduce", f"RECIPE={NAME}")
    recipe()
    result = make(*asked)
    assert result.returncode == 2 and "Error 3" in result.stderr
    said = f"{NAME} does not hold here: answer tokens is 40, not 0 to 2"
    assert said in result.stdout and "vaderSentiment " in result.stdout
    last = result.stdout.splitlines()[-2:]
    assert last[0] == f"Written: {OWN.relative_to(ROOT)}/reproduced.json"
    assert last[1].startswith("Next: open ")
    assert found()["holds"] is False and found()["numbers"][0]["got"] == 40
    report = OWN / "report.json"
    assert found()["versions"] == json.loads(report.read_text())["versions"]
    before = report.stat().st_mtime_ns

    # With its own numbers it holds, and is not trained again.
    recipe(as_it_is(), "With --beta=1e38: true reward 0 (0 to 0)")
    again = made(*asked, "ARGS=--report_to=none")
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{NAME} holds here: 3 of 3 numbers to the digit" in again.stdout
    assert "not trained again" in again.stdout and report.stat().st_mtime_ns == before
    assert found()["holds"] is True

    # Of other settings nothing is known; a run that fails says why.
    other = made(*asked, "ARGS=--max_steps=4")
    assert other.returncode == 1 and 'or give ARGS="--beta=1e38"' in other.stderr
    assert "max_steps (2, now 4)" in other.stderr and other.stderr.count("\n") < 3
    failed = launched.made(*asked, "ARGS=--beta=1e38")
    assert failed.returncode == 1 and "not finite" in failed.stderr and "1e38.log" in failed.stderr

    # A run of the same settings in the recipe's own folder is taken; one of others is left alone.
    usual = ROOT / f"outputs/{NAME}"
    shutil.move(OWN, usual)
    taken = made(*asked)
    assert taken.returncode == 0 and f"Run: outputs/{NAME}, found" in taken.stdout
    assert f"in outputs/{NAME}, 2 checkpoints" in taken.stdout
    settings = usual / "recipe.yaml"
    settings.write_text(settings.read_text().replace("max_steps: 2", "max_steps: 3"))
    kept = settings.read_text()
    fresh = launched.made(*asked)
    assert fresh.returncode == 0 and "not trained again" not in fresh.stdout
    assert "3 of 3 numbers to the digit" in fresh.stdout
    assert settings.read_text() == kept and (OWN / "report.json").is_file()

    # What was reached on other data, or with other settings, is not what would be reached now.
    report = json.loads((OWN / "report.json").read_text())
    report["pairs"]["digest"] = "0" * 16
    (OWN / "report.json").write_text(json.dumps(report))
    for line in (
        "what it has reached is of other data",
        "with other settings: seed (7, now its default)",
    ):
        refused = made(*asked)
        assert refused.returncode == 1 and line in refused.stderr
        assert refused.stderr.rstrip().endswith('ARGS="--restart" moves it aside and trains anew')
        (OWN / "recipe.yaml").write_text((OWN / "recipe.yaml").read_text() + "seed: 7\n")


@pytest.mark.parametrize(
    "given, why",
    [
        ("max_steps=2", "'max_steps=2' belongs to no flag"),
        ("--max_stps=2", "max_steps"),
        ("--output_dir=x", "make reproduce sets this itself"),
        ("--resume_from_checkpoint=x", "make reproduce sets this itself"),
        ("--max_steps=two", "invalid int value"),
    ],
)
def test_a_flag_of_a_header_that_cannot_be_given_is_named_there(given, why, recipe):
    recipe(OFF, f"With {given}: answer tokens 1 (0 to 2)")
    refused = made("reproduce", f"RECIPE={NAME}", "ARGS=--max_steps=3")
    line = refused.stderr.rstrip().splitlines()[-1]
    assert refused.returncode == 1 and f"recipes/{NAME}.yaml: `# With {given}:`" in line
    assert why in line


def test_a_run_that_has_gone_on_from_another_is_not_the_recipes(recipe, monkeypatch):
    recipe()
    monkeypatch.setattr("sys.argv", ["reproduce.py", f"--recipe={NAME}"])
    _, asked, folders = reproduce.expectation(reproduce.asked())
    stated = {"recipe": NAME, **output_folder.settings(asked)}
    OWN.mkdir(parents=True)
    (OWN / "report.json").write_text("{}")
    (OWN / "recipe.yaml").write_text(json.dumps(stated))
    monkeypatch.setattr(reproduce.prompts, "changed", lambda *_: False)
    assert reproduce.there(asked, folders) == folders[-1]
    stated["resume_from_checkpoint"] = "outputs/shorter/checkpoint-1"
    (OWN / "recipe.yaml").write_text(json.dumps(stated))
    assert reproduce.there(asked, folders) is None


def test_with_other_processes_it_is_run_in_a_folder_of_its_own(recipe, monkeypatch):
    recipe()
    own = f"outputs/reproduce/{NAME}"
    monkeypatch.setattr(
        "sys.argv", ["reproduce.py", f"--recipe={NAME}", "--accelerate_config=zero2", "--gpus=2"]
    )
    assert reproduce.expectation(reproduce.asked())[2] == [Path(f"{own}-zero2-2-processes")]
    monkeypatch.setattr("sys.argv", ["reproduce.py", f"--recipe={NAME}"])
    assert reproduce.expectation(reproduce.asked())[2] == [Path(f"outputs/{NAME}"), Path(own)]


def test_fewer_steps_are_held_to_their_own_numbers_and_claim_no_more(recipe, launched):
    recipe(OFF, "With --max_steps=1 --reward_prompts=1: answer tokens 40 (39 to 41)")
    flags = "ARGS=--reward_prompts 1 --max_steps=1"
    result = launched.made("reproduce", f"RECIPE={NAME}", flags)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"{NAME} with --max_steps=1 --reward_prompts=1 holds here" in result.stdout
    assert f"what {NAME} itself reaches was not tried" in result.stdout
    (folder,) = OWN.parent.glob(f"{NAME}-*/")
    assert found(folder)["flags"] == ["--max_steps=1", "--reward_prompts=1"]
    assert json.loads((folder / "report.json").read_text())["steps"] == 1


def reproducing(until: Path) -> psutil.Popen:
    """`make reproduce`'s script, once a checkpoint is there."""
    command = [sys.executable, "scripts/reproduce.py", "--recipe", NAME]
    quiet = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = psutil.Popen(command, **quiet, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    deadline = time.monotonic() + 120
    while not (until / checkpoints.MANIFEST).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_one_that_is_asked_to_stop_or_killed_goes_on(recipe):
    recipe("answer tokens 40 (39 to 41)", steps=30)
    asked = reproducing(OWN / "checkpoint-2")
    asked.send_signal(signal.SIGTERM)
    said, _ = asked.communicate(timeout=120)
    assert asked.returncode == 75 and "the same command goes on from here" in said
    reached = max(int(path.name.partition("-")[2]) for path in OWN.glob("checkpoint-*"))
    killed = reproducing(OWN / f"checkpoint-{reached + 2}")
    for each in (*killed.children(recursive=True), killed):
        each.kill()
    killed.communicate()
    assert not (OWN / "report.json").exists()
    result = made("reproduce", f"RECIPE={NAME}")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    log = OWN.with_name(f"{NAME}.log").read_text()
    assert log.count("Continuing from") == 2 and found()["holds"]
