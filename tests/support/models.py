"""Folders of models, changed."""

import itertools
import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    set_seed,
)

from dpo.models.sampling import prompt_token_ids


def save_reward_model(folder: Path, tokenizer, **changes) -> None:
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 120,
        "initializer_range": 0.2,
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
    }
    set_seed(2)
    LlamaForSequenceClassification(LlamaConfig(**settings | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def edit(file: Path, **changed) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def other_model(tiny_model, folder, noise: float = 0.05):
    """The tiny model with every weight moved a little."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


SAYINGS = ("It was good, I love it.", "It was bad.", "It was fine.", "I hate it, it was bad.")
SAYINGS += ("It was.", "I love it, it was very good.")


def speaking_model(tiny_model: Path, folder: Path) -> Path:
    """The tiny model, taught for some steps to answer any question with one of a few sentences that
    VADER tells apart: most of its answers can be judged."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    end, rows = tokenizer.eos_token_id, []
    for number, said in itertools.product(range(12), SAYINGS):
        asked = [{"role": "user", "content": f"Question {number}?"}]
        prompt = prompt_token_ids(tokenizer, asked)
        rows.append((prompt, [*tokenizer(said, add_special_tokens=False)["input_ids"], end]))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), end)
    labels = torch.full((len(rows), longest), -100)
    for at, (prompt, answer) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        ids[at, : len(whole)] = whole
        labels[at, len(prompt) : len(whole)] = whole[len(prompt) :]
    set_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        part = torch.randperm(len(rows))[:32]
        model(input_ids=ids[part], labels=labels[part]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
