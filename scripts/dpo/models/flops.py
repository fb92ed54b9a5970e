"""FLOPs that training on pairs needs, and FLOPs that a device can do."""

import functools
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ATTENTION = {"full_attention", "sliding_attention"}  # layer_types that are counted

# Kinds of layers that carry a state from token to token: each meets so many numbers, and no keys.
STATES = {"linear_attention", "mamba", "mamba2", "recurrent", "conv", "moe", "mlp"}


@dataclass(frozen=True)
class Pass:
    """FLOPs of a model over tokens. A multiplication and an addition are two.

    Attributes:
        backbone, head: of the forward pass; in the backward pass gradients of inputs take as many.
        own: of the gradients of weights that are trained, and of attention's second operand.
        again: of the backbone, what activation checkpointing computes a second time.
    """

    backbone: float
    head: float
    own: float
    again: float

    @property
    def training(self) -> float:
        """Of forward and backward, with nothing computed twice."""
        return 2 * (self.backbone + self.head) + self.own


def products(model: PreTrainedModel) -> list[tuple[nn.Module, float, bool]]:
    """What tokens are multiplied with: the part of the model that holds it, how many numbers of it
    a token meets (of fused experts, those that it is sent to), and whether these are trained."""
    active = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    head = model.get_output_embeddings()
    found = []
    for part in (head, *(part for part in model.base_model.modules() if part is not head)):
        kind = type(part).__name__
        if isinstance(part, nn.Linear):  # its weight may be packed in 4 bits, or partitioned
            found.append((part, part.in_features * part.out_features, part.weight.requires_grad))
        elif isinstance(part, Conv1D):  # GPT-2's name for a linear layer
            found.append((part, part.nx * part.nf, part.weight.requires_grad))
        elif kind.endswith(("Router", "Experts")):
            for weight in part.parameters(recurse=False):
                shape = getattr(weight, "ds_shape", weight.shape)
                if len(shape) == 3 and isinstance(active, int):
                    found.append((part, math.prod(shape[1:]) * active, weight.requires_grad))
                elif len(shape) == 2 and kind.endswith("Router"):
                    found.append((part, math.prod(shape), weight.requires_grad))
    return found


def last_products(model: PreTrainedModel) -> set[nn.Module]:
    """The products that end a layer, if nothing but a sum follows: torch's checkpointing stops
    before them, since the backward pass does not ask for what they put out."""
    count = model.config.get_text_config().num_hidden_layers
    parts = [part for part, *_ in products(model)]
    found = set()
    for layers in model.base_model.modules():
        if isinstance(layers, nn.ModuleList) and len(layers) == count:
            for layer in layers:
                inside = {*layer.modules()}
                last = [part for part in parts if part in inside][-1:]
                after = any(
                    re.search("post_(feedforward|mlp)", name) for name, _ in layer.named_children()
                )
                found |= {part for part in last if isinstance(part, nn.Linear | Conv1D)} - (
                    inside if after else set()
                )
    return found


def windows(model: PreTrainedModel) -> dict[int, float]:
    """How many tokens back each layer attends, of those that do, by its number."""
    config: Any = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", None):
        return {}  # a state-space model
    window = getattr(config, "sliding_window", None) or math.inf
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    kinds = kinds or ["sliding_attention"] * config.num_hidden_layers
    return {
        layer: window if kind == "sliding_attention" else math.inf
        for layer, kind in enumerate(kinds)
        if kind not in STATES
    }


def attentions(model: PreTrainedModel) -> list[tuple[float, int]]:
    """How many tokens back each layer attends, of those that do, and how many numbers a query and a
    value of all its heads have together."""
    config: Any = model.config.get_text_config()
    found = []
    for layer, window in windows(model).items():
        own = config.per_layer_config[layer] if config.is_heterogeneous else config
        query = value = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
        if latent := getattr(own, "qk_nope_head_dim", None):  # multi-head latent attention
            query, value = latent + own.qk_rope_head_dim, own.v_head_dim
        found.append((window, own.num_attention_heads * (query + value)))
    return found


def causal(length: np.ndarray, window: float) -> np.ndarray:
    """Keys that the queries of rows of so many tokens meet, each those before it in the window."""
    before = np.maximum(length - window, 0) if window < math.inf else 0.0
    return (length**2 - before**2) / 2


def pass_over(
    model: PreTrainedModel, tokens: float, completion: float, keys: Callable[[float], float]
) -> Pass:
    """FLOPs of a model over rows of any layout.

    Args:
        model: its weights may be elsewhere (meta device, ZeRO-3), or quantised.
        tokens, completion: how many the backbone sees, and the output layer.
        keys: how many keys all queries meet, of the window of a layer.
    """
    head = model.get_output_embeddings()
    flops, own, last, once = {True: 0.0, False: 0.0}, 0.0, last_products(model), 0.0
    for part, numbers, trained in products(model):
        spent = 2 * numbers * (completion if part is head else tokens)
        flops[part is head] += spent
        own += spent * trained
        once += spent * (part in last)
    attention = sum(
        2 * operands * keys(window) * count
        for (window, operands), count in Counter(attentions(model)).items()
    )
    backbone = flops[False] + attention
    return Pass(backbone, flops[True], own + attention, backbone - once)


def over_pairs(model: PreTrainedModel, lengths: np.ndarray) -> Pass:
    """FLOPs of a model over pairs, and of nothing else: prompts once, no padding, the output layer
    on completions, causal attention.

    Args:
        model: as of `pass_over`.
        lengths: tokens of prompt, chosen and rejected of each pair, shape (pairs, 3).
    """
    prompt, chosen, rejected = lengths.T.astype(float)

    def keys(window: float) -> float:
        ends = causal(prompt + chosen, window) + causal(prompt + rejected, window)
        return float((ends - causal(prompt, window)).sum())

    return pass_over(model, float(lengths.sum()), float((chosen + rejected).sum()), keys)


def useful_flops(model: PreTrainedModel, lengths: np.ndarray) -> float:
    """FLOPs of the policy's forward and backward over pairs, and of nothing else (`over_pairs`): no
    gradient of what is frozen."""
    return over_pairs(model, lengths).training


def counts_all(model: PreTrainedModel) -> bool:
    """Whether all that the model multiplies is counted: no experts one by one, no attention but by
    keys and queries, no weights in modules of another kind."""
    config: Any = model.config.get_text_config()
    if not hasattr(config, "num_attention_heads") or not hasattr(config, "num_hidden_layers"):
        return False
    known = {id(part) for part, *_ in products(model)}
    other = any(
        len(getattr(weight, "ds_shape", weight.shape)) > 1
        and "bias" not in name
        and id(part) not in known
        and not isinstance(part, nn.Embedding)
        for part in model.base_model.modules()
        for name, weight in part.named_parameters(recurse=False)
    )
    apart = any(re.search(r"experts\.\d", name) for name, _ in model.named_modules())
    return not other and not apart and {*(getattr(config, "layer_types", None) or ())} <= ATTENTION


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
