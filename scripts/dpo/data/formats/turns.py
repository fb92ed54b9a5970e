"""What somebody said, in whatever form a data set keeps it, as messages with role and content."""

import json
import re
from itertools import pairwise
from typing import Any

from trl import maybe_convert_to_chatml

ROLES = {  # and ours, in capitals or not
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "ai", "model"), "assistant"),
    **{"observation": "tool", "function_response": "tool", "tool_response": "tool"},
}
CALLED = "tool_calls"
CALLS = ("function_call", "tool_call")  # turns of an assistant that calls a tool
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
PAIR = (  # in an object of a history
    ("user", "human", "question", "prompt", "query", "instruction"),
    ("assistant", "gpt", "bot", "model", "answer", "response", "output"),
)
ANSWER = "\n\nAssistant:"

Message = dict[str, Any]


class Fault(Exception):
    """Why a row is no pair to learn from: a key of lint.REASONS, and where in the row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def as_messages(value: Any, role: str, calls: bool = True) -> list[Message]:
    """Messages with `role` and `content`, from messages, ShareGPT's turns, one turn, or text.

    Args:
        calls: whether the chat template renders `tool_calls`. If not, a call stays the text it is.

    Raises:
        Fault: it is neither.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Fault("not_messages", f"{type(value).__name__} instead of messages")
    turns = maybe_convert_to_chatml({"messages": [dict(turn) for turn in turns]})["messages"]
    return [_message(turn, calls) for turn in turns]


def _message(turn: Message, calls: bool) -> Message:
    # Conversations that differ in nulls alone begin alike.
    turn = {k: v for k, v in turn.items() if v is not None or k in ("role", "content")}
    role, content = role_of(turn), turn.get("content")
    if role in CALLS:
        found = tool_calls(content) if calls else None
        said = {"content": None, "tool_calls": found} if found else {"content": content}
        return turn | {"role": "assistant"} | said
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        turn = turn | {"content": "".join(part.get("text") or "" for part in content)}
    return turn | {"role": role}


def role_of(turn: Message) -> Any:
    """Whose turn this is, in the words of chat templates where it is known."""
    role = turn.get("role", turn.get("from"))
    known = role.strip().lower() if isinstance(role, str) else None
    return known if known in CALLS else ROLES.get(known or "", role)


def tool_calls(text: Any) -> list[Message] | None:
    """The calls that JSON text spells, one or a list of them; None if it spells none."""
    try:
        found = json.loads(text)
        found = [found] if isinstance(found, dict) else found
        calls = [{"name": call["name"], "arguments": call["arguments"]} for call in found]
        for call in calls:
            if isinstance(call["arguments"], str):
                call["arguments"] = json.loads(call["arguments"])
    except (TypeError, KeyError, ValueError):
        return None
    return [{"type": "function", "function": call} for call in calls]


def where_they_part(chosen: list[Message], rejected: list[Message], before: int = 0) -> str:
    """The first turn in which two conversations differ, counted after `before` earlier ones."""
    turns = zip(chosen, rejected, strict=False)
    for turn, (one, other) in enumerate(turns, before + 1):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                both = f"{one.get(key)!r:.40} in chosen, {other.get(key)!r:.40} in rejected"
                return f"turn {turn} ({one.get('role')}) has another {key}: {both}"
    longer = "chosen" if len(chosen) > len(rejected) else "rejected"
    return f"{longer} goes on after turn {before + min(len(chosen), len(rejected))}"


def spoken(text: str) -> tuple[str, str]:
    """A dialogue as text, cut after its last `Assistant:` into prompt and completion, as the DPO
    paper's code cuts Anthropic's data.

    Raises:
        Fault: nobody answers.
    """
    prompt, mark, completion = text.rpartition(ANSWER)
    if not mark:
        raise Fault("wrong_role", "no turn opens with Assistant:")
    return prompt + mark, completion


def asks(text: Any) -> bool:
    """Whether this is a dialogue as text in which the assistant is to speak next."""
    said = text.strip() if isinstance(text, str) else ""
    return said.startswith("Human:") and said.endswith(ANSWER)


def turns_of(text: str) -> list[Message]:
    """A dialogue as text, as messages.

    Raises:
        Fault: something stands before the first turn.
    """
    before, *parts = TURN.split(text)
    if before.strip():
        raise Fault("wrong_role", f"nobody says what comes first: {before.strip():.40}")
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def as_anthropic_has_it(text: str) -> str:
    """A dialogue as text whose turns open after other line ends than two `\\n`, with those; any
    other text as it is."""
    if not text.lstrip().startswith("Human:") or ANSWER in text:
        return text
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    if ANSWER in lines or "\nAssistant:" not in lines:
        return lines if ANSWER in lines else text
    return re.sub(r"\s*\n(Human|Assistant):", r"\n\n\1:", lines)


def earlier(history: list[Any], calls: bool = True) -> list[Message]:
    """The turns of a `history`: messages, pairs of what a user and the assistant said, as lists or
    objects, or what they said in turn. A pair in which both are empty is none.

    Raises:
        Fault: it is neither, or one of a pair is empty.
    """
    pairs = (isinstance(turn, dict) and not {"role", "from"} & {*turn} for turn in history)
    if history and all(pairs):
        history = [[_one_of(turn, names) for names in PAIR] for turn in history]
    if all(isinstance(turn, dict) for turn in history):
        messages = as_messages(history, "", calls)
    else:
        if all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in history):
            history = [text for turn in history for text in turn]
        if len(history) % 2 or not all(isinstance(text, (str, type(None))) for text in history):
            raise Fault(
                "not_messages", "history: neither messages nor pairs of question and answer"
            )
        roles = ("user", "assistant")
        messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(history)]
    kept = [turn for turn in messages if str(turn.get("content") or "").strip() or turn.get(CALLED)]
    who = [turn.get("role") for turn in kept if turn.get("role") != "system"]
    who = ["assistant", *who, "user"]
    if kept and len(kept) < len(messages) and any(one == two for one, two in pairwise(who)):
        raise Fault("not_text", "history: one of a question and its answer is empty")
    return kept


def _one_of(turn: Message, names: tuple[str, ...]) -> Any:
    """What stands under the first of these names that is there.

    Raises:
        Fault: there is no such name.
    """
    name = next((name for name in names if name in turn), None)
    if name is None:
        raise Fault("not_messages", f"history: {', '.join(turn)} instead of {' or '.join(names)}")
    return turn[name]
