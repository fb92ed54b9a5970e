"""A whole run as a user starts it, with a tiny model: what it leaves and how it resumes."""

import json
import shutil
import signal
import sys
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from dpo.core.signals import SIGNALS
from dpo.training.trainer import FastDPOTrainer
from support.commands import once, run_flags
from support.refusing import refusal

RECIPE = ["--config", "recipes/smollm2-sentiment.yaml"]


def test_it_says_what_it_is_about_to_do(finished):
    folder, _, result = finished
    output = result.stdout
    assert output.startswith("accelerate launch --config_file accelerate_configs/cpu.yaml")
    assert "scripts/train.py --config recipes/smollm2-sentiment.yaml" in output
    assert "2 pairs a device × 2 accumulated × 1 processes = 4 pairs" in output
    assert "16 pairs to train on, 8 held out" in output
    assert "4 = 1.00 epochs" in output
    assert str(folder) in output
    assert "make sync" in output


def test_it_ends_with_a_report(finished):
    folder, _, result = finished
    report = json.loads((folder / "report.json").read_text())
    reward = report["judge"]["reward"]
    rise = reward["difference"]
    before, after = (reward[side]["mean"] for side in ("against", "policy"))
    assert rise["mean"] == pytest.approx(after - before)
    assert rise["low"] <= rise["mean"] <= rise["high"]
    pairs = report["pairs"]
    assert pairs["ceiling"] == 1.0  # no label in it is wrong
    assert pairs["accuracy"]["low"] <= pairs["accuracy"]["mean"] <= pairs["accuracy"]["high"]
    assert report["answers"]["kl"]["nats_per_sequence"]["mean"] > 0
    assert set(report["answers"]["mean_tokens"]) == {"policy", "against", "difference"}
    assert report["seconds"]["train"] > 0 and report["seconds"]["evaluate"] > 0
    assert 0.1 < report["peak_memory_gb"] < 8
    assert [point["step"] for point in report["curves"]["train"]] == [1, 2, 3, 4]
    assert [point["step"] for point in report["curves"]["held_out"]] == [2, 4]
    assert report["curves"]["train"][0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert len(report["samples"]) == 4
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "data:image/png;base64," in page
    assert 'src="http' not in page and "<script src" not in page
    assert "no judge" not in page and "accuracy" in result.stdout.splitlines()[-5]
    assert "True reward" in result.stdout and str(folder / "report.html") in result.stdout


@pytest.mark.parametrize("more", [[], ["--use_peft", "--precompute_ref_log_probs=false"]])
def test_what_trained_is_gone_when_the_evaluation_loads(
    more, tiny_model, tiny_data, tmp_path, monkeypatch
):
    """Policy, reference and AdamW's states would take the memory that the evaluation needs."""
    used, alive = [], []
    trained = FastDPOTrainer.train

    def noted(trainer, *args, **kwargs):
        done = trained(trainer, *args, **kwargs)
        parts = [trainer.model, trainer.ref_model, trainer.optimizer.optimizer, trainer.accelerator]
        used.extend(weakref.ref(part) for part in parts if part is not None)
        return done

    def evaluate(*args, **kwargs):
        alive.extend(type(part()).__name__ for part in used if part() is not None)
        raise SystemExit("enough")

    monkeypatch.setattr(FastDPOTrainer, "train", noted)
    monkeypatch.setattr("dpo.evaluation.measure.after_training", evaluate)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    flags = [*run_flags(tiny_model, tiny_data, tmp_path / "run"), "--report_to=none", *more]
    monkeypatch.setattr(sys, "argv", ["train.py", *RECIPE, *once(flags)])
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with pytest.raises(SystemExit, match="enough"):
            train.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert len(used) >= 3 and alive == []


def test_the_saved_policy_is_the_trained_one(finished, tiny_model):
    folder, _, _ = finished
    policy = AutoModelForCausalLM.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert policy.dtype == torch.float32
    moved = [
        (a != b).any().item()
        for a, b in zip(policy.parameters(), reference.parameters(), strict=True)
    ]
    assert all(moved)
    assert (
        folder / "model.safetensors"
    ).stat().st_mode & 0o044  # readable by others, as umask says


def test_wandb_keeps_the_run_offline_without_a_key(finished):
    folder, _, _ = finished
    (run,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    stored = run.read_bytes()
    # What the run is filed under, and the last results, are in W&B's own record.
    words = (b"dpo-recipes", b"smollm2-sentiment", b"true_reward", b"rewards/margins")
    for word in (*words, b"set_aside"):
        assert word in stored, word


def test_a_finished_run_is_left_alone(finished, monkeypatch, capsys):
    folder, flags, _ = finished
    monkeypatch.setattr(sys, "argv", ["train.py", *RECIPE, *once(flags)])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(train.Leave, "listen", lambda self: self)  # signals are for pytest
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    train.main()
    assert "Trained and evaluated already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_other_settings_do_not_overwrite_a_run(finished, monkeypatch):
    _, flags, _ = finished
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    message = refusal(monkeypatch, *flags, "--beta", "0.5")
    assert "other settings: beta (its default, now 0.5)" in message


def test_restart_moves_the_run_aside(finished, launched, tmp_path):
    there, flags, _ = finished
    folder = Path(shutil.copytree(there, tmp_path / "run"))
    weights = (folder / "model.safetensors").read_bytes()
    result = launched(*flags, f"--output_dir={folder}", "--restart")
    assert result.returncode == 0, result.stderr[-3000:]
    (aside,) = folder.parent.glob("run.*")
    assert str(aside) in result.stdout
    assert (aside / "model.safetensors").read_bytes() == weights
    # The same seed, the same run, to the bit.
    assert (folder / "model.safetensors").read_bytes() == weights
