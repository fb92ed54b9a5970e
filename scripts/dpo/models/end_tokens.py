"""Where an answer ends: for whoever samples, and for what is saved, whose users sample too."""

from __future__ import annotations

import contextlib
import re

from datasets import Features, Value
from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dpo.data.tokenize import Tokenization

ENDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")


def of(
    own: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, kind: type = list
) -> list[int]:
    """The tokens at any of which an answer ends.

    Those that the model's own generation_config.json has (Llama 3's has three), the tokenizer's end
    token and, to messages, the one with which the chat template ends a turn: what it is trained to
    end with (lint.py), and not always the tokenizer's (Gemma's `<end_of_turn>`).

    Args:
        own: of the model; None if it has none.
        kind: of what is asked, list for messages, str for plain text. A model without a chat
            template is asked in plain text.
    """
    theirs = own.eos_token_id if own else None
    theirs = theirs if isinstance(theirs, list) else [theirs]
    known = {tokenizer.eos_token_id}
    with contextlib.suppress(TemplateError):  # a template that does not take a bare question
        known = Tokenization(tokenizer, kind if tokenizer.chat_template else str).ends
    return [token for token in dict.fromkeys([*theirs, *sorted(known)]) if token is not None]


def remember(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: type) -> None:
    """Have a model's own generation_config know all ends, and with it whatever is saved of it."""
    config = model.generation_config
    ends = of(config, tokenizer, kind)
    if ends != [config.eos_token_id]:
        config.eos_token_id = ends
        make_savable(config)


def make_savable(config: GenerationConfig) -> None:
    """Take out what `generate` ignores. transformers saves it of a configuration as published (of
    Vicuna's, Llama 2's: a temperature, and do_sample false), and not of one that was changed: the
    run would end at its first save."""
    usual = GenerationConfig()
    for _ in range(2):  # what is left may come to light only then
        try:
            return config.validate(strict=True)
        except ValueError as error:
            ignored = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
            for name in ignored or {*config.to_dict()} - {*ENDS}:
                setattr(config, name, getattr(usual, name, None))


def kind_of(features: Features | None) -> type:
    """What the prompts of pairs are, list or str; list where nobody knows."""
    return str if features and isinstance(features.get("prompt"), Value) else list
