"""One tiny model and one tiny data set, real in everything but size."""

import json
import multiprocessing
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest.mock import patch

from place import ROOT

import dpo  # noqa: F401  before all else, that no library speaks

# isort: split
import psutil
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen3Config,
    set_seed,
)
from trl import DPOConfig, DPOTrainer

from dpo.data.dataset import prepare
from dpo.data.quarantine import check_share
from dpo.data.sources.load import load_rows
from dpo.data.tokenize import load_tokenizer
from dpo.models.config_check import check_model
from dpo.prefix_sharing.backbone import SharedPrefixCollator, stock_head
from dpo.recipe.flags import name_of
from dpo.recipe.parse import parse
from dpo.runs import checkpoints
from dpo.speed.workload import any_tokenizer
from dpo.training.build import make_trainer
from dpo.training.trainer import FastDPOTrainer

# A server that has imported train.py, which takes seconds, and whose forks train at once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train"])

EMBEDDED_MODEL = ROOT / "models/SmolLM2-135M-Instruct"


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


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # wide, so that attention matters
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=5),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None),
}


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    set_seed(seed)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name](), attn_implementation="sdpa")


def random_ids(count: int, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(2, 97, (count,), generator=draw).tolist()


def edge_pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) with everything that goes wrong easily."""
    ids, alike = random_ids, random_ids(9, 99)
    return [
        (ids(7, 0), ids(12, 1), ids(5, 2)),
        (ids(1, 3), ids(3, 4), ids(8, 5)),  # a prompt of one token
        (ids(6, 6), alike[:4] + ids(2, 7), alike[:4] + ids(7, 8)),  # completions that begin alike
        (ids(10, 9), alike, alike[:4]),  # the rejected begins the chosen
        (ids(4, 10), alike[:3], alike),  # and the other way round
        (ids(5, 11), alike, alike),  # identical
        (ids(12, 12), ids(30, 13), ids(25, 14)),  # cut by max_length, both
        (ids(20, 15), ids(2, 16), ids(9, 17)),
    ]


EDGE_PAIRS = edge_pairs()


MAX_LENGTH = 24  # cuts the longest of EDGE_PAIRS
LOGPS, GRADIENTS = 5e-5, 1e-4  # nats a token; relative to the norm of each gradient


def batch_of(pairs, **settings) -> dict:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, pair, strict=True)) for pair in pairs]
    return SharedPrefixCollator(pad_token_id=0, max_length=MAX_LENGTH, **settings)(rows)


def scored(model, batch: dict, share: bool, backward: bool = True):
    """Per-token log-probabilities as TRL's head gives them, and the gradients of a loss in which
    every row weighs differently."""
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if share:
        inputs["shared_prefixes"] = batch["shared_prefixes"]
    if hasattr(model.config, "output_router_logits"):
        inputs["output_router_logits"] = True
    outputs = model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
    if not backward:
        return outputs, {}
    loss = (outputs.log_probs.sum(1) * torch.linspace(-1, 2, len(labels))).sum()
    if outputs.aux_loss is not None:
        loss = loss + outputs.aux_loss
    loss.backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainer_of(
    folder: Path,
    name: str,
    *,
    fast: bool,
    lora: bool = False,
    attn_implementation: str = "sdpa",
    share_prefix: bool = True,
    cache: Path | None = None,
    weights: int = 0,
    with_held_out: bool = False,
    pairs: list = EDGE_PAIRS,
    train: Any = None,
    held_out: Any = None,
    compute_metrics: Callable | None = None,
    objects: dict[str, Any] | None = None,
    **arguments,
) -> DPOTrainer:
    """Stock DPOTrainer or ours, on a random model of an architecture and rows of tokens.

    Other rows than EDGE_PAIRS in `train` and `held_out`, in whatever form DPOTrainer takes them.
    The model lies in `folder`; with another seed in `weights` it has others, at the same place.
    `objects` are given to the trainer in the place of what it would have, or beside it.
    """
    random_model(name, weights).save_pretrained(folder / "model")
    any_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in pairs
    ]
    settings = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 10,
        "max_length": MAX_LENGTH,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": fast,
        "model_init_kwargs": {"attn_implementation": attn_implementation},
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    # The rows are tokens already.
    kind = type("Given", (FastDPOTrainer if fast else DPOTrainer,), {"_prepare_dataset": given})
    ours = {"share_prefix": share_prefix, "reference_cache": cache or folder / "cache"}
    built = {
        "model": str(folder / "model"),
        "train_dataset": Dataset.from_list(rows) if train is None else train,
        "eval_dataset": Dataset.from_list(rows[:4]) if with_held_out else held_out,
        "compute_metrics": compute_metrics,
        "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None,
    }
    args = DPOConfig(**(settings | arguments))
    return kind(args=args, **(built | (objects or {})), **(ours if fast else {}))


def recipe_steps(recipe: Path, folder: Path) -> tuple[DPOTrainer, dict[str, torch.Tensor]]:
    """Train two steps of a recipe, in this process, as train.py does.

    Returns the trainer, and the weights that it trains as they were before.
    """
    flags = [
        *("--use_cpu", "--bf16=false", "--max_steps=2", "--logging_steps=1", "--report_to=none"),
        *("--save_strategy=no", "--disable_tqdm=true", f"--output_dir={folder / 'run'}"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=1"),
        f"--reference_cache={folder / 'cache'}",
    ]
    parsed = parse(["--config", str(recipe), *flags])
    check_model(parsed)
    tokenizer = load_tokenizer(parsed)
    linted = prepare(parsed, load_rows(parsed), tokenizer)
    check_share(linted, parsed.run.quarantine_limit, folder)
    held_out = linted["held-out"].pairs if "held-out" in linted else None
    trainer = make_trainer(parsed, tokenizer, linted["train"].pairs, held_out)
    weights = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    return trainer, weights


def given(self, dataset: Dataset, *args) -> Dataset:
    return dataset


def losses_of(trainer: DPOTrainer) -> list[float]:
    """Train, and return the loss of every step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


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
        f"--reference_cache={tmp_path / 'cache'}",
        "--report_to=none",
    ]


