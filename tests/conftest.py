"""One tiny model and one tiny data set, real in everything but size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

ROOT = Path(__file__).parent.parent
EMBEDDED_MODEL = ROOT / "models/SmolLM2-135M-Instruct"
os.environ["WANDB_MODE"] = "offline"  # whatever key the machine has, tests send nothing


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    """Recipes name their paths from the top of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A two-layer Llama with the embedded model's tokenizer and chat template, untrained."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
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
    tokenizer.save_pretrained(folder)
    return folder


def pair(subject: str, chosen: str, rejected: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": f"How was {subject}?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


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
        "--report_to=none",
    ]


def run(*command: str, **changes: str | None) -> subprocess.CompletedProcess:
    """Run a command from the top of the repository, this Python's programs first on the path.

    `changes` are environment variables; None takes one away.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **changes}
    return subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=600,
    )


def launch(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess:
    return run(sys.executable, "scripts/launch.py", *arguments, **changes)
