"""make pairs, from prompts to a recipe that trains on what came of them."""

import json
import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard

from support.commands import make
from support.launched import be, fork, made
from support.place import ROOT

# Of a random model hardly any answer is a sentence; the rule goes by what every answer has.
RULE = "def score(prompt, completion, row):\n    return len(set(completion)) + row['bonus']\n"
SETTINGS = ["--batch_size=4", "--max_new_tokens=30", "--temperature=1", "--test_size=0.25"]


@pytest.fixture
def asked(tmp_path) -> tuple[Path, Path]:
    """A file of prompts, and a rule."""
    prompts, rule = tmp_path / "questions.jsonl", tmp_path / "rule.py"
    rows = [{"prompt": f"Question {n}?", "bonus": n / 8} for n in range(12)]
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rule.write_text(RULE)
    return prompts, rule


def given(asked, model, to: Path, *flags: str) -> list[str]:
    prompts, rule = asked
    stated = [f"PROMPTS={prompts}", f"MODEL={model}", f"JUDGE={rule}", "SAMPLES=4", f"TO={to}"]
    return [*stated, f"ARGS={shlex.join([*SETTINGS, *flags])}"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_pairs_are_data_as_they_are(asked, chatty_model, tmp_path):
    """Through make: the last lines say what was written and what comes next, and that holds."""
    to = tmp_path / "mine"
    result = make("pairs", *given(asked, chatty_model, to))
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    counts = json.loads((to / "pairs.json").read_text())["pairs"]
    assert counts["train"] >= 4 and counts["test"] >= 1
    *_, written, then = result.stdout.splitlines()
    assert written.startswith(f"Written: {to}/train.jsonl, test.jsonl") and "--" not in then
    assert then == f"Next: make new RECIPE=mine MODEL={chatty_model} DATASET={to}"
    data = load_dataset(str(to))
    assert {split: len(data[split]) for split in data} == counts
    assert set(data["train"].column_names) >= {"prompt", "chosen", "rejected", "score_chosen"}
    card = DatasetCard.load(to / "README.md")
    assert {c["config_name"] for c in card.data.to_dict()["configs"]} == {"default", "candidates"}
    recipe = ROOT / "recipes" / "made-by-a-test.yaml"
    try:
        named = "RECIPE=made-by-a-test"
        new = made("new", named, f"MODEL={chatty_model}", f"DATASET={to}")
        assert new.returncode == 0, new.stderr[-2000:]
        assert yaml.safe_load(recipe.read_text())["dataset_name"] == str(to)
        shown = made("data", named, f"ARGS=--output_dir={tmp_path / 'run'}")
        assert shown.returncode == 0, shown.stdout[-2000:] + shown.stderr[-2000:]
        assert f"{counts['train']} pairs of {counts['train']} rows" in shown.stdout
    finally:
        recipe.unlink(missing_ok=True)


def test_after_ten_kills_the_pairs_are_the_same(asked, chatty_model, tmp_path):
    """At random moments, with SIGKILL; what had been answered is not asked for again."""
    whole = made("pairs", *given(asked, chatty_model, tmp_path / "whole/mine"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    expected = files(tmp_path / "whole/mine")
    (ROOT / "cache").rename(tmp_path / "cache")
    prompts, rule = asked
    flags = [f"--prompts={prompts}", f"--model={chatty_model}", f"--judge={rule}", "--samples=4"]
    flags += [f"--to={tmp_path / 'killed/mine'}", *SETTINGS]
    out = tmp_path / "out", tmp_path / "errors"
    draw, kills, answered = random.Random(3), 0, [0]
    kept = ROOT / "cache/answers"
    slowly = "import time; from dpo.evaluation import generations as g; s = g.sample\n"
    slowly += "g.sample = lambda *a, **h: (time.sleep(0.15), s(*a, **h))[1]"
    environment = dict(os.environ)
    for _ in range(10):
        process = fork_first(flags, environment, out, slowly)
        time.sleep(draw.uniform(0.3, 1.5))
        kills += process.is_alive()
        process.kill()
        process.join()
        answered.append(sum(len(path.read_text().split()) for path in kept.glob("*")))
    assert kills >= 3 and answered == sorted(answered)
    last = fork_first(flags, environment, out, "")
    last.join()
    assert last.exitcode == 0, out[1].read_text()[-2000:]
    assert files(tmp_path / "killed/mine") == expected
    assert not [*(tmp_path / "killed/mine").glob(".*-*")]


def fork_first(flags, environment, out, first):
    return fork(_be_pairs, flags, environment, out, first)


def _be_pairs(flags, environment, out, first):
    be("pairs", flags, environment, *out, first=first)


def test_asked_to_stop_it_keeps_what_there_is(asked, chatty_model, tmp_path):
    prompts, rule = asked
    flags = [f"--prompts={prompts}", f"--model={chatty_model}", f"--judge={rule}", "--samples=4"]
    flags += [f"--to={tmp_path / 'to'}", *SETTINGS]
    out = tmp_path / "out", tmp_path / "errors"
    slowly = "import time; from dpo.evaluation import generations as g; s = g.sample\n"
    slowly += "g.sample = lambda *a, **h: (time.sleep(0.5), s(*a, **h))[1]"
    process = fork_first(flags, dict(os.environ), out, slowly)
    deadline = time.monotonic() + 60
    while not [*(ROOT / "cache/answers").glob("*")]:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 75
    assert "the same command goes on from here" in out[0].read_text()
    again = made("pairs", *given(asked, chatty_model, tmp_path / "to"))
    assert again.returncode == 0, again.stderr[-2000:]


def test_two_processes_make_the_pairs_of_one(asked, chatty_model, tmp_path):
    """Also where the second one is the slower."""
    wait = "    import os, time\n    time.sleep(0.05 * int(os.environ.get('RANK', 0)))\n"
    asked[1].write_text(RULE.replace(":\n", f":\n{wait}"))
    one = made("pairs", *given(asked, chatty_model, tmp_path / "one/mine"))
    assert one.returncode == 0, one.stderr[-2000:]
    (ROOT / "cache").rename(tmp_path / "cache")
    changes = {"OMP_NUM_THREADS": "1"}
    two = make("pairs", *given(asked, chatty_model, tmp_path / "two/mine"), "GPUS=2", **changes)
    assert two.returncode == 0, two.stdout[-2000:] + two.stderr[-3000:]
    assert "--num_processes 2" in two.stdout and "process 1 of 2" in two.stderr
    assert files(tmp_path / "two/mine") == files(tmp_path / "one/mine")


def test_a_second_judge_and_a_second_way_ask_no_model(asked, chatty_model, tmp_path):
    first = made("pairs", *given(asked, chatty_model, tmp_path / "one"))
    assert first.returncode == 0, first.stderr[-2000:]
    kept = {path: path.stat().st_mtime_ns for path in (ROOT / "cache/answers").iterdir()}
    other = asked[0], tmp_path / "other.py"
    other[1].write_text("def score(prompt, completion, row):\n    return -len(completion)\n")
    second = made("pairs", *given(other, chatty_model, tmp_path / "two"), "PICK=all")
    assert second.returncode == 0, second.stderr[-2000:]
    assert {p: p.stat().st_mtime_ns for p in (ROOT / "cache/answers").iterdir()} == kept
    one, two = (json.loads((tmp_path / name / "pairs.json").read_text()) for name in ("one", "two"))
    assert sum(two["pairs"].values()) > sum(one["pairs"].values())
