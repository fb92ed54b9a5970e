"""Shared prefixes against the plain path on the kernels that a device has (make check-gpu).

In float32 the two agree to rounding. In bfloat16 neither is right: both are held against the plain
path in float32 with the same weights, and the shared one may not be further off than the plain one
by more than a factor.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    set_seed,
)
from trl.trainer.utils import add_fused_lm_head

from dpo.core.refusal import first_line
from dpo.data.schema import IDS
from dpo.prefix_sharing import attention
from dpo.prefix_sharing.backbone import share_prefixes
from dpo.prefix_sharing.plan import SharedPrefixCollator
from dpo.speed.gpu_checks import Job, Row, judged
from dpo.speed.shapes import sized
from dpo.speed.workload import LENGTHS, MAX_LENGTH, config_of, typical_lengths

LOGPS, GRADIENTS = 1e-4, 1e-3  # in float32: nats a token; of the norm of the gradient
FACTOR = 1.5  # in bfloat16: the shared path's error over the plain path's, root mean square
HEADS = 64, 128, 256  # sizes that kernels are chosen by
WIDE = {"initializer_range": 0.07, "pad_token_id": 0}  # so wide that attention matters
OF_64, OF_128, OF_256 = (sized(512, 256, 512, 4, 4, 2, size, 1024) | WIDE for size in HEADS)
KINDS = ["sliding_attention", "full_attention"]
# Windows are shorter than the rows.
SMALL: dict[str, PreTrainedConfig] = {
    "llama, heads of 64": LlamaConfig(**OF_64),
    "qwen3, heads of 128": Qwen3Config(**OF_128),
    "mistral, window of 32": MistralConfig(**OF_128, sliding_window=32),
    "gemma3, heads of 256, window of 32 in every other layer": Gemma3TextConfig(
        **OF_256, sliding_window=32, layer_types=KINDS * 2
    ),
}
NUMERICS = ("float32", "bfloat16 autocast", "bfloat16 weights")


def ids(draw: np.random.Generator, words: int, count: int) -> list[int]:
    return draw.integers(2, words, count).tolist()


def edge_pairs(words: int, shorter: int = 1) -> list[tuple[list[int], ...]]:
    """(prompt, chosen, rejected) whose rows differ in every way that matters to a plan."""
    draw = np.random.default_rng(0)
    alike = ids(draw, words, 40)
    sizes = [(90, 60, 100), (1, 30, 80), (150, 5, 3), (7, 200, 12), (240, 40, 90)]
    pairs = [tuple(ids(draw, words, -(-size // shorter)) for size in each) for each in sizes]
    for chosen, rejected in (([*alike, 5], [*alike, 6, 7]), (alike, alike[:9]), (alike, alike)):
        pairs.append((ids(draw, words, 20), chosen, rejected))
    return pairs


def real_pairs(words: int) -> list[tuple[list[int], ...]]:
    """A micro-batch of four, as long as UltraFeedback's."""
    draw = np.random.default_rng(0)
    lengths = typical_lengths(str(LENGTHS), 4, 4)
    return [tuple(ids(draw, words, size) for size in each) for each in lengths]


def batch_of(pairs: list, max_length: int, device: str) -> Any:
    rows = [dict(zip(IDS, pair, strict=True)) for pair in pairs]
    batch = SharedPrefixCollator(pad_token_id=0, max_length=max_length)(rows)
    return send_to_device(batch, torch.device(device))


