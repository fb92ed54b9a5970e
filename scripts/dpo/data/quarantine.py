"""Rows that are not trained on: counted, said, and written where they can be mended. Those that
are too long are no faults, and are counted apart."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset

from dpo.core.files import write_lines
from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.data import lint, schema
from dpo.data.sources.load import Rows
from dpo.runs.output_folder import QUARANTINE

FITS = (0.9, 0.95, 0.99)  # shares of the pairs


@dataclass
class Bad:
    """A row that is not trained on."""

    source: Rows
    row: int  # counted from 1, as the lines of a file are
    reason: str
    detail: str
    tokens: int = 0  # of one that is left out for length, the max_length that would keep it whole


@dataclass
class Linted:
    """The pairs of a split that may be used, and what was found about all of its rows.

    Every row is one of `rows` once: `len(pairs)`, those in `bad`, and `merged`, which are part of
    the pair of another row of the same prompt, or between its best and its worst response.
    """

    pairs: Dataset | IterableDataset
    layout: str  # how the rows were read, in words
    rows: int = 0
    bad: list[Bad] = field(default_factory=list)
    merged: int = 0
    sources: dict[str, int] = field(default_factory=dict)  # rows of each, of a mixture
    max_length: int | None = None
    notes: list[str] = field(default_factory=list)  # what may have been meant otherwise

    @property
    def reasons(self) -> dict[str, int]:
        """Rows that are not trained on by reason, the most frequent first."""
        return dict(Counter(bad.reason for bad in self.bad).most_common())

    @property
    def set_aside(self) -> dict[str, int]:
        """Those that are wrong or state no preference, by reason."""
        return {name: n for name, n in self.reasons.items() if name not in lint.LENGTHS}

    @property
    def left_out(self) -> dict[str, int]:
        """Those that are too long, by reason."""
        return {name: n for name, n in self.reasons.items() if name in lint.LENGTHS}

    @property
    def faulty(self) -> float:
        """Share of the rows that are wrong. A tie is not, nor is a long row."""
        faults = (n for name, n in self.set_aside.items() if name not in lint.NO_FAULT)
        return sum(faults) / max(self.rows, 1)

    def lengths(self) -> dict[str, int | dict[str, int] | None]:
        """What max_length does to the sound pairs: how many there are, how many of them are `cut`
        and `left_out`, how long the `longest` is, and the max_length by which 90, 95 and 99% of
        them would `fit` whole. Nothing of a stream, or without pairs."""
        if isinstance(self.pairs, IterableDataset):
            return {}
        kept = schema.needed_length(self.pairs) if len(self.pairs) else np.zeros(0, int)
        left_out = [bad.tokens for bad in self.bad if bad.reason in lint.LENGTHS]
        needed = np.array([*kept, *left_out])
        if not len(needed):
            return {}
        fit = np.quantile(needed, FITS, method="inverted_cdf")
        return {
            "max_length": self.max_length,
            "pairs": len(needed),
            "cut": int((kept > (self.max_length or np.inf)).sum()),
            "left_out": len(left_out),
            "longest": int(needed.max()),
            "fit": {f"{share:.0%}": int(most) for share, most in zip(FITS, fit, strict=True)},
        }


def set_aside(linted: dict[str, Linted], folder: Path) -> Path | None:
    """Write the rows that were set aside, with where they stand and why; None if there are none."""
    path = folder / QUARANTINE
    path.unlink(missing_ok=True)
    lines = []
    for split, found in linted.items():
        for bad in found.bad:
            line = {"file": bad.source.name, "split": split, "row": bad.row, "reason": bad.reason}
            columns = bad.source.data[bad.row - 1]
            lines.append(line | {"detail": bad.detail, "columns": columns})
    if not lines:
        return None
    write_lines(path, lines)
    return path


def first_of(found: Linted, reason: str) -> str:
    """Where the first row stands that is not trained on for a reason, and what is wrong there."""
    first = next(bad for bad in found.bad if bad.reason == reason)
    return f"{first.source.name}, row {first.row}: {first.detail}".removesuffix(": ")


def fitting(lengths: dict) -> str:
    """By which max_length most pairs would be whole, in words."""
    (share, most), *more = lengths["fit"].items()
    others = "".join(f", {share} in {most}" for share, most in more)
    return f"{share} of the pairs fit in {most} tokens{others}, all in {lengths['longest']}"


def said_of_lengths(lengths: dict) -> str:
    """What max_length does to a split, in words."""
    of, cut, left_out = lengths["pairs"], lengths["cut"], lengths["left_out"]
    lost = f"{cut} of {of} pairs are cut, {left_out} left out" if cut or left_out else "none is cut"
    return f"max_length {lengths['max_length'] or 'off'}: {lost}; {fitting(lengths)}"


def check_share(linted: dict[str, Linted], limit: float, folder: Path) -> None:
    """Refuse a run whose data are wrong in more than a few rows, or too long in most.

    Raises:
        Refusal: more than the limit of a split's rows are wrong, or more than half of those of
            one data set of a mixture; more than half are left out for length, or no pair is left.
    """
    for split, found in linted.items():
        if isinstance(found.pairs, IterableDataset):
            continue
        wrong = [bad for bad in found.bad if bad.reason not in (*lint.NO_FAULT, *lint.LENGTHS)]
        if found.faulty > limit or not (len(found.pairs) or found.left_out):
            refuse(split, found, wrong or found.bad, limit, folder)
        for name, rows in found.sources.items():  # a small one may be lost whole within the limit
            of_it = [bad for bad in wrong if bad.source.name == name]
            if len(of_it) > max(limit, 0.5) * rows:
                refuse(split, replace(found, rows=rows, bad=of_it), of_it, limit, folder)
        check_length(split, found)


def check_length(split: str, found: Linted) -> None:
    """Refuse a split most of whose rows are too long; `found` may be the first rows of a stream.

    Raises:
        Refusal: more than half are, or all pairs.
    """
    left_out = sum(found.left_out.values())
    if left_out and (left_out > found.rows / 2 or not len(found.pairs)):
        raise Refusal(
            f"{left_out} of {found.rows} {split} rows are left out for length: max_length is "
            f"{found.max_length}, and {fitting(found.lengths())}, prompt and completion: raise "
            "--max_length"
        )


def refuse(split: str, found: Linted, wrong: list[Bad], limit: float, folder: Path) -> None:
    """Raises Refusal: what is wrong with a split, the first of it, and where the rest is."""
    if not wrong:
        raise Refusal(f"no {split} pairs are left: hold out less, or bring more data")
    first = wrong[0]
    count = Counter(bad.reason for bad in wrong)[first.reason]
    raise Refusal(
        f"{first.source.name}: {len(wrong)} of {found.rows} {split} rows are set aside "
        f"({found.faulty:.1%}), and quarantine_limit allows {limit:.1%}. {count} of them as "
        f"{first.reason} ({lint.REASONS[first.reason]}), first row {first.row}"
        f"{': ' + first.detail if first.detail else ''}. All are in {folder / QUARANTINE}: "
        "mend them, or allow more with --quarantine_limit"
    )


def said(linted: dict[str, Linted], path: Path | None) -> list[str]:
    """What was read, what was set aside, and what max_length cuts and leaves out, in words."""
    text, noted = [], set()
    for split, found in linted.items():
        streams = isinstance(found.pairs, IterableDataset)
        count = "" if streams else f"{len(found.pairs)} pairs of {found.rows} rows, "
        text.append(f"{split:>8}  {count}{visible(found.layout)}")
        text += [f"          {visible(note)}" for note in found.notes if note not in noted]
        noted |= {*found.notes}
        for reason, count in found.set_aside.items():
            text.append(f"          {count} set aside as {reason}: {lint.REASONS[reason]}")
        if lengths := found.lengths():
            text.append(f"          {said_of_lengths(lengths)}")
        for reason, count in found.left_out.items():
            text.append(f"          {count} left out as {reason}: {lint.REASONS[reason]}")
        if found.left_out and len(found.sources) > 1:
            of = Counter(bad.source.name for bad in found.bad if bad.reason in lint.LENGTHS)
            parts = (f"{n} of the {found.sources[name]} of {name}" for name, n in of.most_common())
            text.append(f"          by source, rows left out: {', '.join(parts)}")
    return [*text, *([f"          they are in {path}"] if path else [])]
