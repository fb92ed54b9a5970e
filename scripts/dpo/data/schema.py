"""The columns of a table of pairs, and what `max_length` leaves of a pair, in either
`truncation_mode`: as TRL's collator cuts it."""

import hashlib
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Value

PAIR = ("prompt", "chosen", "rejected")  # text, or messages
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
BEST = "row of the best response"  # a column of pairs that several rows were made into
IMAGES = ("image", "images")  # with such a column TRL takes pairs for a vision model's
OPTIONS = "template_options"  # what the template gets beside the messages, as JSON, or nothing
# Of what is said, by which runs of different models are held against each other; and of what the
# model sees, by which rows repeat each other.
DIGESTS = ("prompt_digest", "chosen_digest", "rejected_digest")
RENDERED = ("prompt_rendered", "chosen_rendered", "rejected_rendered")
ABOUT = {"row": Value("int64"), "reason": Value("string"), "detail": Value("string")}
MERGED = "merged"  # whether the prompt's last token merges with an answer
PLACE = "place_of_pair"  # its row number, until the reference has scored it
OURS = {*PAIR, *IDS, OPTIONS, *DIGESTS, *RENDERED, *ABOUT, MERGED, "texts", BEST, PLACE}


def column(table: Dataset, name: str) -> np.ndarray:
    """A column of a table, shape (rows,). `datasets` would make each value in Python: 20 µs a row,
    on every process."""
    return table.select_columns([name]).with_format("arrow")[:][name].to_numpy()


def digest_of(pairs: Dataset) -> str:
    """Which pairs these are, by what they say, whatever the tokenizer."""
    said = np.array([column(pairs, name) for name in DIGESTS])
    return hashlib.sha256(said.tobytes()).hexdigest()[:16]


REFERENCE_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")  # of the answers, in nats


def kept_span(length: Any, max_length: int | None, truncation_mode: str) -> tuple[Any, Any]:
    """Where what is kept of a row, prompt and completion, begins and ends.

    Args:
        length: tokens of the row; a number, or an array of those of many rows.
        truncation_mode: keep_start, or keep_end, which takes the prompt's start away first.
    """
    kept = length if max_length is None else np.minimum(length, max_length)
    begin = length - kept if truncation_mode == "keep_end" else 0 * length
    return begin, begin + kept


def cut_row(
    prompt: list[int], completion: list[int], max_length: int | None, truncation_mode: str
) -> tuple[list[int], list[int]]:
    """The token ids that are kept of a prompt and of its completion."""
    start = len(prompt)
    begin, end = kept_span(start + len(completion), max_length, truncation_mode)
    return prompt[begin:end], completion[max(begin - start, 0) : max(end - start, 0)]


def token_counts(pairs: Dataset) -> tuple[np.ndarray, ...]:
    """Tokens of each prompt, chosen and rejected, not cut; each of shape (rows,)."""
    table = pairs.select_columns([*IDS]).with_format("arrow")[:]
    length = pc.list_value_length  # pyright: ignore[reportAttributeAccessIssue]  made as it loads
    counts = (pc.fill_null(length(table[name]), 0) for name in IDS)
    return tuple(count.to_numpy().astype(int) for count in counts)


def needed_length(pairs: Dataset) -> np.ndarray:
    """The `max_length` that would keep each pair whole, shape (rows,)."""
    prompt, chosen, rejected = token_counts(pairs)
    return prompt + np.maximum(chosen, rejected)


def kept_lengths(
    prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, *cut: int | str | None
) -> tuple[np.ndarray, ...]:
    """What is kept of each pair, in tokens, each of shape (pairs,): the prompt that its two rows
    have in common, the chosen row and the rejected one.

    Cut at the end, both rows have the same of the prompt. Cut at the start, they have the same of
    it only where the same number of tokens is taken from both; else the rows begin at different
    places, and have nothing in common but by chance.
    """
    (begin, end), (other, last) = (kept_span(prompt + each, *cut) for each in (chosen, rejected))
    left = np.minimum(prompt, end) - np.minimum(prompt, begin)
    return np.where(begin == other, left, 0), end - begin, last - other


def pair_rows(held_out: Dataset, *cut: int | str | None) -> list[tuple[list[int], list[int]]]:
    """All chosen, then all rejected, as (prompt ids, completion ids), cut as in training: `cut` is
    max_length and truncation_mode."""
    return [
        cut_row(prompt, completion, *cut)
        for side in IDS[1:]
        for prompt, completion in zip(held_out[IDS[0]], held_out[side], strict=True)
    ]


def cut_lengths(dataset: Dataset, *cut: int | str | None) -> tuple[np.ndarray, ...]:
    """Tokens of each prompt, as far as both rows of the pair have it, of prompt and chosen, and of
    prompt and rejected, as cut in training; each of shape (rows,)."""
    return kept_lengths(*token_counts(dataset), *cut)


def shared_lengths(dataset: Dataset, *cut: int | str | None) -> np.ndarray:
    """Tokens of each pair with the prompt counted once, where both rows have it, cut as in
    training, shape (rows,). What completions begin alike with is counted twice, though it is
    computed once: so many at most."""
    prompt, chosen, rejected = cut_lengths(dataset, *cut)
    return chosen + rejected - prompt


def longest_row(data: Any, max_length: int | None) -> float:
    """Tokens of the longest row of prompt and completion, as cut in training; as long as they may
    be where rows are no tokens yet, or a stream."""
    most = np.inf if max_length is None else max_length
    if isinstance(data, dict):
        return max((longest_row(each, max_length) for each in data.values()), default=0)
    if data is None or (isinstance(data, Dataset) and not len(data)):
        return 0
    if not isinstance(data, Dataset) or not {*IDS} <= {*data.column_names}:
        return most
    return min(needed_length(data).max(), most)
