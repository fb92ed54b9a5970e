"""make check-gpu without a GPU: its parts on a CPU, and what it does with one that fails."""

import os
import sys
from dataclasses import asdict, replace

import psutil
import pytest

import check_gpu
from dpo.prefix_sharing import attention
from dpo.speed import gpu_checks, gpu_parity, gpu_runs
from dpo.speed.gpu_checks import Job, Row
from support.tiny import random_model, varlen_by_hand


@pytest.fixture
def job(tiny_model, tiny_data, tmp_path) -> Job:
    return Job("cpu", tiny_model, str(tiny_data), tmp_path, small=True)


def test_shared_prefixes_pass_and_a_wrong_plan_does_not(job, monkeypatch):
    rows = [*gpu_parity.parity(job)]
    assert len(rows) == 12 and {row.outcome for row in rows} == {"passed"}
    right = gpu_parity.batch_of

    def shifted(*given):
        batch = right(*given)
        batch["shared_prefixes"].positions[0, -3:] += 1
        return batch

    monkeypatch.setattr(gpu_parity, "batch_of", shifted)
    monkeypatch.setattr(gpu_parity, "SMALL", {"llama": gpu_parity.SMALL["llama, heads of 64"]})
    assert {row.outcome for row in gpu_parity.parity(job)} == {"failed"}


def test_both_kernels_of_a_gpu_are_tried(job, tmp_path, monkeypatch):
    """With FlashAttention's call written out, and for a model from a folder at real lengths."""
    monkeypatch.setattr(attention, "uses_flash", lambda device, half: half)
    monkeypatch.setattr(attention, "varlen_attn", varlen_by_hand)
    monkeypatch.setattr(gpu_parity, "SMALL", {})
    random_model("mistral").save_pretrained(tmp_path / "mistral")
    rows = [*gpu_parity.parity(replace(job, model=tmp_path / "mistral", small=False))]
    assert {row.outcome for row in rows} == {"passed"}, rows
    kernels = [row.name.rsplit(", ")[-1] for row in rows]
    assert kernels == ["SDPA", "FlashAttention", "SDPA", "FlashAttention", "SDPA"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_part_that_dies_leaves_its_rows_and_its_last_words(tmp_path):
    gpu_checks.append(Row("first", "passed", "1", "2", 0.0, {"x": 1.5}), tmp_path / "p.jsonl")
    code = "raise RuntimeError('CUDA error: an illegal memory access')"
    rows = check_gpu.done("p", python(code), tmp_path, 60, whole=True)
    assert [row.outcome for row in rows] == ["passed", "failed"]
    assert rows[0].figures == {"x": 1.5}
    assert "RuntimeError: CUDA error: an illegal memory access" in rows[1].measured


def test_a_part_that_hangs_is_killed_with_all_that_it_started(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "run = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "print(run.pid, flush=True)\n"
        "time.sleep(600)"
    )
    for whole, outcome in ((True, "failed"), (False, "not run")):
        (row,) = check_gpu.done("p", python(code), tmp_path, 3, whole)
        assert row.outcome == outcome and 3 <= row.seconds < 60
        assert not psutil.pid_exists(int((tmp_path / "p.log").read_text()))


def test_what_is_not_reached_is_said(job):
    rows = check_gpu.check(job, ["zero2", "speed"], minutes=0)
    assert [asdict(row)["outcome"] for row in rows] == ["not run", "not run"]
    assert "2 not run, in 0.0 minutes." in (job.folder / "check-gpu.md").read_text()


def test_memory_is_held_against_its_plan(job):
    def outcome(found: float, device: str = "cuda", **options) -> str:
        job.device = device
        return gpu_checks.memory("x", job, found, 10.0, **options).outcome

    assert [outcome(found) for found in (8.9, 9.1, 10.9, 11.1)] == [
        *("failed", "passed", "passed", "failed")
    ]
    assert outcome(1, low=False) == "passed" and outcome(11.1, low=False) == "failed"
    assert outcome(99, device="cpu") == "skipped"


def test_a_run_s_peak_is_held_against_its_plan_s(job):
    """A run without one fails on a GPU alone."""

    def row(device: str, **peak: float | None) -> Row:
        job.device = device
        return gpu_runs.peak("x", job, {"measured": {"peak_gb": peak} if peak else None})

    found = row("cuda", measured=8.5, planned=8.0)
    assert found.outcome == "passed" and found.figures == {"peak_gb": 8.5, "planned_gb": 8.0}
    assert row("cuda", measured=8.9, planned=8.0).outcome == "failed"
    assert row("cuda").outcome == row("cuda", measured=8.5, planned=None).outcome == "failed"
    assert row("cpu").outcome == row("cpu", measured=8.5, planned=8.0).outcome == "skipped"


def test_a_loss_that_does_not_start_at_ln_2_fails():
    assert gpu_runs.start("x", [0.6931, 0.5], "float32").outcome == "passed"
    assert gpu_runs.start("x", [0.6951, 0.5], "float32").outcome == "failed"
    assert gpu_runs.start("x", [0.6981, 0.5], "bfloat16").outcome == "passed"
    assert gpu_runs.start("x", [0.6931, float("nan")], "bfloat16").outcome == "failed"


def test_a_resumed_run_of_other_weights_is_seen(tiny_model, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    begun = load_file(tiny_model / "model.safetensors")
    for name, moved in (("whole", 1e-3), ("alike", 1.001e-3), ("other", -1e-3)):
        (tmp_path / name).mkdir()
        weights = {key: weight + moved for key, weight in begun.items()}
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    part, largest = gpu_runs.apart(tmp_path / "whole", tmp_path / "whole", tiny_model)
    assert part == largest == 0
    part, largest = gpu_runs.apart(tmp_path / "whole", tmp_path / "alike", tiny_model)
    assert 0 < part < gpu_runs.RESUMED["cuda"] and 0 < largest < 1e-5
    part, largest = gpu_runs.apart(tmp_path / "whole", tmp_path / "other", tiny_model)
    assert part == pytest.approx(2, rel=1e-3) and torch.tensor(largest) > 1e-3


def test_a_model_without_weights_gets_random_ones_of_its_shape(tiny_model, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    made = check_gpu.model_with_weights(bare, tmp_path)
    assert (made / "model.safetensors").stat().st_size > 1e5 and (made / "tokenizer.json").exists()
    assert check_gpu.model_with_weights(tiny_model, tmp_path) == tiny_model


def test_a_folder_of_other_things_is_not_emptied(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="holds other things than a check"):
        check_gpu.emptied(tmp_path)
    (tmp_path / "check-gpu.json").touch()
    assert not [*check_gpu.emptied(tmp_path).iterdir()]


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check_gpu.py"])
    monkeypatch.setattr(check_gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is here: DEVICE=cpu tries the parts"):
        check_gpu.main()


@pytest.mark.parametrize(
    ("device", "visible", "taken"), [("cuda", "3,4", "3"), ("cuda", "", "0"), ("cpu", "3,4", "")]
)
def test_it_takes_one_gpu_or_none(device, visible, taken, tiny_model, tmp_path, monkeypatch):
    """On a machine with GPUs, ZeRO would take one in a check of the CPU."""
    for name in ("WANDB_MODE", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, visible)
    given = [f"--device={device}", f"--model={tiny_model}", f"--output={tmp_path / 'check'}"]
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", *given])
    monkeypatch.setattr(check_gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check_gpu, "check", lambda *_: [])
    with pytest.raises(SystemExit) as ended:
        check_gpu.main()
    assert ended.value.code == 0 and os.environ["CUDA_VISIBLE_DEVICES"] == taken
