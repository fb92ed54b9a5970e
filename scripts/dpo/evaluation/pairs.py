"""What a policy prefers on held-out pairs, and on parts of them."""

from dataclasses import asdict

import numpy as np
from datasets import ClassLabel, Dataset, Value

from dpo.core.stats import accuracy, bootstrap, numbered, share
from dpo.data import schema
from dpo.models.scoring import Scored

ALIKE = 0.1  # lengths that differ by less are about equal
MOST_GROUPS = 20  # a column with more values names no categories


def of_pairs(scored: Scored, held_out: Dataset, beta: float) -> dict:
    """Accuracy and margin of the implicit reward, as `by_group` has them, and of each pair.

    Returns:
        Also `ceiling`, the accuracy that the known reward itself reaches on these noisy labels
        (None if it is not known); `margins`, pair by pair, 0 for ties; `prompt_numbers`, which
        pairs are of one prompt, and `digest`, which pairs they are: those of two runs are held
        against each other.
    """
    margins, ceiling = scored.margins(beta), None
    if "vader_chosen" in held_out.column_names:
        chosen, rejected = (
            schema.column(held_out, f"vader_{side}") for side in ("chosen", "rejected")
        )
        ceiling = float(accuracy(chosen - rejected).mean())
    return by_group(margins, held_out) | {
        "ceiling": ceiling,
        # Six digits and not six decimals: with a small β none of them would be left.
        "margins": [float(f"{margin:.6g}") for margin in margins],
        "prompt_numbers": numbered(schema.column(held_out, "prompt_digest")).tolist(),
        "digest": schema.digest_of(held_out),
    }


def by_group(margins: np.ndarray, held_out: Dataset) -> dict:
    """Accuracy and margin of the implicit reward on all pairs, by which answer is longer, and by
    each column of the data that names categories.

    Args:
        margins: implicit reward of the chosen answer minus that of the rejected, 0 where it is no
            more than rounding, shape (pairs,).
    """
    prompts = np.arange(len(margins))
    if "prompt_digest" in held_out.column_names:
        prompts = schema.column(held_out, "prompt_digest")

    def of(mask: np.ndarray, **name) -> dict:
        correct = share(accuracy(margins[mask]), prompts[mask])
        margin = asdict(bootstrap(margins[mask], prompts=prompts[mask]))
        ties, asked = int((margins[mask] == 0).sum()), len(np.unique(prompts[mask]))
        counts = {"count": int(mask.sum()), "prompts": asked, "ties": ties}
        return name | counts | {"accuracy": asdict(correct), "margin": margin}

    chosen, rejected = (np.array([len(ids) for ids in held_out[side]]) for side in schema.IDS[1:])
    longer = (chosen - rejected) / np.maximum(chosen, rejected)
    lengths = {
        "chosen is longer": longer > ALIKE,
        "about equal": np.abs(longer) <= ALIKE,
        "chosen is shorter": longer < -ALIKE,
    }
    return of(np.full(len(margins), True)) | {
        "by_length": [of(mask, name=name) for name, mask in lengths.items() if mask.any()],
        "by_category": {
            column: [of(mask, name=name) for name, mask in groups.items()]
            for column, groups in categories(held_out).items()
        },
    }


def categories(held_out: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """The columns of text, class labels, whole numbers or yes and no that have from 2 to 20 values:
    by column and value, which pairs have it. A value that is missing is one of its own."""
    found = {}
    for column, kind in held_out.features.items():
        if column in schema.OURS or not isinstance(kind, Value | ClassLabel):
            continue
        if kind.dtype.startswith("float"):
            continue
        values = held_out[column]
        kinds = sorted(set(values), key=lambda value: (value is None, value))
        if 2 <= len(kinds) <= MOST_GROUPS:
            named = {value: _named(kind, value) for value in kinds}
            found[column] = {
                name: np.array([value == each for each in values]) for value, name in named.items()
            }
    return found


def _named(kind: Value | ClassLabel, value: str | int | bool | None) -> str:
    if value is None or (value == -1 and isinstance(kind, ClassLabel)):
        return "none"
    return str(kind.int2str(value)) if isinstance(kind, ClassLabel) else str(value)
