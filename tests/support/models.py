"""Folders of models, changed."""

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
