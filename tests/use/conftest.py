"""What tests of exports and of pushes begin with: a run that has trained an adapter, and a hub."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from support.commands import run_flags
from support.exports import ADDED
from support.hub import TOKEN, Hub
from support.tiny import make_chatty


@pytest.fixture(scope="session")
def lora(launched, tiny_model, tiny_data, tmp_path_factory) -> Path:
    """A run that trained an adapter on a model that ends its answers and has a token of its own;
    wide enough for 4 bits."""
    home = tmp_path_factory.mktemp("lora")
    base = home / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(tiny_model)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    make_chatty(model, tokenizer)
    tokenizer.add_tokens([ADDED])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    flags = [*run_flags(base, tiny_data, home / "run"), "--use_peft", "--save_merged=false"]
    # So much that more is learned than bfloat16 rounds away.
    result = launched(*flags, "--report_to=none", "--reward_prompts=1", "--learning_rate=0.01")
    assert result.returncode == 0, result.stderr[-3000:]
    return home / "run"


@pytest.fixture
def run(lora, tmp_path) -> Path:
    """The same, whose exports are a test's own."""
    return Path(shutil.copytree(lora, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    assert not hub.unknown
