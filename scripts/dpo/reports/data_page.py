"""What a model sees of its data, as a page: `make data` writes it."""

from collections.abc import Iterator

from dpo.data import lint, quarantine
from dpo.data.characters import Piece
from dpo.reports.html import render


def aside(linted: dict[str, quarantine.Linted]) -> Iterator[tuple[str, int, str, str, str, str]]:
    """What is not trained on, by reason, with the first row of each."""
    for split, found in linted.items():
        for verb, reasons in (("set aside", found.set_aside), ("left out", found.left_out)):
            for reason, count in reasons.items():
                first = quarantine.first_of(found, reason)
                yield split, count, verb, reason, lint.REASONS[reason], first


def page(
    recipe: str,
    model: str,
    linted: dict[str, quarantine.Linted],
    lengths: dict[str, list[list[str]]],
    remarks: list[str],
    pairs: dict[int, dict[str, tuple[str, list[Piece]]]],
) -> str:
    """The page.

    Args:
        lengths: a table of numbers for each split; its first row and column are names.
        remarks: what else there is to say of the data.
        pairs: by row, what `characters.shown` makes of them.
    """
    return render(
        "data",
        title=f"{recipe}: its data",
        model=model,
        lines=[line.strip() for line in [*quarantine.said(linted, None), *remarks]],
        lengths=lengths,
        aside=[*aside(linted)],
        pairs=pairs,
    )
