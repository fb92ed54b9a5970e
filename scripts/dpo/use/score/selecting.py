"""The share of pairs whose implicit margin is smallest, or largest, as a data set.

Qi et al. 2025 (arXiv 2508.04149) train on the tenth with the smallest: by margins with their sign,
as their code sorts them, so that pairs come first whose order the policy holds to be wrong.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core.files import written_to, written_whole
from dpo.core.refusal import Refusal
from dpo.use.score.scoring import GOES_ON, read_lines

ROWS = 4096  # at a time
DIGIT = 16  # bits of a number that are told apart in one pass


def keys_of(folder: Path, sign: int) -> Iterator[np.ndarray]:
    """The margins of all pairs times `sign`, as whole numbers in the same order: the bits of a
    float are, but for those below zero, which stand backwards."""
    margins = (line["margin"] for line in read_lines(folder) if "margin" in line)
    while block := [*islice(margins, ROWS)]:
        bits = (sign * np.array(block) + 0.0).view(np.uint64)
        yield np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def smallest(keys: Callable[[], Iterator[np.ndarray]], count: int) -> tuple[int, int]:
    """The largest of the `count` smallest numbers of 64 bits, and how many of them are equal to it.

    In the memory of one histogram: each pass tells 16 bits more of it.
    """
    found = 0
    for shift in range(64 - DIGIT, -1, -DIGIT):
        histogram = np.zeros(1 << DIGIT, dtype=np.int64)
        for block in keys():
            # Those that begin as the number does, as far as it is known.
            known = (
                block if shift == 64 - DIGIT else block[block >> np.uint64(shift + DIGIT) == found]
            )
            digits = (known >> np.uint64(shift)) & np.uint64((1 << DIGIT) - 1)
            histogram += np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)
        below = np.cumsum(histogram)
        digit = int(np.searchsorted(below, count))
        count -= int(below[digit] - histogram[digit])
        found = found << DIGIT | digit
    return found, count


def select(
    folder: Path, rows: Iterator[dict[str, Any]], share: float, largest: bool
) -> tuple[Path, int]:
    """Write the rows of a share of the pairs, as they were found and in their order, into a file
    beside the scores.

    Args:
        rows: of the file, all of them.

    Returns:
        The file, and how many rows it has: one at least.

    Raises:
        Refusal: there are no pairs, or no room.
    """
    sign = -1 if largest else 1
    total = sum(len(block) for block in keys_of(folder, sign))
    if not total:
        raise Refusal("--select: no pair of the file has a margin to select by")
    wanted = max(round(share * total), 1)
    limit, left = smallest(lambda: keys_of(folder, sign), wanted)
    path = folder / f"{'largest' if largest else 'smallest'}-{share:g}.jsonl"
    keys = (key for block in keys_of(folder, sign) for key in block.tolist())
    with written_to(path, GOES_ON), written_whole(path) as file:
        for line, row in zip(read_lines(folder), rows, strict=True):
            if "margin" not in line:
                continue
            key = next(keys)
            left -= key == limit
            if key < limit or (key == limit and left >= 0):
                file.write(f"{json.dumps(row, ensure_ascii=False, default=str)}\n")
    return path, wanted
