"""What a model sees of its data, as a page: `make data` writes it."""

from __future__ import annotations

import html

from dpo.core.terminal import visible
from dpo.data import lint, quarantine
from dpo.data.characters import Piece
from dpo.reports.html import document

LEGEND = """<p class="legend"><span><span class="tokens prompt"><i>one token</i><b>the</b><i>next
</i></span></span><span class="tokens"><i class="many">several tokens, one character</i></span>
<span class="tokens"><i class="special">special</i></span><span class="tokens"><i class="cut">cut by
max_length</i></span></p>"""


def text(value: object) -> str:
    return html.escape(visible(str(value)))


def tokens(pieces: list[Piece], style: str) -> str:
    """Tokens in two shades by turns, in a block that is written from right to left where its text
    is."""
    shown = []
    for place, piece in enumerate(pieces):
        count = piece.stop - piece.start
        names = {"many": count > 1, "special": piece.special, "cut": not piece.kept}
        kinds = " ".join(name for name, is_so in names.items() if is_so)
        about = f' class="{kinds}"' * bool(kinds) + f' title="{count} tokens"' * (count > 1)
        tag = "ib"[place % 2]
        shown.append(f"<{tag}{about}>{text(piece.text)}</{tag}>")
    return f'<div class="tokens {style}" dir="auto">{"".join(shown)}</div>'


def numbers(table: list[list[str]]) -> str:
    """A table whose first row and column are names."""
    head, *rows = table
    heads = "".join(f"<th>{text(name)}</th>" for name in head)
    cells = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="numbers"><table><tr>{heads}</tr>{cells}</table></div>'


def aside(linted: dict[str, quarantine.Linted]) -> str:
    """What is not trained on, by reason, with the first row of each."""
    rows = "".join(
        f"<li>{text(split)}: {count} {verb} as <b>{reason}</b>, {text(lint.REASONS[reason])}. "
        f'<span class="dim">First: {text(quarantine.first_of(found, reason))}</span></li>'
        for split, found in linted.items()
        for verb, reasons in (("set aside", found.set_aside), ("left out", found.left_out))
        for reason, count in reasons.items()
    )
    return f"<h2>Not trained on</h2><ul>{rows}</ul>" if rows else ""


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
        lengths: a table of numbers for each split.
        remarks: what else there is to say of the data.
        pairs: by row, what `characters.shown` makes of them.
    """
    said = "".join(
        f"<p>{text(line.strip())}</p>" for line in [*quarantine.said(linted, None), *remarks]
    )
    tables = "".join(f"<h2>{text(split)}: tokens</h2>{numbers(t)}" for split, t in lengths.items())
    samples = "".join(
        f'<div class="sample"><h3>row {row}</h3>'
        + "".join(
            f"<small>{name}, {text(words)}</small>{tokens(pieces, name)}"
            for name, (words, pieces) in parts.items()
        )
        + "</div>"
        for row, parts in pairs.items()
    )
    return document(
        f"{visible(recipe)}: its data",
        f'<p class="dim">as {text(model)} sees them</p>{said}{tables}{aside(linted)}'
        + (f"<h2>Pairs as the model sees them</h2>{LEGEND}{samples}" if samples else ""),
    )
