"""make chat on a real run, in a real terminal and over a pipe."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pexpect

from dpo.evaluation.contestants import find
from dpo.models.sampling import sample
from support.commands import run_flags
from support.place import ROOT

PATIENCE = 300  # seconds: a busy machine takes long to import what it needs


def command(run: Path, *given: str) -> list[str]:
    ready = ("--old-file", f"{sys.prefix}/ready")
    return ["make", f"VENV={sys.prefix}", *ready, "chat", f"RUN={run}", f"ARGS={' '.join(given)}"]


def test_a_conversation_in_a_terminal(swept, tmp_path):
    run = swept[0] / "beta=0.1"
    program, *rest = command(run, "--max_new_tokens", "8", "--seed", "1")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb"}
    how = {"cwd": ROOT, "env": environment, "encoding": "utf-8", "timeout": PATIENCE}
    child = pexpect.spawn(program, rest, dimensions=(40, 160), **how)
    child.expect("seed 1, temperature 0.7, max_new_tokens 8; /help lists the commands")
    child.expect("you> ")
    child.sendline("How was the soup?")
    child.expect("policy> .*reference> .*you> ")
    child.sendline("/nonsense")
    child.expect("No command /nonsense; there are:")
    child.expect("you> ")
    saved = tmp_path / "said.jsonl"
    child.sendline(f"/save {saved}")
    child.expect(f"Written: {saved}")
    child.expect("you> ")
    child.sendeof()
    child.expect("Next: make export RUN=")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    policy, reference = map(json.loads, saved.read_text().splitlines())
    assert policy["messages"][0] == reference["messages"][0]
    assert policy["messages"][1] != reference["messages"][1]  # which has not been trained


def test_prompts_over_a_pipe(swept):
    run = swept[0] / "beta=0.1"
    given = command(run, "--only", "policy", "--json", "--max_new_tokens", "8")
    asked = "How was the soup?\n\nAnd the weather?\n"
    how = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 2 * PATIENCE}
    done = subprocess.run(given, input=asked, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = map(json.loads, done.stdout.splitlines())  # and nothing else
    assert first["prompt"] == "How was the soup?" and second["prompt"] == "And the weather?"
    assert first["policy"] and "reference" not in first


def test_a_run_on_plain_text_is_asked_in_it(launched, tiny_model, tmp_path):
    """Though its tokenizer has a chat template."""
    data, run, prompt = tmp_path / "data", tmp_path / "run", "How was the soup?"
    data.mkdir()
    for split, count in (("train", 16), ("test", 4)):
        rows = [
            {"prompt": f"Soup {split} {i}:", "chosen": " It was good.", "rejected": " It was bad."}
            for i in range(count)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = launched(*run_flags(tiny_model, data, run), "--report_to=none")
    assert result.returncode == 0, result.stderr[-3000:]
    given = command(
        run, "--only", "policy", "--json", "--temperature", "0", "--max_new_tokens", "8"
    )
    how = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 2 * PATIENCE}
    done = subprocess.run(given, input=f"{prompt}\n", **how)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Trained on plain text: each line is asked as it stands" in done.stderr
    policy = find(str(run))
    ids = policy.tokenizer()(prompt)["input_ids"]
    drawn = {"temperature": 0, "max_new_tokens": 8, "seed": 0, "kind": str}
    (said,) = sample(policy.load("cpu"), policy.tokenizer(), [ids], **drawn)
    assert json.loads(done.stdout)["policy"] == said.text != ""
    card = (run / "README.md").read_text()
    assert 'tokenizer("How was the food?"' in card and "apply_chat_template" not in card
