"""What is wrong with a pair: as text, as the tokens that the model will see, among all the others.

A pair with a fault would train without an error and teach nothing, or the wrong thing. One reason
a row, the first that is found; REASONS says what each means and what mends it.
"""

import json
import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from dpo.data import schema
from dpo.data.formats.layouts import Pair
from dpo.data.formats.parts import number
from dpo.data.formats.turns import Fault, where_they_part
from dpo.data.schema import PAIR
from dpo.data.tokenize import Tokenization

REASONS = {
    # the columns
    "missing": "a column is missing or null: fill it in, or take the row out",
    "not_messages": "a value of the wrong kind: a conversation is a list of messages, each with "
    "role and content",
    "mixed": "text where the other rows have messages, or messages where they have text",
    "not_text": "a message's content is no text",
    "unrated": "no two completions have a rating that is a number",
    # the text
    "empty": "a completion has no text",
    "blank": "a completion is nothing but blanks",
    "no_prompt": "the prompt has no text",
    "unknown_role": "a role that chat templates do not know: use system, user, assistant or tool",
    "wrong_role": "the prompt ends with the assistant, or a completion with somebody else",
    "system_differs": "a column holds another system prompt than the conversation itself",
    "prompts_differ": "chosen and rejected answer different prompts: nothing can be compared",
    "same": "chosen and rejected are the same: nothing is preferred",
    "broken_text": "characters that decoding has destroyed: read the source as UTF-8 again",
    "control_token": "the text spells one of the tokens that open, close or pad a turn",
    "scores_contradict": "the rejected completion has the higher score: labels or scores are wrong",
    # the tokens
    "template_refuses": "the chat template does not take this conversation",
    "doubled_start": "two start tokens: the text spells the one that the tokenizer adds",
    "doubled_end": "two end tokens: the text or the tokenizer adds one to the one that is added",
    "no_end": "the completion does not end with an end token: the model would never stop",
    "prompt_cut_away": "a completion fills max_length, no prompt is left: raise max_length",
    "prompt_too_long": "the prompt fills max_length, no completion is left: raise max_length",
    "no_completion": "a completion has no tokens that could be learned",
    "same_when_cut": "chosen and rejected differ only in what max_length cuts: raise max_length",
    # among the others
    "duplicate": "the same pair is there already",
    "labels_swapped": "the same pair is also there the other way round: which one is right?",
    "held_out_prompt": "the prompt is held out: training on it would spoil the measurement",
    # no fault: the row states no preference
    "tie": "both completions are equally good",
    "own_turns": "two models went on in conversations of their own, and their last answers cannot "
    "be compared: to train on such a row, cut both after the first answers",
    "alone": "the prompt has no second response to compare with",
}
NO_FAULT = ("tie", "own_turns", "alone")  # set aside and counted; they never stop a run
# Left out and counted apart: a pair that is too long is sound, and stops a run only where most are.
LENGTHS = ("prompt_too_long", "prompt_cut_away", "same_when_cut")
ROLES = {"system", "developer", "user", "assistant", "tool"}
SEEN = re.compile(r"[^\s\u200b-\u200f\u2060\ufeff]")  # neither a blank nor without a width
BROKEN = re.compile("[\ufffd\x00\ud800-\udfff]")


def plain(value: Any, reads: Callable[[str], bool]) -> Any:
    """Messages as the chat template will see them, without nulls and what else a data set keeps
    with them; a call of tools without a word says "". Text as it is.

    Args:
        reads: whether the template reads a key of a message.

    Raises:
        Fault: tools are called, and the template would leave that out.
    """
    if isinstance(value, str):
        return value
    found = []
    for message in value:
        if message.get("tool_calls"):
            if not reads("tool_calls"):
                raise Fault("template_refuses", "it does not render tool_calls")
            message = message | {"content": message.get("content") or ""}
        kept = {k: v for k, v in message.items() if v is not None}
        found.append({k: v for k, v in kept.items() if k in ("role", "content") or reads(k)})
    return found


