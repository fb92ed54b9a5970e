"""The tokenizer of a model, its chat template, and the tokens at which an answer ends: for whoever
samples, and for what is saved, whose users sample too."""

import contextlib
import datetime
import re
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from datasets import Features, Value
from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dpo.core.refusal import Refusal
from dpo.models import adapters
from dpo.models.model_files import tokenizer_of
from dpo.recipe.parse import Recipe, choices

TEMPLATES = files("trl") / "chat_templates"
QUESTION = [{"role": "user", "content": "question"}]
DATE = re.compile(r"""strftime_now\(\s*(["'])(.+?)\1\s*\)""")
ANSWER = [{"role": "assistant", "content": "answer"}]
ENDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")


def bundled_templates() -> list[str]:
    """Names of the chat templates that TRL brings along."""
    names = [path.name.removesuffix(".jinja") for path in TEMPLATES.iterdir()]
    return sorted(name for name in names if not name.endswith((".md", "_training")))


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the chat template that the recipe names, if it names one.

    Raises:
        Refusal: there is no such template, the tokenizer cannot be read, or has no end token.
    """
    given, (name, revision) = recipe.run.chat_template_path, adapters.tokenizer_home(recipe.model)
    trusted = recipe.training.trust_remote_code
    tokenizer = tokenizer_of(name, revision, trusted)
    if tokenizer.eos_token is None:
        raise Refusal(
            f"the tokenizer of {name} has no eos_token: a model trained with "
            "it would never stop; set one in its tokenizer_config.json"
        )
    if given and given in bundled_templates():
        tokenizer.chat_template = (TEMPLATES / f"{given}.jinja").read_text(encoding="utf-8")
    elif given and Path(given).is_file():
        tokenizer.chat_template = Path(given).read_text(encoding="utf-8")
    elif given and Path(given).is_dir():  # of a model, as TRL takes it
        tokenizer.chat_template = tokenizer_of(given).chat_template
    elif given:
        raise Refusal(
            f"chat_template_path: {given} is no file, and no template of TRL: "
            f"{choices(given, bundled_templates())}"
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise Refusal(
            f"the tokenizer of {name} has several chat templates and none of the name default: "
            f"{', '.join(tokenizer.chat_template)}: save one as a file for chat_template_path"
        )
    return tokenizer


class ChatTemplate:
    """A tokenizer over pairs of one kind.

    `kind` is list for messages, which are rendered with the chat template, str for plain text, to
    which TRL adds the end token. `day` is the date that a template may write into a prompt, today
    without one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, kind: type, day: datetime.date | None = None
    ):
        self.tokenizer: Any = tokenizer
        self.kind = kind
        self.day = day or datetime.date.today()
        self._reads: dict[str, bool] = {}

    @cached_property
    def template(self) -> str | None:
        """The chat template with `day` written where it would write today's date; None where the
        tokenizer's own has no date."""
        own: Any = self.tokenizer.chat_template
        if "strftime_now(" not in str(own):
            return None
        return DATE.sub(lambda found: repr(self.day.strftime(found[2])), own)

    def reads(self, key: str) -> bool:
        """Whether the chat template reads this key of a message: where it says so by name."""
        if key not in self._reads:
            source = str(self.tokenizer.chat_template)
            self._reads[key] = bool(re.search(rf"\b{re.escape(key)}\b", source))
        return self._reads[key]

    @cached_property
    def rendered(self) -> list[int]:
        """A question and its answer, as tokens."""
        return self.ids([self.render(QUESTION + ANSWER)])[0]

    @cached_property
    def control(self) -> re.Pattern | None:
        """The special tokens that the template sets around what is said, as no message may; None
        for plain text, that may have been rendered with them."""
        if self.kind is str:
            return None
        special = {n for n, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        always = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id} - {None}
        names = self.tokenizer.convert_ids_to_tokens(sorted(special & {*self.rendered} | always))
        return re.compile("|".join(re.escape(name) for name in names))

    @cached_property
    def ends(self) -> set[int]:
        """The end token, and the one that the template ends an assistant's turn with."""
        ends = {int(self.tokenizer.eos_token_id)}
        if self.kind is list:
            last = [token for token in self.rendered if token not in self.blanks][-1]
            ends |= {last} & {*self.tokenizer.get_added_vocab().values()}
        return ends

    @cached_property
    def blanks(self) -> set[int]:
        """Tokens that may follow the end of a turn."""
        texts = self.tokenizer(["\n", "\n\n", " "], add_special_tokens=False)["input_ids"]
        return {token for ids in texts for token in ids}

    def check_template(self, name: str) -> None:
        """Render a question and its answer, and see that a model could learn to answer by it.

        Args:
            name: of the model, for messages.

        Raises:
            Refusal: there is no template; it fails, or does what no template may; it renders
                the prompt otherwise when an answer follows; the start token comes twice; the answer
                has no end token, or two.
        """
        if self.kind is not list:
            return
        choose = (
            "give another with --chat_template_path: a .jinja file, or the name of one of TRL's: "
            f"{', '.join(bundled_templates())}"
        )
        if not self.tokenizer.chat_template:
            raise Refusal(f"{name} has no chat template, and the data are messages: {choose}")
        try:
            prompt, both = self.ids([self.render(QUESTION, True)])[0], self.rendered
        except TemplateError as error:
            raise Refusal(f"the chat template of {name} fails: {error}; {choose}") from error
        tail = [token for token in both[len(prompt) :] if token not in self.blanks]
        if both[: len(prompt)] != prompt:
            wrong = (
                f"ends the prompt alone with {self.tokenizer.decode(prompt[-6:])!r}, and otherwise "
                "when an answer follows: the model would be trained on what it never sees"
            )
        elif both[:2] == [self.tokenizer.bos_token_id] * 2:
            wrong = "sets the start token twice"
        elif not tail or tail[-1] not in self.ends:
            wrong = "sets no end token after an answer: the model would never stop"
        elif len(tail) > 1 and tail[-2] in self.ends:
            wrong = "sets the end token twice after an answer"
        else:
            return
        raise Refusal(f"the chat template of {name} {wrong}; {choose}")

    def render(self, messages: list[dict], prompt: bool = False, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
            chat_template=self.template,
            **options,
        )

    def ids(self, rendered: list[str]) -> list[list[int]]:
        """Ids of text as it is; plain text gets what the tokenizer adds, as in TRL."""
        if not rendered:
            return []
        return self.tokenizer(rendered, add_special_tokens=self.kind is str)["input_ids"]


def end_tokens(
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
        known = ChatTemplate(tokenizer, kind if tokenizer.chat_template else str).ends
    return [token for token in dict.fromkeys([*theirs, *sorted(known)]) if token is not None]


def remember_end_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: type
) -> None:
    """Have a model's own generation_config know all ends, and with it whatever is saved of it."""
    config = model.generation_config
    ends = end_tokens(config, tokenizer, kind)
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


def prompt_kind(features: Features | None) -> type:
    """What the prompts of pairs are, list or str; list where nobody knows."""
    return str if features and isinstance(features.get("prompt"), Value) else list