def scored(
    model: PreTrainedModel, batch: dict, share: bool, autocast: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the completion tokens in nats, and the gradient of a sum in which every
    row weighs differently, both flat and in float32."""
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if share:
        inputs["shared_prefixes"] = batch["shared_prefixes"]
    with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        outputs = model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
    logps = outputs.log_probs.float()
    weights = torch.linspace(-1, 2, len(labels), device=logps.device)
    (logps.sum(1) * weights).sum().backward()
    gradient = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    return logps.detach()[labels[:, 1:] != -100], torch.cat(gradient)


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """With weights that bfloat16 can tell apart, so that they are the same in every dtype."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    add_fused_lm_head(model)
    share_prefixes(model)
    return model


def within(name: str, numerics: str, plain: tuple, shared: tuple, truth: tuple) -> Row:
    """One comparison: (log-probabilities, gradient) of both paths and of the plain in float32."""

    def off(found: Tensor, right: Tensor) -> float:
        return float((found - right).double().norm())

    tokens, norm = len(truth[0]) ** 0.5, float(truth[1].double().norm())
    found = {"nats": off(shared[0], truth[0]) / tokens, "gradient": off(shared[1], truth[1]) / norm}
    most, bound = (LOGPS, GRADIENTS), f"{LOGPS:.0e}, {GRADIENTS:.0e}"
    if numerics == "float32":  # there the plain path is the truth
        found["nats"] = float((shared[0] - truth[0]).abs().max())
    else:
        plain_nats, plain_part = off(plain[0], truth[0]) / tokens, off(plain[1], truth[1]) / norm
        # Below what the bounds of float32 allow, a ratio says nothing.
        most = max(FACTOR * plain_nats, LOGPS), max(FACTOR * plain_part, GRADIENTS)
        bound = f"{FACTOR} × the plain path's {plain_nats:.1e}, {plain_part:.1e}"
        found |= {"plain_nats": plain_nats, "plain_gradient": plain_part}
    nats, part = found["nats"], found["gradient"]
    says = f"{nats:.1e} nats a token, {part:.1e} of the gradient"
    return judged(name, nats <= most[0] and part <= most[1], says, bound, **found)


def compared(name: str, make: Callable[[], PreTrainedModel], pairs, most: int, device: str):
    """Rows of one model: every numerics, with every kernel that computes it."""
    set_seed(0)
    model = ready(make().to(device))
    batch = batch_of(pairs(model.config.vocab_size), most, device)
    truth = scored(model, batch, share=False)
    for numerics in NUMERICS:
        autocast = numerics == "bfloat16 autocast"
        model = model.to(torch.bfloat16 if numerics == "bfloat16 weights" else torch.float32)
        plain = scored(model, batch, False, autocast)
        has_flash = attention.uses_flash(model.device, numerics != "float32")
        for flash in [True, False] if has_flash else [False]:
            says = f"{name}: {numerics}, {'FlashAttention' if flash else 'SDPA'}"
            try:
                uses = attention.uses_flash if flash else lambda *_: False
                with mock.patch.object(attention, "uses_flash", uses):
                    shared = scored(model, batch, True, autocast)
                yield within(says, numerics, plain, shared, truth)
            except Exception as error:  # a row of its own, whatever the kernel says
                yield judged(says, False, f"{type(error).__name__}: {first_line(error)}")


def parity(job: Job) -> Iterator[Row]:
    """Every small model, the model of the check at UltraFeedback's lengths, and on a GPU the shape
    of Qwen3-0.6B as well."""

    how = {"dtype": torch.float32, "attn_implementation": "sdpa"}

    def made(config: PreTrainedConfig) -> PreTrainedModel:
        with torch.device(job.device):
            return AutoModelForCausalLM.from_config(config, **how)

    edges = partial(edge_pairs, shorter=4 if job.small else 1)
    small = [compared(n, partial(made, of), edges, 256, job.device) for n, of in SMALL.items()]
    loaded = partial(AutoModelForCausalLM.from_pretrained, job.model, **how)
    real = compared(job.model.name, loaded, real_pairs, MAX_LENGTH, job.device)
    shape = "Qwen3-0.6B"
    large = compared(shape, partial(made, config_of(shape)), real_pairs, MAX_LENGTH, job.device)
    others = [] if job.small else [real, large] if job.device == "cuda" else [real]
    yield from itertools.chain(*small, *others)
