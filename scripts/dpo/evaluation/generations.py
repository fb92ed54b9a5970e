"""The same prompts answered by two models: drawn once and kept, and what can be counted of them."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from dpo.core import files, secrets
from dpo.core.hashing import name_of
from dpo.core.stats import bootstrap, share
from dpo.data import fits
from dpo.evaluation.contestants import Contestant
from dpo.models import adapters, chat_template, loading
from dpo.models.sampling import Completion, Prompt, kind_of, prompt_token_ids, sample

KEPT = Path("cache/answers")
BATCH = 64  # answers at a time, and kept together; memory may take fewer
FOR_VLLM = 0.45  # of the GPUs' memory, beside the model that scores


@dataclass
class Settings:
    """How answers are drawn: `samples` for each prompt from softmax(logits / temperature), no
    top-k. An evaluation leaves `top_p` at 1: from the whole of it, so that the log-probabilities of
    answers are the model's."""

    samples: int
    temperature: float
    max_new_tokens: int
    seed: int
    top_p: float = 1.0


def draw(
    who: Contestant,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: Settings,
    asked: list[list[int]] | None = None,
    at_once: int | None = None,
) -> list[list[Completion]]:
    """The answers of a model to each prompt, with the random numbers that every model gets.
    `asked` are the prompts as it sees them, where its tokenizer and template need not say;
    `at_once` are drawn together, by transformers; without it BATCH, or all by vLLM where it is
    installed.

    They are kept, batch by batch, by all that decides them: whoever asks again, after a crash, with
    another judge, or for another run's sake of the same reference, finds them.
    """
    asked, kind = asked or [prompt_token_ids(tokenizer, p) for p in prompts], kind_of(prompts)
    device = model.device.type
    half = torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))
    about = [who.digest(), who.dtype, who.attention, device, half, asked, asdict(settings)]
    about += [at_once or BATCH]  # with others beside it an answer gets other random numbers
    about += [chat_template.end_tokens(model.generation_config, tokenizer, kind)]
    path = KEPT / f"{name_of(about)}.jsonl"
    ids = dict(enumerate(row for row in asked for _ in range(settings.samples)))
    found = read(path, len(ids), at_once or BATCH)
    if found:
        print(f"Answers of {who.name}: {len(found)} of {len(ids)} found, not generated again")
    missing = {at: row for at, row in ids.items() if at not in found}
    if missing:
        longest = max(map(len, missing.values()))
        fits.check_room(model.config, longest, settings.max_new_tokens, who.name)
    for part in generated(who, model, tokenizer, missing, settings, kind, at_once):
        keep(path, part)
        found |= part
    return grouped(found, settings.samples)


def grouped(found: dict[int, Completion], samples: int) -> list[list[Completion]]:
    """Answers by their number as those to each prompt."""
    rows = [found[at] for at in range(len(found))]
    return [rows[at : at + samples] for at in range(0, len(rows), samples)]


def keep(path: Path, part: dict[int, Completion]) -> None:
    """Add answers to a file, in one write: another run may ask the same model the same."""
    lines = [json.dumps(secrets.masked({"at": at, **asdict(row)})) for at, row in part.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(["", *lines, ""]))
    except OSError as error:  # costs whoever asks again time, and this evaluation nothing
        print(f"Answers are not kept, since {path} cannot be written: {error.strerror}")


def read(path: Path, count: int, batch: int) -> dict[int, Completion]:
    """Those of `count` answers that are kept, by their number, in whole batches: of one that a kill
    has cut off the others would be drawn with other random numbers than all at once."""
    found = {row.pop("at"): Completion(**row) for row in files.read_lines(path)}
    batches = [range(at, min(at + batch, count)) for at in range(0, count, batch)]
    whole = [numbers for numbers in batches if found.keys() >= {*numbers}]
    return {at: found[at] for numbers in whole for at in numbers}


