"""The tokenizer, its chat template, and a pair as the tokens that the model will see."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dpo.data.formats.layouts import Fault, Pair
from dpo.models import adapters
from dpo.models.model_files import tokenizer_of
from dpo.recipe.parse import Recipe, choices

TEMPLATES = files("trl") / "chat_templates"
QUESTION = [{"role": "user", "content": "question"}]
GIVEN = ("tools", "chat_template_kwargs")  # columns that a chat template is given beside messages
DATE = re.compile(r"""strftime_now\(\s*(["'])(.+?)\1\s*\)""")
ANSWER = [{"role": "assistant", "content": "answer"}]


def bundled_templates() -> list[str]:
    """Names of the chat templates that TRL brings along."""
    names = [path.name.removesuffix(".jinja") for path in TEMPLATES.iterdir()]
    return sorted(name for name in names if not name.endswith((".md", "_training")))


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the chat template that the recipe names, if it names one.

    Raises:
        SystemExit: there is no such template, the tokenizer cannot be read, or has no end token.
    """
    given, (name, revision) = recipe.run.chat_template_path, adapters.tokenizer_home(recipe.model)
    trusted = recipe.training.trust_remote_code
    tokenizer = tokenizer_of(name, revision, trusted)
    if tokenizer.eos_token is None:
        raise SystemExit(
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
        names = bundled_templates()
        raise SystemExit(
            f"chat_template_path: {given} is no file, and no template of TRL: "
            f"{choices(given, names)}"
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise SystemExit(
            f"the tokenizer of {name} has several chat templates and none of the name default: "
            f"{', '.join(tokenizer.chat_template)}: save one as a file for chat_template_path"
        )
    return tokenizer


def options_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a row gives to the chat template beside its messages: its `tools` and what its
    `chat_template_kwargs` are, each as it is or as JSON.

    Raises:
        Fault: tools are no list, or the options no object.
    """
    more = {name: row.get(name) or None for name in GIVEN}
    for name, value in more.items():
        kind, words = (list, "list") if name == "tools" else (dict, "object")
        try:
            more[name] = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise Fault("not_messages", f"{name} is no JSON: {error}") from error
        if not isinstance(more[name], (kind, type(None))):
            raise Fault("not_messages", f"{name} is no {words}: {value!r:.40}")
    tools, options = more.values()
    return ({} if tools is None else {"tools": tools}) | (options or {})


class Tokenization:
    """A tokenizer over pairs of one kind.

    `kind` is list for messages, which are rendered with the chat template, str for plain text, to
    which TRL adds the end token. `day` is the date that a template may write into a prompt, today
    without one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, kind: type, day: datetime.date | None = None
    ):
        self.tokenizer, self.kind = tokenizer, kind
        self.day = day or datetime.date.today()
        self._reads: dict[str, bool] = {}

    @cached_property
    def template(self) -> str | None:
        """The chat template with `day` written where it would write today's date; None where the
        tokenizer's own has no date."""
        own = self.tokenizer.chat_template
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
        return self._ids([self._render(QUESTION + ANSWER)])[0]

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
        ends = {self.tokenizer.eos_token_id}
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
            SystemExit: there is no template; it fails, or does what no template may; it renders
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
            raise SystemExit(f"{name} has no chat template, and the data are messages: {choose}")
        try:
            prompt, both = self._ids([self._render(QUESTION, True)])[0], self.rendered
        except TemplateError as error:
            raise SystemExit(f"the chat template of {name} fails: {error}; {choose}") from error
        wrong = None
        if both[: len(prompt)] != prompt:
            wrong = (
                f"ends the prompt alone with {self.tokenizer.decode(prompt[-6:])!r}, and otherwise "
                "when an answer follows: the model would be trained on what it never sees"
            )
        elif both[:2] == [self.tokenizer.bos_token_id] * 2:
            wrong = "sets the start token twice"
        else:
            tail = [token for token in both[len(prompt) :] if token not in self.blanks]
            if not tail or tail[-1] not in self.ends:
                wrong = "sets no end token after an answer: the model would never stop"
            elif len(tail) > 1 and tail[-2] in self.ends:
                wrong = "sets the end token twice after an answer"
        if wrong:
            raise SystemExit(f"the chat template of {name} {wrong}; {choose}")

    def _render(self, messages: list[dict], prompt: bool = False, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
            chat_template=self.template,
            **options,
        )

    def _ids(self, rendered: list[str]) -> list[list[int]]:
        """Ids of text as it is; plain text gets what the tokenizer adds, as in TRL."""
        if not rendered:
            return []
        return self.tokenizer(rendered, add_special_tokens=self.kind is str)["input_ids"]

    def texts(self, pair: Pair) -> tuple[str, str, str]:
        """The prompt alone, and followed by chosen and by rejected, as they go into the tokenizer.

        Raises:
            Fault: the template does not take the conversation.
        """
        prompt, end = pair["prompt"], self.tokenizer.eos_token
        if self.kind is str:
            answers = [pair[name] for name in ("chosen", "rejected")]
            whole = [prompt + text + end * (not text.endswith(end)) for text in answers]
            return prompt, *whole
        try:
            options = options_of(pair)
            return (
                self._render(prompt, True, **options),
                self._render(prompt + pair["chosen"], **options),
                self._render(prompt + pair["rejected"], **options),
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise Fault("template_refuses", str(error)) from error

    def options(self, pair: Pair) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the template is given beside a pair's messages; and of it what the model sees,
        without which the prompt would read otherwise. Plain text is given nothing."""
        if self.kind is str:
            return {}, {}
        prompt, given = pair["prompt"], options_of(pair)
        seen = given
        for name in given:
            fewer = {key: value for key, value in seen.items() if key != name}
            with contextlib.suppress(TemplateError, TypeError, ValueError):  # it is needed
                same = self._render(prompt, True, **fewer) == self._render(prompt, True, **seen)
                seen = fewer if same else seen
        return given, seen

    def __call__(
        self, texts: list[tuple[str, str, str]]
    ) -> list[tuple[list[int], list[int], list[int], int]]:
        """Ids of prompt, chosen and rejected of each pair, as TRL's DPOTrainer takes them.

        The completion begins where the prompt alone and prompt and completion part, and that is
        not always after the prompt: a tokenizer may merge across it.

        Returns, for each pair, the three lists, and how many tokens of the prompt alone are merged
        into the completions.
        """
        ids = self._ids([text for triple in texts for text in triple])
        return [self._cut(*ids[at : at + 3]) for at in range(0, len(ids), 3)]

    @staticmethod
    def _cut(prompt: list[int], chosen: list[int], rejected: list[int]):
        length = len(prompt)
        for whole in (chosen, rejected):
            if whole[:length] != prompt[:length]:
                both = min(length, len(whole))
                differ = np.not_equal(prompt[:both], whole[:both])
                length = int(differ.argmax()) if differ.any() else both
        return prompt[:length], chosen[length:], rejected[length:], len(prompt) - length
