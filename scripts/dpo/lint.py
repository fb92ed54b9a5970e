"""What is wrong with a pair: as text, as the tokens that the model will see, among all the others.

A pair with a fault would train without an error and teach nothing, or the wrong thing. One reason
a row, the first that is found; REASONS says what each means and what mends it.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import Any

import numpy as np

from dpo import cutting
from dpo.choosing import number
from dpo.layouts import Fault, Pair
from dpo.tokenization import Tokenization

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
    "prompt_too_long": "the prompt fills max_length, no completion is left: raise max_length",
    "no_completion": "a completion has no tokens that could be learned",
    "same_when_cut": "chosen and rejected differ only in what max_length cuts: raise max_length",
    # among the others
    "duplicate": "the same pair is there already",
    "labels_swapped": "the same pair is also there the other way round: which one is right?",
    "held_out_prompt": "the prompt is held out: training on it would spoil the measurement",
    # no fault: the row states no preference
    "tie": "both completions are equally good",
    "alone": "the prompt has no second response to compare with",
}
NO_FAULT = ("tie", "alone")  # set aside and counted like the others; they never stop a run
ROLES = {"system", "developer", "user", "assistant", "tool"}
COLUMNS = ("prompt", "chosen", "rejected")
BROKEN = re.compile("[\ufffd\x00\ud800-\udfff]")


def texts(value: str | list[dict[str, Any]]) -> list[str]:
    """All text of a prompt or completion.

    Raises:
        Fault: the content of a message is no text. An assistant may call tools without a word.
    """
    if isinstance(value, str):
        return [value]
    found = []
    for place, message in enumerate(value):
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if not isinstance(content, str):
            raise Fault("not_text", f"content of message {place + 1}: {content!r:.40}")
        found.append(content)
    return found


def check_roles(pair: Pair) -> None:
    """Raises Fault if the prompt does not end where an answer begins, or a completion does not."""
    for name in COLUMNS:
        unknown = [m.get("role") for m in pair[name] if m.get("role") not in ROLES]
        if unknown:
            raise Fault("unknown_role", f"{name}: {unknown[0]!r}")
    if not pair["prompt"] and "user" in {m["role"] for m in pair["chosen"] + pair["rejected"]}:
        raise Fault("prompts_differ", "they do not begin alike")
    if not pair["prompt"]:
        raise Fault("no_prompt")
    if pair["prompt"][-1]["role"] == "assistant":
        raise Fault("wrong_role", "the prompt ends with the assistant")
    for name in ("chosen", "rejected"):
        if "user" in {message["role"] for message in pair[name][:-1]}:
            raise Fault("prompts_differ", f"{name} has a user's turn that the other has not")
        if pair[name][-1]["role"] != "assistant":
            raise Fault("wrong_role", f"{name} ends with {pair[name][-1]['role']}")


def check_pair(pair: Pair, kind: type, control: re.Pattern | None) -> None:
    """Find what is wrong with a pair as text.

    Args:
        pair: prompt, chosen and rejected; with score_chosen and score_rejected if it has them.
        kind: what the data set's pairs are, `list` (messages) or `str`.
        control: the tokens that steer the model, as text, if they may not be there.

    Raises:
        Fault: the first thing found.
    """
    for name in COLUMNS:
        if not isinstance(pair[name], kind):
            raise Fault("mixed", f"{name} is {'text' if kind is list else 'no text'}")
    for name in ("chosen", "rejected"):
        if not pair[name]:
            raise Fault("empty", name)
    found = {name: texts(pair[name]) for name in COLUMNS}
    if kind is list:
        check_roles(pair)
    for name in ("chosen", "rejected"):
        said = found[name][-1:] or ["tool call"]
        if not said[0].strip():
            raise Fault("blank" if said[0] else "empty", name)
    if not (found["prompt"] or [""])[-1].strip():
        raise Fault("no_prompt")
    for name in COLUMNS:
        for text in found[name]:
            if match := BROKEN.search(text):
                raise Fault("broken_text", f"{name}: {match[0]!r} at character {match.start() + 1}")
            if control and (match := control.search(text)):
                raise Fault("control_token", f"{name}: {match[0]}")
    if found["chosen"] == found["rejected"] and pair["chosen"] == pair["rejected"]:
        raise Fault("same")
    better, worse = pair.get("score_chosen"), pair.get("score_rejected")
    if number(better) < number(worse):
        raise Fault("scores_contradict", f"{better} and {worse}")


def check_tokens(
    prompt: list[int],
    chosen: list[int],
    rejected: list[int],
    max_length: int | None,
    truncation_mode: str,
    words: Tokenization,
) -> None:
    """Find what is wrong with a pair as tokens.

    Args:
        prompt, chosen, rejected: ids, not cut.
        max_length: tokens of prompt and completion that are kept.
        truncation_mode: of which end of them.
        words: what they were tokenised by.

    Raises:
        Fault: the first thing found.
    """
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
    rows = [cutting.row(prompt, ids, max_length, truncation_mode) for ids in (chosen, rejected)]
    for before, ids in rows:
        if not ids[not before :]:
            raise Fault("prompt_too_long", f"{len(prompt)} tokens, max_length {max_length}")
    if rows[0] == rows[1]:
        raise Fault("same_when_cut", f"{len(rows[0][1])} tokens are left of each")


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is said in messages, and by whom, without what else a data set keeps with them."""
    said = ("role", "content", "tool_calls")
    return [{key: m[key] for key in said if m.get(key) is not None} for m in messages]


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