def strings(value: Any) -> Iterator[str]:
    """All text in a prompt or completion: contents, thoughts, names, arguments of calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def last_said(value: str | list[dict[str, Any]]) -> str:
    """The text that a prompt or completion ends with; that of a call, where it is no more.

    Raises:
        Fault: the content of a message is no text.
    """
    if isinstance(value, str):
        return value
    for place, message in enumerate(value):
        content = message.get("content")
        if not isinstance(content, str):
            raise Fault("not_text", f"content of message {place + 1}: {content!r:.40}")
    last = value[-1] if value else {"content": ""}
    empty = not last["content"].strip()
    if empty and (last.get("tool_calls") or last.get("role") == "tool"):
        return str(last.get("tool_calls") or "no result")
    return last["content"]


def check_roles(pair: Pair) -> None:
    """Raises Fault if the prompt does not end where an answer begins, or a completion does not."""
    for name in PAIR:
        unknown = [m.get("role") for m in pair[name] if m.get("role") not in ROLES]
        if unknown:
            raise Fault("unknown_role", f"{name}: {unknown[0]!r}")
    if not pair["prompt"] and "user" in {m["role"] for m in pair["chosen"] + pair["rejected"]}:
        raise Fault("prompts_differ", "they do not begin alike")
    if not pair["prompt"]:
        raise Fault("no_prompt")
    answers = pair["chosen"], pair["rejected"]
    if any("user" in {message["role"] for message in answer[:-1]} for answer in answers):
        raise Fault("prompts_differ", where_they_part(*answers, before=len(pair["prompt"])))
    if pair["prompt"][-1]["role"] == "assistant":
        raise Fault("wrong_role", "the prompt ends with the assistant")
    for name in ("chosen", "rejected"):
        if pair[name][-1]["role"] != "assistant":
            raise Fault("wrong_role", f"{name} ends with {pair[name][-1]['role']}")


def check_pair(pair: Pair, kind: type, control: re.Pattern | None) -> None:
    """Find what is wrong with a pair as text.

    Args:
        pair: prompt, chosen and rejected, as `plain` leaves them; with score_chosen and
            score_rejected if it has them.
        kind: what the data set's pairs are, `list` (messages) or `str`.
        control: the tokens that steer the model, as text, if they may not be there.

    Raises:
        Fault: the first thing found.
    """
    for name in ("chosen", "rejected"):
        if not pair[name]:
            raise Fault("empty", name)
    said = {name: last_said(pair[name]) for name in PAIR}
    if kind is list:
        check_roles(pair)
    for name in ("chosen", "rejected"):
        if not SEEN.search(said[name]):
            raise Fault("blank" if said[name] else "empty", name)
    if not SEEN.search(said["prompt"]):
        raise Fault("no_prompt")
    for name in PAIR:
        for text in strings(pair[name]):
            if match := BROKEN.search(text):
                raise Fault("broken_text", f"{name}: {match[0]!r} at character {match.start() + 1}")
            if control and (match := control.search(text)):
                raise Fault("control_token", f"{name}: {match[0]}")
    better, worse = pair.get("score_chosen"), pair.get("score_rejected")
    if number(better) < number(worse):
        raise Fault("scores_contradict", f"{better} and {worse}")


def check_differ(rendered: tuple[str, str, str], pair: Pair) -> None:
    """Raises Fault if the model would see the same chosen as rejected; `pair` is as the data have
    it, with what the chat template does not render."""
    _, chosen, rejected = rendered
    if chosen != rejected:
        return
    unseen = set()
    for one, other in zip(pair["chosen"], pair["rejected"], strict=False):
        if isinstance(one, dict):
            unseen |= {key for key in {**one, **other} if one.get(key) != other.get(key)}
    names = ", ".join(sorted(unseen - {"content"}))
    raise Fault("same", names and f"they differ in {names}, which the chat template leaves out")


def check_tokens(
    pair: list[list[int]], max_length: int | None, truncation_mode: str, words: Tokenization
) -> None:
    """Find what is wrong with a pair as tokens.

    Args:
        pair: token ids of prompt, chosen and rejected, not cut.
        max_length: tokens of prompt and completion that are kept, of the end that
            truncation_mode says.
        words: what they were tokenised by.

    Raises:
        Fault: the first thing found.
    """
    prompt, chosen, rejected = pair
    start = words.tokenizer.bos_token_id
    if start is not None and prompt[:2] == [start, start]:
        raise Fault("doubled_start")
    for name, ids in (("chosen", chosen), ("rejected", rejected)):
        if not ids[not prompt :]:  # the first token of a row is predicted from nothing
            raise Fault("no_completion", name)
        tail = [token for token in ids[-4:] if token not in words.blanks]
        if not tail or tail[-1] not in words.ends:
            raise Fault("no_end", name)
        if len(tail) > 1 and tail[-2] in words.ends:
            raise Fault("doubled_end", name)
    if chosen == rejected:
        raise Fault("same", "as tokens")
    rows = [schema.cut_row(prompt, ids, max_length, truncation_mode) for ids in (chosen, rejected)]
    for before, ids in rows:
        if not ids[not before :]:
            raise Fault("prompt_too_long", f"{len(prompt)} tokens, max_length {max_length}")
    if rows[0] == rows[1]:
        raise Fault("same_when_cut", f"{len(rows[0][1])} tokens are left of each")
    if prompt and not all(before for before, _ in rows):  # by keep_end
        raise Fault("prompt_cut_away", f"{len(prompt)} tokens, max_length {max_length}")


def spoken(value: str | list[dict[str, Any]]) -> Any:
    """What a prompt or completion says whatever the model, for what is held against another's."""
    if isinstance(value, str):
        return value
    said = ("role", "content", "tool_calls")
    return [{key: m[key] for key in said if key in m} for m in value]


def digest(value: Any) -> int:
    """64 bits that two values share only if they are equal, blanks at the ends of text aside."""
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def repeated(digests: np.ndarray) -> dict[int, tuple[str, int]]:
    """The rows that say again, or deny, what another row says: the reason, and that other row.

    Args:
        digests: of prompt, chosen and rejected, shape (rows, 3).
    """
    found: dict[int, tuple[str, int]] = {}
    seen: dict[tuple[int, ...], int] = {}
    # Of many rows few are said again: only those are gone through one by one whose prompt and two
    # answers, in whichever order, come twice.
    prompts, *answers = digests.T.astype(np.uint64)
    mixed = prompts * np.uint64(3) + np.minimum(*answers) * np.uint64(5) + np.maximum(*answers)
    _, which, counts = np.unique(mixed, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[which] > 1)
    for row, key in zip(rows.tolist(), map(tuple, digests[rows].tolist()), strict=True):
        prompt, chosen, rejected = key
        swapped = (prompt, rejected, chosen)
        if key in seen:
            found[row] = ("duplicate", seen[key])
        elif swapped in seen:
            # Neither can be trusted: both are set aside.
            found[row] = ("labels_swapped", seen[swapped])
            found[seen[swapped]] = ("labels_swapped", row)
        seen.setdefault(key, row)
    return found
