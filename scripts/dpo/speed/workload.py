"""What a speed is measured with: models, lengths of real pairs, FLOPs that count."""

import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from dpo.data import schema
from dpo.speed.shapes import SHAPES
from dpo.training.batching import deal

LENGTHS = Path("recipes/data/ultrafeedback-lengths.csv")
MAX_LENGTH = 1024


class Stopwatch(TrainerCallback):
    """Seconds of each optimizer step, waiting for the GPU at both ends."""

    def __init__(self):
        self.seconds = []

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, *args, **kwargs):
        self.start = self.now()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(self.now() - self.start)


def config_of(model: str) -> PreTrainedConfig:
    if model in SHAPES:
        return AutoConfig.for_model(**SHAPES[model])
    return AutoConfig.from_pretrained(model, trust_remote_code=False)


def draw_lengths(table: str, count: int, seed: int) -> np.ndarray:
    """Tokens of (prompt, chosen, rejected) of `count` pairs, cut at MAX_LENGTH as TRL cuts.

    Args:
        table: a CSV file with these three columns, or the three numbers of every pair: 50,50,50.
    """
    if "," in table:
        return np.tile([int(number) for number in table.split(",")], (count, 1))
    known = np.loadtxt(table, int, delimiter=",", skiprows=1)
    known = known[known[:, 0] < MAX_LENGTH]
    rows = known[np.random.default_rng(seed).choice(len(known), count)]
    prompt, chosen, rejected = schema.kept_lengths(*rows.T, MAX_LENGTH, "keep_start")
    return np.stack([prompt, chosen - prompt, rejected - prompt], axis=1)


def repeats_and_padding(lengths: np.ndarray, pairs: int) -> float:
    """Tokens that stock TRL computes, prompts twice and padding, for each that has to be computed.

    Args:
        lengths: prompt, chosen and rejected tokens, shape (rows, 3), in the order of training.
        pairs: of a micro-batch.
    """
    prompt, chosen, rejected = lengths.T
    longest = np.maximum(prompt + chosen, prompt + rejected).reshape(-1, pairs).max(axis=1)
    return float(2 * pairs * longest.sum() / lengths.sum())


def typical_lengths(table: str, count: int, pairs: int) -> np.ndarray:
    """`draw_lengths`, and of a hundred draws the one nearest to the whole table: in the tokens of
    a pair, and in what stock TRL computes beyond need. Few batches stand for all of them then."""

    def traits(rows: np.ndarray) -> np.ndarray:
        return np.array([rows.sum(axis=1).mean(), repeats_and_padding(rows, pairs)])

    whole = traits(draw_lengths(table, 2000 * pairs, seed=0))
    draws = [draw_lengths(table, count, seed) for seed in range(100)]
    return min(draws, key=lambda rows: np.abs(traits(rows) / whole - 1).sum())


def useful_flops(config: PreTrainedConfig, lengths: np.ndarray) -> float:
    """Forward and backward of the policy on these pairs and nothing else: prompts once, no
    padding, head on completions, causal attention; a multiplication and an addition are two."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linears = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    per_token = 2 * sum(m.weight.numel() for m in linears)
    head = 2 * config.vocab_size * config.hidden_size
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_key = 4 * config.num_hidden_layers * config.num_attention_heads * size
    prompt, chosen, rejected = lengths.T.astype(float)
    tokens, completion = prompt + chosen + rejected, chosen + rejected
    whole, branch = prompt + chosen, rejected * (prompt + rejected / 2)
    forward = tokens * per_token + completion * head + (whole**2 / 2 + branch) * per_key
    return 3 * forward.sum()


def matmul_peak(device: str) -> float:
    """FLOPs a second of one large matrix product in the dtype that the variants compute in."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = 8192 if device == "cuda" else 4096
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        (a @ b).sum().item()  # waits for the GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def dealing(ranks: int = 8, pairs: int = 4) -> dict:
    """How much more than the mean the longest micro-batch of a step holds, over the whole length
    table: a step waits for it. By counting, not by time."""
    tokens = draw_lengths(str(LENGTHS), 100 * ranks * pairs, seed=0).sum(axis=1)
    ratios = {"as drawn": [], "dealt by length": []}
    for start in range(0, len(tokens), ranks * pairs):
        rows = list(range(start, start + ranks * pairs))
        for name, order in zip(ratios, (rows, deal(rows, tokens, pairs)), strict=True):
            sums = tokens[order].reshape(ranks, pairs).sum(axis=1)
            ratios[name].append(sums.max() / sums.mean())
    return {"ranks": ranks, "pairs": pairs} | {k: float(np.mean(v)) for k, v in ratios.items()}


def any_tokenizer() -> PreTrainedTokenizerFast:
    """Trainers want one; the rows are tokens already, so that any will do."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
