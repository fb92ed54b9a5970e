"""A space small enough to list: a random model of eight words, three prompts, nine completions of
each, rewards that a seed draws, and labels as Bradley and Terry's model has them."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from dpo.losses import bradley_terry
from dpo.models.scoring import score
from dpo.recipe.parse import parse
from dpo.training.build import make_trainer

PROMPTS = ["x0", "x1", "x2"]
COMPLETIONS = [" ".join(words) for words in itertools.product("abc", repeat=2)]
# Of every two completions the first ones and the second ones, shape (2, 36).
TWO = np.array([*itertools.combinations(range(len(COMPLETIONS)), 2)]).T


def write_model(folder: Path, seed: int) -> None:
    """A two-layer Llama that knows the prompts, the letters a, b and c, and where to end."""
    words = ["<pad>", "<eos>", "a", "b", "c", *PROMPTS]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    # Split at spaces and around <eos>, which TRL appends without one.
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def rewards_of(seed: int) -> np.ndarray:
    """r(x, y) of every prompt and completion, shape (3, 9)."""
    return np.random.default_rng(seed).normal(size=(len(PROMPTS), len(COMPLETIONS)))


def wins(rewards: np.ndarray, labels: int) -> np.ndarray:
    """Of so many labels of every two completions of a prompt, how many say that the first is the
    better one: Bradley and Terry's probability, rounded to whole labels. Shape (3, 36)."""
    first, second = (torch.tensor(rewards[:, side]) for side in TWO)
    return (labels * bradley_terry(first, second)).round().int().numpy()


def preferences(rewards: np.ndarray, labels: int) -> Dataset:
    """So many labels of every two completions of a prompt, of which each wins as often as `wins`
    says."""
    rows, counts = [], wins(rewards, labels)
    for x, prompt in enumerate(PROMPTS):
        for (a, b), won in zip(TWO.T, counts[x], strict=True):
            for label in range(labels):
                chosen, rejected = (a, b) if label < won else (b, a)
                each = {
                    "chosen": f" {COMPLETIONS[chosen]}",
                    "rejected": f" {COMPLETIONS[rejected]}",
                }
                rows.append({"prompt": prompt, **each})
    return Dataset.from_list(rows)


def log_probabilities(model: Any, tokenizer: Any) -> np.ndarray:
    """log π(y | x) of every prompt and completion, the end included, shape (3, 9)."""
    ids = [
        tokenizer(f"{prompt} {completion}<eos>")["input_ids"]
        for prompt in PROMPTS
        for completion in COMPLETIONS
    ]
    found = score(model, [(each[:1], each[1:]) for each in ids], tokenizer.pad_token_id)
    return found.reshape(len(PROMPTS), len(COMPLETIONS))


def trained(
    into: Path, beta: float, seed: int, labels: int, epochs: int, given: list[str]
) -> dict[str, Any]:
    """A policy trained with this β on labels of the rewards that a seed draws, from the model that
    it draws: `rewards`, and `reference` and `policy`, the log-probabilities of both, each of shape
    (3, 9).

    Args:
        into: of the model and what comes with it; what is printed goes into a log there.
        labels: of each two completions of a prompt.
        given: flags for the run.
    """
    into.mkdir(parents=True, exist_ok=True)
    model, recipe = into / f"model-{seed}", into / "recipe.yaml"
    recipe.write_text(
        f"""
model_name_or_path: {model}
output_dir: {into / "run"}
beta: {beta}
seed: {seed}
num_train_epochs: {epochs}
per_device_train_batch_size: 256
learning_rate: 0.005
lr_scheduler_type: cosine
bf16: false
gradient_checkpointing: false
use_cpu: true
share_prefix: false
reference_cache: {into / "cache"}
save_strategy: "no"
report_to: none
disable_tqdm: true
""",
        encoding="utf-8",
    )
    rewards = rewards_of(seed)
    data = preferences(rewards, labels)
    found, log = {"rewards": rewards}, (into / "log").open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        write_model(model, seed)
        trainer = make_trainer(parse(["--config", str(recipe), *given]), None, data, None)
        tokenizer = trainer.processing_class
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        found["reference"] = log_probabilities(reference, tokenizer)
        trainer.train()
        found["policy"] = log_probabilities(trainer.model.eval(), tokenizer)
    return {name: values.tolist() for name, values in found.items()}
