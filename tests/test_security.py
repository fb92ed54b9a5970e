"""What others wrote does not run: checkpoints, models, templates, data. And what is installed has
no known hole."""

import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from huggingface_hub import HfApi
from transformers import AutoTokenizer

import audit
import train
from dpo.core.terminal import visible
from dpo.models import trust
from support.commands import once
from support.place import ROOT
from support.refusing import refusal
from support.tiny import trainer_of


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer_of(folder, "llama", fast=True, **saving).train()
    return folder / "run/checkpoint-2"


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_file_of_a_checkpoint_runs(checkpoint, tmp_path, file):
    poisoned, marker = tmp_path / "checkpoint-2", tmp_path / "ran"
    shutil.copytree(checkpoint, poisoned)
    assert (poisoned / file).is_file()
    torch.save(Evil(marker), poisoned / file)
    trainer = trainer_of(tmp_path, "llama", fast=True, max_steps=3)
    with pytest.raises(pickle.UnpicklingError):
        trainer.train(resume_from_checkpoint=str(poisoned))
    assert not marker.exists()


def test_no_shard_of_deepspeed_runs(monkeypatch, tmp_path):
    """DeepSpeed reads its shards with weights_only=False, and would run them."""
    engine, marker = TorchCheckpointEngine(), tmp_path / "ran"
    torch.save(Evil(marker), tmp_path / "shard.pt")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    engine.load(str(tmp_path / "shard.pt"))
    assert marker.exists()
    marker.unlink()
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")  # put back when the test ends
    trust.read_as_data(deepspeed=True)
    with pytest.raises(pickle.UnpicklingError):
        engine.load(str(tmp_path / "shard.pt"))
    assert not marker.exists()
    # What is in a shard of ZeRO is read: test_ending.py resumes from real ones.
    parts = [LossScaler(1.0), ZeroStageEnum(3), fragment_address(start=0, numel=2), torch.ones(2)]
    torch.save(parts, tmp_path / "whole.pt")
    assert len(engine.load(str(tmp_path / "whole.pt"))) == len(parts)


@pytest.fixture
def with_code(tiny_model, tmp_path) -> Path:
    """A model as the hub has them that only runs with code of its own, which makes a file."""
    folder = tmp_path / "with-code"
    shutil.copytree(tiny_model, folder)
    classes = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        "OwnConfig.register_for_auto_class()\n"
        "OwnModel.register_for_auto_class('AutoModelForCausalLM')\n"
    )
    return folder


def test_code_of_a_model_runs_only_if_asked(monkeypatch, with_code, tmp_path, capsys):
    message = refusal(monkeypatch, f"--model_name_or_path={with_code}", "--dtype=auto")
    assert f"{with_code} runs only with code of its own (own_code.py)" in message
    assert "trust_remote_code: true" in message
    assert not (tmp_path / "ran").exists()
    trust.check_code(str(with_code), None, trusted=True)
    assert not (tmp_path / "ran").exists()  # it is announced before it runs
    said = capsys.readouterr().out
    assert said.startswith(f"trust_remote_code: {with_code} brings code of its own")
    assert said.count("\n") == 1 and "own_code.py" in said


def test_a_model_with_code_is_announced_once_and_nobody_is_asked(
    monkeypatch, with_code, tiny_flags, tmp_path, capsys
):
    """transformers asks on the terminal wherever it is not told."""
    flags = ["--config", "recipes/smollm2-sentiment.yaml", *tiny_flags, "--use_cpu"]
    flags += [f"--model_name_or_path={with_code}", "--trust_remote_code"]
    monkeypatch.setattr("sys.argv", ["train.py", *once(flags)])
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "n")
    train.main()
    assert not asked
    assert (tmp_path / "ran").exists() and (tmp_path / "run/report.html").is_file()
    assert (tmp_path / "run/own_code.py").is_file()  # the policy needs it too
    assert capsys.readouterr().out.count("code of its own") == 1


