"""The tokens of a pair as whole characters: one may take several tokens, and a token hold parts of
two."""

from dataclasses import dataclass
from typing import Any

import regex
from transformers import PreTrainedTokenizerBase

from dpo.data import schema

PART = "\ufffd"  # what a decoder makes of a part of a character
ANSWERS = ("chosen", "rejected")


@dataclass
class Piece:
    """Tokens `start` to `stop` of a row, as few as make whole characters, and what they spell."""

    text: str
    start: int
    stop: int
    special: bool = False
    kept: bool = True  # all of it, by max_length


def pieces(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The tokens of a row, each with the fewest of its neighbours that make whole characters as
    people see them: an emoji of several code points is one."""
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: list[Piece] = []
    known = start = 0  # from the one to the other is shown: what precedes decides how it is spelt

    def text(stop: int) -> str:
        both, before = (
            str(tokenizer.decode(ids[known:end], clean_up_tokenization_spaces=False))
            for end in (stop, start)
        )
        return both[len(before) :]

    for place, token in enumerate(ids):
        alone = token in special
        if alone and start < place:  # a part of a character, that nothing makes whole
            found.append(Piece(text(place), start, place))
            known, start = start, place
        spelt = str(tokenizer.decode([token])) if alone else text(place + 1)
        last = place + 1 == len(ids)
        if alone or last or (spelt and not spelt.endswith(PART)):
            found.append(Piece(spelt, start, place + 1, alone))
            known, start = start, place + 1
    return _joined(found)


def _joined(found: list[Piece]) -> list[Piece]:
    """Pieces that begin within a character taken together with the one before."""
    written = "".join(piece.text for piece in found)
    begins = {match.start() for match in regex.finditer(r"\X", written)}
    joined: list[Piece] = []
    at = 0
    for piece in found:
        apart = at in begins or piece.special or joined[-1].special
        if piece.text and joined and not apart:
            joined[-1].text += piece.text
            joined[-1].stop = piece.stop
        else:
            joined.append(piece)
        at += len(piece.text)
    return joined


def shown(
    pair: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *cut: int | str | None
) -> dict[str, tuple[str, list[Piece]]]:
    """Prompt, chosen and rejected of a pair: a few words on each, and its tokens as pieces.

    Cut at the start, the two rows of a pair may have more or less of the prompt: it is shown as the
    row has it that has more, and each completion says how many tokens of it are before its own.

    Args:
        cut: max_length and truncation_mode.
    """
    prompt, found = pair["prompt_ids"], {}
    start = len(prompt)
    answers = {name: pair[f"{name}_ids"] for name in ANSWERS}
    rows = [range(*schema.kept_span(start + len(ids), *cut)) for ids in answers.values()]
    either = range(min(row.start for row in rows), max(row.stop for row in rows))
    for (name, answer), row in zip(answers.items(), rows, strict=True):
        whole = pieces(prompt + answer, tokenizer)
        if not found:
            found["prompt"] = (said(0, start, either), within(whole, 0, start, either))
        words = said(start, start + len(answer), row)
        if row.start:
            words += f", after the prompt's last {max(start - row.start, 0)}"
        found[name] = (words, within(whole, start, start + len(answer), row))
    return found


def said(start: int, stop: int, kept: range) -> str:
    cut = stop - start - len(range(max(kept.start, start), min(kept.stop, stop)))
    return f"{stop - start} tokens" + f", {cut} of them cut" * bool(cut)


def within(whole: list[Piece], start: int, stop: int, kept: range) -> list[Piece]:
    """The pieces that end between two places of a row. A character in which the prompt ends and the
    completion begins is the completion's."""
    return [
        Piece(p.text, p.start, p.stop, p.special, p.start >= kept.start and p.stop <= kept.stop)
        for p in whole
        if start < p.stop <= stop
    ]
