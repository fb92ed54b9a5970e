"""The same prompts answered by two models: drawn once and kept, and what can be counted of them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpo import output
from dpo.contestants import Contestant
from dpo.intervals import bootstrap
from dpo.sampling import Completion, Messages, prompt_token_ids, sample

KEPT = Path("cache/answers")


@dataclass
class Settings:
    """How answers are drawn: `samples` for each prompt from softmax(logits / temperature) itself,
    no top-k or top-p, so that their log-probabilities are the model's."""

    samples: int
    temperature: float
    max_new_tokens: int
    seed: int


def draw(
    who: Contestant,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages | str],
    settings: Settings,
) -> list[list[Completion]]:
    """The answers of a model to each prompt, with the random numbers that every model gets.

    They are kept by all that decides them: whoever asks again, after a crash, with another judge,
    or for another run's sake of the same reference, finds them.
    """
    device = str(model.device)
    about = [who.digest(), device.split(":")[0], torch.is_autocast_enabled(model.device.type)]
    about = json.dumps([*about, list(prompts), asdict(settings), tokenizer.chat_template])
    path = KEPT / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.json"
    if path.is_file():
        rows = [Completion(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        print(f"Answers of {who.name}: found, nothing generated")
    else:
        ids = [prompt_token_ids(tokenizer, p) for p in prompts for _ in range(settings.samples)]
        rows = generated(who, model, tokenizer, ids, settings)
        KEPT.mkdir(parents=True, exist_ok=True)
        output.write_whole(path, json.dumps([asdict(row) for row in rows], ensure_ascii=False))
    return [rows[at : at + settings.samples] for at in range(0, len(rows), settings.samples)]


def generated(
    who: Contestant,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    settings: Settings,
) -> list[Completion]:
    """By vLLM on a GPU where it is installed, else by transformers, fewer at a time where memory
    runs out."""
    how = dataclasses.asdict(settings)
    del how["samples"]
    if model.device.type == "cuda" and importlib.util.find_spec("vllm"):
        return by_vllm(who, tokenizer, rows, **how)

    @find_executable_batch_size(starting_batch_size=64)
    def at_a_time(batch_size: int) -> list[Completion]:
        desc = f"Answers of {who.name}"
        return sample(model, tokenizer, rows, batch_size=batch_size, desc=desc, **how)

    return at_a_time()


def by_vllm(
    who: Contestant,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[Completion]:
    """The same distribution, drawn by vLLM beside the model that scores: each gets half of the
    GPU's memory."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=who.path,
        revision=who.revision,
        dtype=who.dtype,
        trust_remote_code=who.trusted,
        gpu_memory_utilization=0.45,
        seed=seed,
    )
    how = SamplingParams(
        temperature=temperature,
        top_p=1.0,
        top_k=-1,
        max_tokens=max_new_tokens,
        seed=None,  # one for all requests would give equal prompts equal answers
        stop_token_ids=[tokenizer.eos_token_id],
    )
    drawn = engine.generate([{"prompt_token_ids": ids} for ids in rows], how)
    completions = []
    for given in drawn:
        ids = list(given.outputs[0].token_ids)
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        completions.append(Completion(text, ids, ids[-1:] == [tokenizer.eos_token_id]))
    return completions


def distinct(texts: list[str], n: int) -> float:
    """Distinct n-grams of words as a share of all (Li et al. 2016, arXiv 1510.03055)."""
    grams = [
        tuple(words[at : at + n])
        for words in (text.split() for text in texts)
        for at in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(len(grams), 1)


def lengths(rows: list[list[Completion]]) -> np.ndarray:
    """Tokens of each answer, the end token counted, shape (prompts, samples)."""
    return np.array([[len(answer.token_ids) for answer in row] for row in rows])


def measure(policy: list[list[Completion]], against: list[list[Completion]]) -> dict:
    """Length, ending and variety of two models' answers, with intervals over prompts."""
    sides = {"policy": policy, "against": against}
    tokens = {name: lengths(rows).mean(axis=1) for name, rows in sides.items()}
    difference = tokens["policy"] - tokens["against"]
    found = {
        "mean_tokens": {name: asdict(bootstrap(values)) for name, values in tokens.items()},
        "finished": {
            name: asdict(bootstrap(np.array([[a.finished for a in row] for row in rows]).mean(1)))
            for name, rows in sides.items()
        },
        "distinct": {
            name: {
                str(n): distinct([answer.text for row in rows for answer in row], n) for n in (1, 2)
            }
            for name, rows in sides.items()
        },
    }
    found["mean_tokens"]["difference"] = asdict(bootstrap(difference))
    return found


def kl(nats: np.ndarray, tokens: np.ndarray) -> dict:
    """KL(policy ‖ reference), estimated on the policy's own answers.

    Args:
        nats: log π(y | x) - log π_ref(y | x) at the temperature of sampling, (prompts, samples).
        tokens: of each answer, same shape.

    Returns:
        Nats a sequence and nats a token, each with its interval over prompts.
    """
    a_token = bootstrap(nats.mean(axis=1), weights=tokens.mean(axis=1))
    return {
        "nats_per_sequence": asdict(bootstrap(nats.mean(axis=1))),
        "nats_per_token": asdict(a_token),
    }