def run_flags(model: Path, data: Path, folder: Path) -> list[str]:
    return [
        *(f"--model_name_or_path={model}", f"--dataset_name={data}", f"--output_dir={folder}"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=2", "--max_steps=4"),
        *("--logging_steps=1", "--eval_steps=2", "--save_steps=2", "--save_total_limit=9"),
        *("--reward_prompts=4", "--learning_rate=0.001"),
        f"--reference_cache={folder.parent / 'cache'}",
    ]


def once(arguments: list[str]) -> list[str]:
    """Arguments of which each flag stands once, as it is given last: those of a test win over those
    that all tests share."""
    groups: dict[str, list[str]] = {}
    name = ""
    for argument in map(str, arguments):
        if argument.startswith("--"):
            name = name_of(argument) or "--"
            groups.pop(name, None)
        groups.setdefault(name, []).append(argument)
    return [argument for group in groups.values() for argument in group]


def run(*command: str, **changes: str | None) -> subprocess.CompletedProcess:
    """Run a command from the top of the repository, this Python's programs first on the path.

    `changes` are environment variables; None takes one away.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **changes}
    return subprocess.run(
        once(command),
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=600,
    )


def launch(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess:
    return run(sys.executable, "scripts/launch.py", *arguments, **changes)


def make(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess:
    given = [argument.partition("ARGS=") for argument in arguments]
    given = [f"ARGS={shlex.join(once(shlex.split(v)))}" if key else word for word, key, v in given]
    return run("make", f"VENV={sys.prefix}", *given, CUDA_VISIBLE_DEVICES="", **changes)


@pytest.fixture(scope="session")
def forks() -> None:
    """FORKS, with the server running."""
    # Python 3.11's fork server looks for what it imports beforehand here alone.
    with patch.dict(os.environ, PYTHONPATH=str(ROOT / "scripts")):
        ensure_running()


def train_in_fork(flags: list[str], log: Path) -> None:
    """In a fork: be train.py, in the environment that is set by now, until it ends."""
    os.chdir(ROOT)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", "--config", "recipes/smollm2-sentiment.yaml", *once(flags)]

    import train
    from dpo.training.preempt import run_to_the_end

    torch.set_num_threads(1)
    run_to_the_end(train.main)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def swept(tiny_model, tiny_data, tmp_path_factory) -> tuple[Path, list[str], str]:
    """A sweep of two runs through make: its folder, the flags of its runs, and what it printed."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    flags = [f for f in run_flags(tiny_model, tiny_data, folder / "x") if "output_dir" not in f]
    result = make(
        "sweep",
        "SWEEP=beta=0.1,0.3",
        f"OUTPUT={folder}",
        f"ARGS={shlex.join(flags)}",
        WANDB_MODE="offline",
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, flags, result.stdout


@contextmanager
def running(folder: Path, checkpoint: str, *arguments: str, **changes: str):
    """A run that has just written a checkpoint; its output goes to `folder`/../log."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder.parent / "log").open("w") as log:
        process = psutil.Popen(
            [sys.executable, "scripts/launch.py", *once(arguments)],
            cwd=ROOT,
            env={**os.environ, "PATH": path, **changes},
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        deadline = time.monotonic() + 300
        while not (folder / checkpoint / checkpoints.MANIFEST).exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        yield process
    finally:
        if process.is_running():
            for child in (*process.children(recursive=True), process):
                child.kill()
