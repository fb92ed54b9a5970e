"""Rows that are not trained on: counted, said, and written where they can be mended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, IterableDataset

from dpo import lint
from dpo.output import QUARANTINE, write_lines
from dpo.sources import Rows
from dpo.terminal import visible


@dataclass
class Bad:
    """A row that was set aside. Rows are counted from 1, as the lines of a file are."""

    source: Rows
    row: int
    reason: str
    detail: str


@dataclass
class Linted:
    """The pairs of a split that may be used, and what was found about all of its rows."""

    pairs: Dataset | IterableDataset
    layout: str  # how the rows were read, in words
    rows: int = 0
    bad: list[Bad] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what may have been meant otherwise

    @property
    def reasons(self) -> dict[str, int]:
        """Rows set aside by reason, the most frequent first."""
        return dict(Counter(bad.reason for bad in self.bad).most_common())

    @property
    def faulty(self) -> float:
        """Share of the rows that are wrong. A tie is not."""
        return sum(bad.reason not in lint.NO_FAULT for bad in self.bad) / max(self.rows, 1)


def set_aside(linted: dict[str, Linted], folder: Path) -> Path | None:
    """Write the rows that were set aside, with where they stand and why; None if there are none."""
    path = folder / QUARANTINE
    lines = [
        {
            "file": bad.source.name,
            "split": split,
            "row": bad.row,
            "reason": bad.reason,
            "detail": bad.detail,
            "columns": bad.source.data[bad.row - 1],
        }
        for split, found in linted.items()
        for bad in found.bad
    ]
    path.unlink(missing_ok=True)
    if not lines:
        return None
    write_lines(path, lines)
    return path


def check_share(linted: dict[str, Linted], limit: float, folder: Path) -> None:
    """Refuse a run whose data are wrong in more than a few rows.

    Raises:
        SystemExit: more than the limit of a split's rows are wrong, or none is left.
    """
    for split, found in linted.items():
        streams = isinstance(found.pairs, IterableDataset)
        if streams or (found.faulty <= limit and len(found.pairs)):
            continue
        wrong = [bad for bad in found.bad if bad.reason not in lint.NO_FAULT] or found.bad
        if not wrong:
            raise SystemExit(f"no {split} pairs are left: hold out less, or bring more data")
        first = wrong[0]
        count = Counter(bad.reason for bad in wrong)[first.reason]
        raise SystemExit(
            f"{first.source.name}: {len(wrong)} of {found.rows} {split} rows are set aside "
            f"({found.faulty:.1%}), and quarantine_limit allows {limit:.1%}. {count} of them as "
            f"{first.reason} ({lint.REASONS[first.reason]}), first row {first.row}"
            f"{': ' + first.detail if first.detail else ''}. All are in {folder / QUARANTINE}: "
            "mend them, or allow more with --quarantine_limit"
        )


def said(linted: dict[str, Linted], path: Path | None) -> list[str]:
    """What was read, and what was set aside, in words."""
    text = []
    for split, found in linted.items():
        streams = isinstance(found.pairs, IterableDataset)
        count = "" if streams else f"{len(found.pairs)} pairs of {found.rows} rows, "
        text.append(f"{split:>8}  {count}{visible(found.layout)}")
        text += [f"          {visible(note)}" for note in found.notes]
        for reason, count in found.reasons.items():
            text.append(f"          {count} set aside as {reason}: {lint.REASONS[reason]}")
    return [*text, *([f"          they are in {path}"] if path else [])]
