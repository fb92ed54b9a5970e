"""What tests of exports and of pushes begin with: a run that has trained an adapter, and a hub."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from support.commands import run_flags
from support.exports import ADDED
from support.hub import TOKEN, Hub
from support.tiny import make_chatty


def trained(launched, model: Any, tokenizer: Any, data: Path, home: Path) -> Path:
    """A run that trained an adapter on a model with a token of its own."""
    tokenizer.add_tokens([ADDED])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    flags = [*run_flags(home / "base", data, home / "run"), "--use_peft", "--save_merged=false"]
    # So much that more is learned than bfloat16 rounds away.
    result = launched(*flags, "--report_to=none", "--reward_prompts=1", "--learning_rate=0.01")
    assert result.returncode == 0, result.stderr[-3000:]
    return home / "run"


@pytest.fixture(scope="session")
def lora(launched, chatty_model, tiny_data, tmp_path_factory) -> Path:
    """Such a run on a model that ends its answers."""
    tokenizer = AutoTokenizer.from_pretrained(chatty_model)
    model = AutoModelForCausalLM.from_pretrained(chatty_model)
    return trained(launched, model, tokenizer, tiny_data, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="session")
def wide(launched, tiny_model, tiny_data, tmp_path_factory) -> Path:
    """Such a run on a model that is wide enough for 4 bits."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(tiny_model)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    make_chatty(model, tokenizer)
    return trained(launched, model, tokenizer, tiny_data, tmp_path_factory.mktemp("wide"))


@pytest.fixture
def run(lora, tmp_path) -> Path:
    """A run whose exports are a test's own."""
    return Path(shutil.copytree(lora, tmp_path / "run"))


@pytest.fixture
def wide_run(wide, tmp_path) -> Path:
    """Likewise."""
    return Path(shutil.copytree(wide, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    assert not hub.unknown
