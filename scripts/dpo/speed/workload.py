"""What a speed is measured with: models, and lengths of real pairs."""

import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from dpo.data import schema
from dpo.models import flops
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


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration, without weights: for counting."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def peak_of(device: str) -> float:
    """FLOPs a second of one large matrix product in the dtype that the variants compute in."""
    if device == "cpu":
        return flops.matmul_peak(device, torch.float32, 4096)
    return flops.matmul_peak(device, torch.bfloat16, 8192)


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
