"""A judge that scores: any reward model of transformers with one number to its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dpo import foreign

if TYPE_CHECKING:
    from dpo.judges import Comparison

ROWS = 16


def ask(
    name: str, device: str
) -> tuple[dict[str, Any], Callable[[list[Comparison]], Iterator[tuple[int, dict]]]]:
    """A reward model, loaded in its own dtype from safetensors, and never with code of its own.

    Returns what it was asked with, and the judge.

    Raises:
        SystemExit: it has no head for rewards, or more than one number to it, or no chat template.
    """
    foreign.check_code(name, None, False)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        name,
        dtype="auto",
        use_safetensors=True,
        output_loading_info=True,
        device_map="auto" if device.startswith("cuda") else None,
    )
    if model.config.num_labels != 1 or loaded["missing_keys"]:
        raise SystemExit(
            f"the judge {name} is no reward model: it needs a trained head for one number, and has "
            f"{model.config.num_labels}, "
            f"untrained: {', '.join(sorted(loaded['missing_keys'])) or 'none'}"
        )
    if not tokenizer.chat_template:
        raise SystemExit(f"the judge {name} has no chat template: answers cannot be put to it")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.eval()

    def asked(comparisons: list[Comparison]) -> Iterator[tuple[int, dict]]:
        from dpo.judges import of_rewards

        rows = [
            token_ids(tokenizer, pair.prompt, answer)
            for pair in comparisons
            for answer in (pair.policy, pair.against)
        ]
        rewards = scores(model, tokenizer, rows)
        for at in range(len(comparisons)):
            yield at, of_rewards(*rewards[2 * at : 2 * at + 2])

    return {"dtype": str(model.dtype).removeprefix("torch.")}, asked


def token_ids(tokenizer, prompt: list[dict] | str, answer: str) -> list[int]:
    """Prompt and answer as the reward model sees a conversation. The template writes its own
    beginning: another would be a token too many."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [*messages, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]


@torch.no_grad()
def scores(model, tokenizer, rows: list[list[int]]) -> list[float]:
    """The reward of each row of token ids, longest rows first."""
    rewards = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    for start in tqdm(range(0, len(rows), ROWS), desc="Reward model", unit="batch"):
        part = order[start : start + ROWS]
        ids = {"input_ids": [rows[row] for row in part]}
        batch = tokenizer.pad(ids, padding_side="right", return_tensors="pt").to(model.device)
        for row, reward in zip(part, model(**batch).logits[:, 0].float().tolist(), strict=True):
            rewards[row] = reward
    return rewards
