"""FLOPs that training on pairs needs, and FLOPs that a device can do."""

import functools
import time
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel


def useful_flops(model: PreTrainedModel, lengths: np.ndarray) -> float:
    """FLOPs of the policy's forward and backward over pairs, and of nothing else: prompts once, no
    padding, the head on completions, causal attention, no gradient of what is frozen. A
    multiplication and an addition are two.

    Args:
        model: its weights may be elsewhere (meta device, ZeRO-3), or quantised.
        lengths: tokens of prompt, chosen and rejected of each pair, shape (pairs, 3).
    """
    config = model.config.get_text_config()
    prompt, chosen, rejected = lengths.T.astype(float)
    tokens, completion = prompt + chosen + rejected, chosen + rejected
    flops, head = 0.0, model.get_output_embeddings()
    for part in (head, *model.base_model.modules()):
        if isinstance(part, torch.nn.Linear):
            times = 3 if part.weight.requires_grad else 2  # forward, its input's gradient, its own
            size = times * 2 * part.in_features * part.out_features
            flops += size * (completion if part is head else tokens).sum()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_key = 4 * config.num_hidden_layers * config.num_attention_heads * width
    branch = rejected * (prompt + rejected / 2)
    return flops + 3 * ((prompt + chosen) ** 2 / 2 + branch).sum() * per_key


def counts_all(model: PreTrainedModel) -> bool:
    """Whether `useful_flops` knows all of the model: not a mixture of experts, of which a token
    passes some, and no attention but that over all keys."""
    config: Any = model.config.get_text_config()
    plain = hasattr(config, "num_attention_heads") and hasattr(config, "num_hidden_layers")
    return plain and not any("expert" in name for name, _ in model.named_modules())


@functools.cache
def matmul_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOPs a second of one large product of square matrices with `size` rows."""
    a = torch.arange(size**2, device=device).sin().view(size, size).to(dtype)  # draws no number
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()  # waits for the GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
