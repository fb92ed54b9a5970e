"""What tests of exports and of pushes begin with: a run that has trained an adapter, and a hub."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.commands import run_flags
from support.exports import ADDED
from support.hub import TOKEN, Hub


@pytest.fixture(scope="session")
def lora(launched, chatty_model, tiny_data, tmp_path_factory) -> Path:
    """A run that trained an adapter on a model that ends its answers and has a token of its own."""
    home = tmp_path_factory.mktemp("lora")
    base = home / "base"
    tokenizer = AutoTokenizer.from_pretrained(chatty_model)
    tokenizer.add_tokens([ADDED])
    model = AutoModelForCausalLM.from_pretrained(chatty_model)
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
