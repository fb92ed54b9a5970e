"""A model that one talks to: how it is asked, what it has heard, how it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import TextStreamer

from dpo.core.refusal import one_line
from dpo.data import fits
from dpo.evaluation.contestants import Contestant
from dpo.models.sampling import Completion, Messages, Prompt, prompt_token_ids, sample


@dataclass
class Drawing:
    """How answers are drawn. Every answer begins at `seed`, so that two models get the same random
    numbers, and the same question the same answer."""

    seed: int
    temperature: float  # 0: the likeliest token each time
    max_new_tokens: int


def untold(name: str) -> str:
    return f"the {name} is asked without a chat template, and takes no system turn"


class Unasked(Exception):
    """A model cannot be asked this: in one line why, and what to do."""


class Heard(TextStreamer):
    """Hands the words of an answer on as they come, and keeps them."""

    def __init__(self, tokenizer: Any, hear: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.hear, self.said = hear, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.said += text
        self.hear(text)


class Speaker:
    """A model under the name that it has in the conversation, with what was said to it and by it.

    Args:
        plain: ask it in text as it stands, as a model is that was trained on such; without it by
            its chat template, if it has one.
    """

    def __init__(self, name: str, who: Contestant, device: str, plain: bool = False):
        self.name, self.who, self.device = name, who, device
        self.model, self.tokenizer = who.load(device), who.tokenizer()
        self.chats = bool(self.tokenizer.chat_template) and not plain
        self.room = fits.positions(self.model.config) or float("inf")
        self.begin()

    def begin(self, system: str = "") -> None:
        """Forget what was said; `system` is told first."""
        self.messages: Messages = [{"role": "system", "content": system}] if system else []
        self.seeds: list[int] = []  # of its answers

    def asked(self, text: str) -> Prompt:
        """What the model is asked: all that was said so far, or without a chat template the text
        alone."""
        return [*self.messages, {"role": "user", "content": text}] if self.chats else text

    def token_ids(self, text: str) -> list[int]:
        """The prompt as the model sees it.

        Raises:
            Unasked: its template does not take it, it is empty, or there is no room for an answer.
        """
        try:
            ids = prompt_token_ids(self.tokenizer, self.asked(text))
        except TemplateError as error:
            why = one_line(error)
            raise Unasked(f"its chat template does not take this ({why}): /reset") from error
        if not ids:
            raise Unasked("the prompt has no tokens")
        if len(ids) >= self.room:
            raise Unasked(
                f"the conversation has {len(ids):,} tokens, and the {self.name} room for "
                f"{int(self.room):,}: /reset begins anew"
            )
        return ids

    def answer(
        self, text: str, how: Drawing, hear: Callable[[str], None] | None = None
    ) -> Completion:
        """What the model says to `text`, which both join what it has heard.

        Args:
            hear: is given the words as they come, and Ctrl-C stops them alone.

        Raises:
            Unasked: it cannot be asked.
        """
        ids = self.token_ids(text)
        heard = Heard(self.tokenizer, hear or (lambda _: None))
        most = int(min(how.max_new_tokens, self.room - len(ids)))
        drawn = {"temperature": how.temperature, "seed": how.seed, "max_new_tokens": most}
        drawn |= {"kind": list if self.chats else str, "streamer": heard}
        try:
            with self.who.autocast(self.device):
                (said,) = sample(self.model, self.tokenizer, [ids], **drawn)
        except KeyboardInterrupt:
            if hear is None:
                raise
            heard.end()
            said = Completion(heard.said.strip(), [], False)
        self.messages = [*self.messages, {"role": "user", "content": text}]
        self.messages += [{"role": "assistant", "content": said.text}]
        self.seeds.append(how.seed)
        return said
