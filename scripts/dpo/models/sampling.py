"""Completions sampled from a chat model, the same way for every model that is compared."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

from dpo.models import chat_template

Messages = list[dict[str, str]]
# Text, messages, or {"prompt": messages, "options": what the chat template is given beside them,
# "row": the row that it was read from}; the last two may lack.
Prompt = str | Messages | dict[str, Any]


@dataclass
class Completion:
    """One sampled answer."""

    text: str  # without special tokens and surrounding blanks
    token_ids: list[int]  # with an end token at the end when `finished`
    finished: bool  # and not cut at `max_new_tokens`

    @classmethod
    def of(cls, new_ids: list[int], ends: list[int], tokenizer: Any) -> Self:
        """What was generated, up to the first of the tokens that end an answer."""
        length = next((at for at, token in enumerate(new_ids) if token in ends), None)
        said = new_ids[:length]
        text = tokenizer.decode(said, skip_special_tokens=True).strip()
        return cls(text, said if length is None else new_ids[: length + 1], length is not None)


def parts(prompt: Prompt) -> tuple[Messages | str, dict[str, Any]]:
    """What is said, and what the chat template is given beside it: tools and other options."""
    if isinstance(prompt, dict):
        return prompt["prompt"], prompt.get("options") or {}
    return prompt, {}


def row_of(prompt: Prompt) -> dict[str, Any]:
    """The row that a prompt was read from, for a rule that asks for more of it; {} where nobody
    has kept it."""
    return (prompt.get("row") or {}) if isinstance(prompt, dict) else {}


def turns(prompt: Prompt) -> Messages:
    """Plain text is what a user says. Tools, and what else of the template's options are words and
    not switches, are told first."""
    said, options = parts(prompt)
    said = [{"role": "user", "content": said}] if isinstance(said, str) else said
    words = {name: value for name, value in options.items() if value and value is not True}
    before = {"role": "system", "content": json.dumps(words, ensure_ascii=False)}
    if words and said[0]["role"] == "system":  # chat templates take one such turn
        first = {"role": "system", "content": f"{before['content']}\n\n{told(said[0])}"}
        return [first, *said[1:]]
    return [before, *said] if words else said


def told(message: dict[str, Any]) -> str:
    """What a message says; of an assistant that calls tools without a word, the calls."""
    content, calls = message.get("content"), message.get("tool_calls")
    return json.dumps(calls) if calls and not content else content or ""


def said(prompt: Prompt) -> str:
    """A prompt as text, with who spoke where there was more than one turn."""
    if isinstance(prompt, str):
        return prompt
    prompt = turns(prompt)
    if len(prompt) == 1:
        return told(prompt[0])
    return "\n".join(f"{turn['role']}: {told(turn)}" for turn in prompt)


def prompt_token_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The prompt as the model sees it, up to where the assistant begins to speak; plain text as it
    stands, and so what a user says to a model that is not made to chat."""
    prompt, options = parts(prompt)
    if not isinstance(prompt, str) and not tokenizer.chat_template and len(prompt) == 1:
        prompt = prompt[0]["content"]
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    how = {"add_generation_prompt": True, "return_dict": True, **options}
    return tokenizer.apply_chat_template(prompt, **how)["input_ids"]


def kind_of(prompts: Sequence[Prompt]) -> type:
    """What is asked, text (str) or messages (list), as `sample` wants to know."""
    return str if prompts and all(isinstance(prompt, str) for prompt in prompts) else list


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    samples: int,
    **how: Any,
) -> list[list[Completion]]:
    """`samples` completions for each of `prompts`, drawn as `sample` draws them with `how`."""
    rows = [prompt_token_ids(tokenizer, prompt) for prompt in prompts for _ in range(samples)]
    with tqdm(total=len(rows), desc="Sampling", unit="answer") as progress:
        how |= {"progress": progress, "kind": kind_of(prompts)}
        completions = sample(model, tokenizer, rows, **how)
    return [completions[i : i + samples] for i in range(0, len(completions), samples)]


@contextmanager
def own_distribution(model: PreTrainedModel) -> Iterator[None]:
    """Set aside what a model's generation_config.json would have `generate` make of its logits
    (Qwen2.5's has a repetition penalty): answers would come from another distribution than is
    scored. In place, since it lies under an adapter too."""
    settings = vars(model.generation_config)
    theirs = dict(settings)
    try:
        settings.clear()
        settings.update(vars(GenerationConfig()))
        yield
    finally:
        settings.clear()
        settings.update(theirs)


class Watch(StoppingCriteria):
    """Stops nothing, and moves a bar as the answers of a batch end.

    Args:
        before: answers that had ended before this batch.
    """

    def __init__(self, progress: tqdm, before: int, stops: list[int]):
        self.progress, self.before, self.stops = progress, before, torch.tensor(stops)
        self.ended: torch.Tensor | None = None
        self.tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        last = input_ids[:, -1]
        ends = torch.isin(last, self.stops.to(last.device))
        self.ended = ends if self.ended is None else self.ended | ends
        self.tokens += 1
        self.progress.set_postfix_str(f"token {self.tokens}", refresh=False)
        self.progress.update(self.before + int(self.ended.sum()) - self.progress.n)
        return torch.zeros_like(ends)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    top_p: float = 1.0,
    batch_size: int = 256,
    progress: tqdm | None = None,
    kind: type = list,
    streamer: BaseStreamer | None = None,
) -> list[Completion]:
    """A completion of each of `rows`, token ids of prompts, drawn from the whole distribution, or
    from its likeliest tokens that have `top_p` of it together.

    No top-k or penalty, nor another top-p, also where the model comes with some: what is drawn is
    softmax(logits / temperature) itself, so that its log-probability, and with it the KL
    divergence, can be computed exactly. At temperature 0 it is the likeliest token each time.

    Every batch starts from its own seed, so a batch is drawn the same whatever came before it,
    and two models get the same random numbers. The larger `batch_size`, the faster, and the more
    memory: about 20 MB a row for a 135M model and 90 tokens. `progress` is moved at each answer
    that ends. `kind` is what the prompts were before they were tokens, messages (list) or text
    (str): an answer ends where its kind does (chat_template.py). `streamer` is told each token of
    a single one as it is drawn.
    """
    stops = chat_template.end_tokens(model.generation_config, tokenizer, kind)
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p}
    how |= {"max_new_tokens": max_new_tokens, "eos_token_id": stops, "streamer": streamer}
    completions: list[Completion] = []
    was_training = model.training
    model.eval()
    done = progress.n if progress is not None else 0
    with own_distribution(model):
        for start in range(0, len(rows), batch_size):
            set_seed(seed + start)
            part = {"input_ids": rows[start : start + batch_size]}
            batch = tokenizer.pad(part, padding_side="left", return_tensors="pt").to(model.device)
            if progress is not None:
                watch = Watch(progress, done + start, stops)
                how["stopping_criteria"] = StoppingCriteriaList([watch])
            generate: Any = model.generate
            output = generate(**batch, **how, pad_token_id=tokenizer.pad_token_id)
            for new_ids in output[:, batch["input_ids"].shape[1] :].tolist():
                completions.append(Completion.of(new_ids, stops, tokenizer))
            if progress is not None:
                progress.update(done + len(completions) - progress.n)
    model.train(was_training)
    return completions
