"""make rounds: sampled, judged, trained and measured twice, ended in the middle, and gone on."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from support.browser import DESKTOP, PHONE, fits, opened, pictures
from support.commands import make, once, run_flags
from support.launched import made
from support.models import speaking_model
from support.place import ROOT

RULE = "def score(prompt, completion, row):\n    return len(set(completion))\n"
SAMPLED = ["--max_new_tokens=16", "--temperature=1", "--test_size=0.2", "--batch_size=6"]
SAMPLED += ["--eval_limit=4", "--eval_samples=2"]


@pytest.fixture(scope="module")
def speaking(tiny_model, tmp_path_factory) -> Path:
    return speaking_model(tiny_model, tmp_path_factory.mktemp("tiny") / "speaking")


@pytest.fixture
def given(speaking, tiny_data, tmp_path) -> tuple[list[str], str]:
    """What make is given for two rounds, and the ARGS of it."""
    prompts = tmp_path / "questions.txt"
    prompts.write_text("".join(f"Question {n}?\n" for n in range(12)))
    flags = run_flags(speaking, tiny_data, tmp_path / "x")
    flags = [flag for flag in flags if "output_dir" not in flag]
    stated = [f"PROMPTS={prompts}", "JUDGE=vader", "ROUNDS=2", "SAMPLES=6"]
    stated += [f"OUTPUT={tmp_path / 'out'}"]
    return stated, shlex.join([*SAMPLED, "--", *flags, "--report_to=none"])


def ended(given: tuple[list[str], str], moment, how: signal.Signals) -> int:
    """Start the rounds, and end them at a moment: the first process alone is asked to, and with
    SIGKILL all that it has started are killed. Returns its exit code."""
    names = {"PROMPTS": "prompts", "JUDGE": "judge", "ROUNDS": "rounds", "SAMPLES": "samples"}
    names["OUTPUT"] = "output"
    stated = dict(each.split("=", 1) for each in given[0])
    command = [sys.executable, "scripts/rounds.py", "--recipe=smollm2-sentiment"]
    command += [f"--{names[key]}={value}" for key, value in stated.items()]
    ours, _, flags = given[1].partition(" -- ")
    command += [*shlex.split(ours), "--", *once(shlex.split(flags))]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}
    process = psutil.Popen(command, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 240
    while not moment():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if how == signal.SIGKILL:
        for each in (*process.children(recursive=True), process):
            each.kill()
    else:
        process.send_signal(how)
    return process.wait(120)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.is_file() else 0


def test_rounds_are_ended_anywhere_and_go_on(given, tmp_path):
    into, answers = tmp_path / "out", ROOT / "cache/answers"
    ended(given, lambda: any(map(lines, answers.glob("*.jsonl"))), signal.SIGKILL)
    assert not (into / "round-1-pairs/train.jsonl").exists()
    kept = {path: path.read_bytes() for path in answers.iterdir()}
    code = ended(given, lambda: lines(into / "round-1/metrics.jsonl") > 1, signal.SIGTERM)
    assert code == 75 and not (into / "round-2-pairs").exists()
    assert all(path.read_bytes().startswith(before) for path, before in kept.items())

    result = make("rounds", *given[0], f"ARGS={given[1]}")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "Continuing from" in (into / "round-1.log").read_text()
    assert "do not win over one offline run" in result.stdout or "Two rounds reach" in result.stdout
    found = json.loads((into / "rounds.json").read_text())
    assert [*found["rounds"]] == ["round-1", "round-2", "offline"]
    counts = [each["pairs"]["train"] for each in found["rounds"].values()]
    lacking = "The start's answers made" in result.stdout
    assert counts[2] == lines(into / "offline-data/train.jsonl")
    assert counts[2] < counts[0] + counts[1] if lacking else counts[2] == counts[0] + counts[1]
    assert [each["steps"] for each in found["rounds"].values()] == [4, 4, 8]
    # The second round: fresh prompts, answered by the policy, held against the first model.
    pairs = json.loads((into / "round-2-pairs/pairs.json").read_text())
    assert pairs["models"][0]["name"] == str(into / "round-1") and pairs["prompts"]["skip"] == 6
    report = json.loads((into / "round-2/report.json").read_text())
    start = found["rounds"]["round-2"]["measured"]["against"]
    assert report["settings"]["ref_model_name_or_path"] == start
    assert report["settings"]["model_name_or_path"] == str(into / "round-1")

    # What is done is not done again.
    def times() -> dict[Path, int]:
        every = [path for path in into.glob("**/*") if path.is_file()]
        told = ("rounds.", ".lock")
        return {p: p.stat().st_mtime_ns for p in every if not p.name.startswith(told)}

    before, verdict = times(), found["verdict"]
    again = made("rounds", *given[0], f"ARGS={given[1]}")
    assert again.returncode == 0 and times() == before, again.stderr[-2000:]
    assert json.loads((into / "rounds.json").read_text())["verdict"] == verdict
    other = made("rounds", *given[0], f"ARGS={given[1].replace('samples=2', 'samples=1')}")
    assert other.returncode and "eval_samples (2, now 1): give the same again" in other.stderr

    # The numbers are make evaluate's.
    flags = ["--skip_pairs", "--samples=2", "--max_new_tokens=16", "--temperature=1"]
    asked = [f"RUN={into / 'round-2'}", f"PROMPTS={into / 'held_out.jsonl'}", "JUDGE=vader"]
    result = made("evaluate", *asked, f"ARGS={shlex.join(flags)}")
    assert result.returncode == 0, result.stderr[-3000:]
    (path,) = (into / "round-2/evaluations").glob("*/evaluation.json")
    evaluation, ours = json.loads(path.read_text()), found["rounds"]["round-2"]["measured"]
    assert evaluation["judge"]["rewards"] == ours["judge"]["rewards"]
    assert evaluation["answers"]["kl"]["nats_per_sequence"] == pytest.approx(
        ours["answers"]["kl"]["nats_per_sequence"]
    )
    assert ours["answers"]["kl"]["nats_per_sequence"]["mean"] != 0

    for width in (PHONE, DESKTOP):
        with opened((into / "rounds.html").as_uri(), width) as page:
            assert page.errors == [] and fits(page) and min(pictures(page)) > 800
            assert page.get_by_text(found["verdict"][0]).is_visible()
            page.get_by_role("link", name="round-2").click()
            page.wait_for_url("**/round-2/report.html")


def test_adapters_go_in_rounds_from_the_model_that_they_make(given, launched, tmp_path):
    """LoRA, against the policy of the round before, judged by a rule."""
    rule = tmp_path / "rule.py"
    rule.write_text(RULE)
    ours, _, flags = given[1].partition(" -- ")
    ours += " --reference=previous --offline=false"
    judged = f"JUDGE={rule}"
    flags += " --use_peft --lora_r=4"
    result = launched.made("rounds", *given[0], judged, f"ARGS={ours} -- {flags}")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    into = tmp_path / "out"
    report = json.loads((into / "round-2/report.json").read_text())
    assert report["settings"]["model_name_or_path"] == str(into / "round-1/merged")
    assert "ref_model_name_or_path" not in report["settings"]
    found = json.loads((into / "rounds.json").read_text())
    assert [*found["rounds"]] == ["round-1", "round-2"]
    first, second = (
        each["measured"]["answers"]["kl"]["nats_per_sequence"]["mean"]
        for each in found["rounds"].values()
    )
    assert first and second and first != second


@pytest.mark.parametrize(
    ("more", "says_so"),
    [
        ("--near_duplicate=0", "no pair to train on comes of 6 prompts: "),
        ("--eval_prompts=nowhere.txt", "PROMPTS: no file nowhere.txt"),
        ("--output=README.md", "OUTPUT: README.md cannot be made: it is a file: give another"),
    ],
)
def test_what_ends_a_round_is_said_in_its_line(given, more, says_so):
    ours, _, flags = given[1].partition(" -- ")
    result = made("rounds", *given[0], f"ARGS={ours} {more} -- {flags}")
    assert result.returncode and says_so in result.stderr.splitlines()[-1], result.stderr[-2000:]