def generated(
    who: Contestant,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[int, list[int]],
    settings: Settings,
    kind: type = list,
    at_once: int | None = None,
    bar: tqdm | None = None,
) -> Iterator[dict[int, Completion]]:
    """Answers to prompts, both by their number, a batch at a time: by vLLM on a GPU where it is
    installed and the model that scores leaves it room, else by transformers, fewer at a time where
    memory runs out. `bar` is moved on by each, where it is not one of their own."""
    adapter = adapters.config_of(who.path, who.revision)
    installed = model.device.type == "cuda" and importlib.util.find_spec("vllm")
    if installed and not at_once and not adapter and loading.room_beside(FOR_VLLM):
        if rows:
            stops = chat_template.end_tokens(model.generation_config, tokenizer, kind)
            yield by_vllm(engine_of(who, settings.seed), tokenizer, rows, settings, stops)
        return
    how = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
    how["top_p"] = settings.top_p

    @find_executable_batch_size(starting_batch_size=at_once or BATCH)
    def next_batch(batch_size: int) -> dict[int, Completion]:
        part = dict(islice(rows.items(), batch_size))
        progress.update(
            before + total - len(rows) - progress.n
        )  # where memory ran out in the middle of one
        begin = {"seed": settings.seed + next(iter(part)), "progress": progress, "kind": kind}
        drawn = sample(model, tokenizer, [*part.values()], batch_size=batch_size, **how, **begin)
        return dict(zip(part, drawn, strict=True))

    total, desc = len(rows), f"Answers of {who.name}"
    named = {"desc": desc, "unit": "answer", "disable": not rows}
    with tqdm(total=total, **named) if bar is None else nullcontext(bar) as progress:
        before = progress.n
        while rows:
            part = next_batch()  # pyright: ignore[reportCallIssue]  the decorator gives the size
            rows = {at: row for at, row in rows.items() if at not in part}
            yield part


def engine_of(who: Contestant, seed: int, share: float = FOR_VLLM) -> Any:
    """A model in vLLM, in a share of the GPUs' memory; `share` is FOR_VLLM beside the model that
    scores."""
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    config = AutoConfig.from_pretrained(who.path, revision=who.revision).get_text_config()
    # Autocast computes with weights in half precision; vLLM has none, but can load them so.
    half = torch.is_autocast_enabled("cuda")
    dtype = str(torch.get_autocast_dtype("cuda")).removeprefix("torch.") if half else who.dtype
    return LLM(
        model=who.path,
        revision=who.revision,
        hf_overrides=who.init,
        dtype=dtype,
        trust_remote_code=who.trusted,
        tensor_parallel_size=loading.tensor_parallel(
            loading.weight_bytes(config, dtype), config.num_attention_heads, share
        ),
        gpu_memory_utilization=share,
        generation_config="vllm",  # not the model's own, as in sampling.py
        seed=seed,
    )


def by_vllm(
    engine: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[int, list[int]],
    settings: Settings,
    stops: list[int],
) -> dict[int, Completion]:
    """The same distribution, drawn by vLLM. Every answer has a seed of its own, by its number, and
    ends at one of `stops`."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    how = {"temperature": settings.temperature, "max_tokens": settings.max_new_tokens}
    how |= {"top_p": settings.top_p, "top_k": -1, "stop_token_ids": stops}
    each = [SamplingParams(**how, seed=settings.seed + at) for at in rows]
    drawn = engine.generate([{"prompt_token_ids": ids} for ids in rows.values()], each)
    return {
        at: Completion.of(list(given.outputs[0].token_ids), stops, tokenizer)
        for at, given in zip(rows, drawn, strict=True)
    }


def distinct(texts: list[str], n: int) -> float:
    """Distinct n-grams of words as a share of all (Li et al. 2016, arXiv 1510.03055)."""
    words = [text.split() for text in texts]
    grams = [gram for of in words for gram in zip(*(of[at:] for at in range(n)), strict=False)]
    return len(set(grams)) / max(len(grams), 1)


def lengths(rows: list[list[Completion]]) -> np.ndarray:
    """Tokens of each answer, the end token counted, shape (prompts, samples)."""
    return np.array([[len(answer.token_ids) for answer in row] for row in rows])


def measure(policy: list[list[Completion]], against: list[list[Completion]]) -> dict:
    """Length, ending and variety of two models' answers, with intervals over prompts."""
    sides = {"policy": policy, "against": against}
    tokens = {name: lengths(rows).mean(axis=1) for name, rows in sides.items()}
    tokens["difference"] = tokens["policy"] - tokens["against"]
    return {
        "mean_tokens": {name: asdict(bootstrap(values)) for name, values in tokens.items()},
        "finished": {
            name: asdict(share(np.array([[a.finished for a in row] for row in rows]).mean(1)))
            for name, rows in sides.items()
        },
        "distinct": {
            name: {str(n): distinct([a.text for row in rows for a in row], n) for n in (1, 2)}
            for name, rows in sides.items()
        },
    }


def kl(nats: np.ndarray, tokens: np.ndarray) -> dict:
    """KL(policy ‖ reference), estimated on the policy's own answers.

    Args:
        nats: log π(y | x) - log π_ref(y | x) at the temperature of sampling, (prompts, samples).
        tokens: of each answer, same shape.

    Returns:
        Nats a sequence and nats a token, each with its interval over prompts.
    """
    of_prompt, a_token = nats.mean(axis=1), tokens.mean(axis=1)
    found = {"sequence": bootstrap(of_prompt), "token": bootstrap(of_prompt, weights=a_token)}
    return {f"nats_per_{per}": asdict(interval) for per, interval in found.items()}
