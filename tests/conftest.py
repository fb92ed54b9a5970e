"""Fixtures of all tests: one tiny model and one tiny data set, real in everything but size."""

# isort: off
from support.place import ROOT  # sets the environment that others read
import dpo  # noqa: F401  before all else, that no library speaks
# isort: on

import gc
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from dpo.core import stats
from support.commands import launch, make, run_flags
from support.launched import Launched
from support.stock import stock_head
from support.tiny import few_tokens, make_chatty, pair
from support.wandb_server import Fault, Server


def pytest_collection_finish() -> None:
    """Millions of objects that imports have made stay to the end: every trainer collects garbage
    when it starts and ends, and need not look through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    """Recipes name their paths from the top of the repository; a test finds no run of another."""
    monkeypatch.chdir(ROOT)
    yield
    for left in ("outputs", "cache", "wandb"):
        shutil.rmtree(ROOT / left, ignore_errors=True)


@pytest.fixture(autouse=True)
def environment_again():
    """What a command that ran within a test has set, such as the folder of its W&B run, is not
    passed on to what another test starts."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def stock_again():
    """Stock TRL is stock again after a test that switched something on for the whole process."""
    yield
    stock_head()


@pytest.fixture
def few_resamples(monkeypatch):
    """Bootstrap intervals by a thousand resamples, of which a test makes hundreds."""
    resampled = stats.resampled
    monkeypatch.setattr(stats, "resampled", lambda values, n: resampled(values, min(n, 1000)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A two-layer Llama with the embedded model's chat template and special tokens, untrained."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = few_tokens(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,  # wide, so that the answers of a random model differ in probability
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    set_seed(0)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chatty_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model, which ends an answer after a dozen tokens or so, and says nothing that is no
    text: of the other one hardly any answer is sound."""
    folder = tmp_path_factory.mktemp("tiny") / "chatty"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    make_chatty(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model, tmp_path_factory) -> Path:
    """A LoRA adapter on the tiny model that changes what it says, as one of an SFT would."""
    folder = tmp_path_factory.mktemp("tiny") / "adapter"
    set_seed(1)
    shape = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    shape.task_type = "CAUSAL_LM"
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Sixteen training pairs and eight held-out ones with a known reward, in hub layout."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    folder.mkdir()
    for split, count in (("train", 16), ("test", 8)):
        rows = [
            pair(f"{split} {i}", "It was good, I love it." + " Really." * (i % 3), "It was bad.")
            | {"vader_chosen": 0.8, "vader_rejected": -0.5}
            for i in range(count)
        ]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def tiny_flags(tiny_model, tiny_data, tmp_path) -> list[str]:
    """Flags that turn any recipe into a run of seconds."""
    return [
        f"--model_name_or_path={tiny_model}",
        f"--dataset_name={tiny_data}",
        f"--output_dir={tmp_path / 'run'}",
        "--dataset_train_split=train",
        "--dataset_test_split=test",
        "--per_device_train_batch_size=2",
        "--gradient_accumulation_steps=2",
        "--max_steps=2",
        "--logging_steps=1",
        "--eval_steps=2",
        "--save_steps=2",
        "--reward_prompts=2",
        "--bf16=false",
        f"--reference_cache={tmp_path / 'cache'}",
        "--report_to=none",
    ]


@pytest.fixture(scope="session")
def launched(tmp_path_factory) -> Launched:
    """Trains as the launcher would have it, and returns what was printed: see launched.py."""
    base = tmp_path_factory.getbasetemp()
    return Launched((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "told")


@pytest.fixture
def wandb_server() -> Iterator[Server]:
    """A stand-in for W&B's server that knows all it was asked."""
    with Server() as server:
        yield server
    assert not server.unknown


@pytest.fixture
def refusing(wandb_server) -> str:
    """The address of a W&B server that says no to everything."""
    wandb_server.fault = Fault(403)
    return wandb_server.url


@pytest.fixture(scope="session")
def swept(launched, tiny_model, tiny_data) -> tuple[Path, list[str], str]:
    """A sweep of two runs through make: its folder, the flags of its runs, and what it printed. Run
    once for all workers of pytest, when it is first asked for."""
    home = launched.kept / "swept"
    home.mkdir(parents=True, exist_ok=True)
    folder, kept = home / "sweep", home / "flags-and-output.json"
    with FileLock(home / "lock"):
        if not kept.exists():
            flags = run_flags(tiny_model, tiny_data, folder / "x")
            flags = [flag for flag in flags if "output_dir" not in flag]
            given = ("SWEEP=beta=0.1,0.3", f"OUTPUT={folder}", f"ARGS={shlex.join(flags)}")
            result = make("sweep", *given, WANDB_MODE="offline")
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
            kept.write_text(json.dumps([flags, result.stdout]))
    return folder, *json.loads(kept.read_text())


@pytest.fixture(scope="session")
def finished(tiny_model, tiny_data, tmp_path_factory):
    """A finished run: its folder, its flags and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    flags = run_flags(tiny_model, tiny_data, folder)
    no_key = {"WANDB_MODE": None, "WANDB_API_KEY": None, "NETRC": "/nowhere"}
    result = launch("--accelerate_config", "cpu", "--", *flags, **no_key)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, flags, result
