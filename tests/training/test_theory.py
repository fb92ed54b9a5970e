"""DPO finds the optimum that the paper says it finds, on a space small enough to list.

Three prompts, nine completions each. Of a pair, each completion is preferred as often as
Bradley-Terry has it for a known reward r; the optimum of the KL-constrained objective is
π*(y|x) ∝ π_ref(y|x) exp(r(x, y) / β) (equation 4). DPO says nothing about what lies outside the
completions that were compared, so the distributions are those over the nine.
"""

import itertools
import math

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

from dpo.losses import completion_logps
from dpo.recipe.parse import parse
from dpo.training.build import make_trainer

BETA = 1.0
PROMPTS = ["x0", "x1", "x2"]
COMPLETIONS = [" ".join(pair) for pair in itertools.product("abc", repeat=2)]
LABELS = 40  # of each of the 36 pairs of a prompt


def write_model(folder):
    words = ["<pad>", "<eos>", "a", "b", "c", *PROMPTS]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    # Split at spaces and around <eos>, which TRL appends without one.
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    set_seed(0)
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


def preferences(reward: np.ndarray) -> Dataset:
    rows = []
    for (i, prompt), (a, b) in itertools.product(
        enumerate(PROMPTS), itertools.combinations(range(len(COMPLETIONS)), 2)
    ):
        probability = 1 / (1 + math.exp(reward[i, b] - reward[i, a]))
        for label in range(LABELS):
            winner, loser = (a, b) if label < round(LABELS * probability) else (b, a)
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": " " + COMPLETIONS[winner],
                    "rejected": " " + COMPLETIONS[loser],
                }
            )
    return Dataset.from_list(rows)


@torch.no_grad()
def log_probabilities(model, tokenizer) -> np.ndarray:
    """log π(y | x) of every prompt and completion, shape (3, 9)."""
    table = []
    for prompt in PROMPTS:
        ids = tokenizer([f"{prompt} {completion}<eos>" for completion in COMPLETIONS])["input_ids"]
        input_ids = torch.tensor(ids)
        assert input_ids.shape == (len(COMPLETIONS), 4)
        completion_mask = torch.ones_like(input_ids)
        completion_mask[:, 0] = 0
        ones = torch.ones_like(input_ids)
        table.append(completion_logps(model, input_ids, ones, completion_mask).numpy())
    return np.array(table)


def normalise(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_dpo_converges_to_the_closed_form_optimum(tmp_path):
    write_model(tmp_path / "model")
    recipe_file = tmp_path / "theory.yaml"
    recipe_file.write_text(
        f"""
model_name_or_path: {tmp_path / "model"}
output_dir: {tmp_path / "theory"}
beta: {BETA}
per_device_train_batch_size: 256
num_train_epochs: 5
learning_rate: 0.005
lr_scheduler_type: cosine
bf16: false
gradient_checkpointing: false
use_cpu: true
report_to: none
share_prefix: false
reference_cache: {tmp_path / "cache"}
save_strategy: "no"
disable_tqdm: true
"""
    )
    reward = np.random.default_rng(1).normal(size=(len(PROMPTS), len(COMPLETIONS)))
    recipe = parse(["--config", str(recipe_file)])
    trainer = make_trainer(recipe, None, preferences(reward), None)
    tokenizer = trainer.processing_class
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    reference_logps = log_probabilities(reference, tokenizer)
    trainer.train()
    policy_logps = log_probabilities(trainer.model.eval(), tokenizer)

    optimum = normalise(reference_logps + reward / BETA)
    start, end = normalise(reference_logps), normalise(policy_logps)
    distance = 0.5 * np.abs(end - optimum).sum(axis=1)
    assert 0.5 * np.abs(start - optimum).sum(axis=1).mean() > 0.2  # there was something to learn
    assert (distance < 0.05).all(), distance

    implicit = BETA * (policy_logps - reference_logps)
    centred = implicit - implicit.mean(axis=1, keepdims=True)
    truth = reward - reward.mean(axis=1, keepdims=True)
    assert np.corrcoef(centred.ravel(), truth.ravel())[0, 1] > 0.99