def test_a_model_that_brings_no_code_is_not_announced(tiny_model, capsys):
    trust.check_code(str(tiny_model), None, trusted=True)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "kind"),
    [("pytorch_model.bin", "AutoModel"), ("adapter_model.bin", "AutoPeftModel")],
)
def test_weights_in_a_pickle_are_refused(monkeypatch, tiny_model, tmp_path, file, kind):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(Evil(tmp_path / "ran"), folder / file)
    message = refusal(monkeypatch, f"--model_name_or_path={folder}")
    assert f"weights in {file}, a pickle, and only safetensors are read" in message
    assert f"import {kind}ForCausalLM as M" in message
    assert not (tmp_path / "ran").exists()


def test_weights_of_the_hub_are_asked_for_as_safetensors(monkeypatch):
    files = ["config.json", "pytorch_model-00001-of-00002.bin"]
    info = type("Info", (), {"siblings": [type("S", (), {"rfilename": f}) for f in files]})
    monkeypatch.setattr(HfApi, "repo_info", lambda *args, **kwargs: info)
    message = refusal(monkeypatch, "--model_name_or_path=someone/pickled")
    assert "someone/pickled has weights in pytorch_model-00001-of-00002.bin" in message


def test_data_with_a_script_are_refused(monkeypatch, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "pairs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    message = refusal(monkeypatch, f"--dataset_name={folder}")
    assert "Dataset scripts are no longer supported" in message
    assert not (tmp_path / "ran").exists()


OUT = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


def test_a_chat_template_stays_in_its_sandbox(monkeypatch, tmp_path, tiny_model, tiny_data):
    flags = [f"--dataset_name={tiny_data}", f"--output_dir={tmp_path / 'run'}"]
    (tmp_path / "out.jinja").write_text(OUT)
    named = [f"--model_name_or_path={tiny_model}", f"--chat_template_path={tmp_path}/out.jinja"]
    message = refusal(monkeypatch, *flags, *named)
    assert "the chat template of" in message and "access to attribute '__class__'" in message
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = OUT
    tokenizer.save_pretrained(model)
    flags[1] += "-again"  # this process has the other one
    message = refusal(monkeypatch, *flags, f"--model_name_or_path={model}")
    assert "access to attribute '__class__'" in message


def test_an_error_shows_what_data_say_as_text(monkeypatch, tmp_path):
    data = tmp_path / "pairs\x1b[31m\n.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    flags = ["--eval_strategy=no", f"--output_dir={tmp_path / 'run'}"]
    message = refusal(monkeypatch, f"--dataset_name={data}", *flags)
    assert r"pairs\x1b[31m\n.jsonl: 1 of 1 train rows" in message


def test_what_shows_as_text():
    assert visible("\x1b]0;title\x07 \r \x9b2J \u202etxt") == (
        r"\x1b]0;title\x07 \r \x9b2J \u202etxt"
    )
    for kept in ("tab\tand\nnewline", "Ελληνικά 日本語 😀 עברית [red]"):
        assert visible(kept) == kept


@pytest.mark.parametrize("service", ["knows", "nothing", "silent"])
def test_the_audit_fails_where_an_advisory_is_known(monkeypatch, capsys, tmp_path, service):
    """And says that it has seen nothing where the service does not answer."""
    (tmp_path / "pip_audit.py").write_text(
        {
            "knows": "print('torch 2.13.0 CVE-2099-2'); raise SystemExit(1)",
            "nothing": "",
            "silent": "raise SystemExit('ConnectionError')",
        }[service]
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT / 'scripts'}")
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    if service == "knows":
        with pytest.raises(SystemExit, match=r"^Raise the version in requirements\.txt$"):
            audit.main()
    else:
        audit.main()
    said = {
        "knows": "CVE-2099-2",
        "nothing": "The advisory service knows none",
        "silent": "Not audited: the advisory service does not answer: ConnectionError",
    }
    assert said[service] in capsys.readouterr().out


def test_every_requirement_has_its_hashes():
    """But torch, whose wheels are other ones for each machine."""
    lock = (ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    locked = {entry.split(" ")[0]: entry for entry in re.split(r"\n(?=\S)", lock)}
    wanted = re.findall(r"^[\w-]+==[\d.]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert len(wanted) > 20
    for requirement in {name.lower().replace("_", "-") for name in wanted}:
        if not requirement.startswith("torch=="):
            assert "--hash=sha256:" in locked[requirement], requirement
    for name, entry in locked.items():
        assert name.startswith("#") or "--hash=sha256:" in entry, name
