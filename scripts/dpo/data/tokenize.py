"""A pair as the tokens that the model will see."""

import contextlib
import json
from typing import Any

from jinja2 import TemplateError
from trl.data_utils import common_prefix_length

from dpo.data.formats.layouts import Fault, Pair
from dpo.models.chat_template import ChatTemplate

GIVEN = ("tools", "chat_template_kwargs")  # columns that a chat template is given beside messages


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


class Tokenization(ChatTemplate):
    """A tokenizer and its chat template over pairs."""

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
                self.render(prompt, True, **options),
                self.render(prompt + pair["chosen"], **options),
                self.render(prompt + pair["rejected"], **options),
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
                same = self.render(prompt, True, **fewer) == self.render(prompt, True, **seen)
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
        ids, found = self.ids([text for triple in texts for text in triple]), []
        for prompt, chosen, rejected in zip(ids[::3], ids[1::3], ids[2::3], strict=True):
            shared = (common_prefix_length(prompt, whole) for whole in (chosen, rejected))
            length = min(shared)
            merged = len(prompt) - length
            found.append((prompt[:length], chosen[length:], rejected[length:], merged))
        return found
