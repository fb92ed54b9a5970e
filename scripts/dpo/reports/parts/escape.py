"""Texts of models, data and users in a card as text: no answer is markup, none shows a secret."""

import re
import textwrap
from typing import Any

from dpo.core.secrets import mask
from dpo.core.terminal import visible
from dpo.reports.frontier_page import markdown

LONGEST = 800  # characters of a text
WIDTH = 100  # characters of a line


def shown(said: Any) -> str:
    """Text on one line, secrets masked, control characters spelt out."""
    return " ".join(visible(mask(str(said))).split())


def public(name: str) -> str:
    """A name without what it says of this machine: of a path at the root or at home the last part,
    and no password."""
    away = name.startswith(("/", "~", ".."))
    return mask(name.rstrip("/").rpartition("/")[2] if away else name)


def code(said: Any) -> str:
    """Text of others as a code span on one line, in which nothing is markup."""
    text = shown(said)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if not text or "`" in (text[0], text[-1]) else ""
    return f"{ticks}{blank}{text}{blank}{ticks}"


def fenced(said: str, language: str = "text") -> str:
    """Text of others as a code block, in which nothing is markup."""
    text = visible(mask(said))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(rows: list[list[str]]) -> str:
    """A table as Markdown: a | in a cell, code or not, would begin another."""
    return markdown([[cell.replace("|", r"\|") for cell in row] for row in rows])


def wrapped(text: str) -> str:
    """A text in lines that need no scrolling, cut where it is long; secrets are masked before a
    cut could leave half of one."""
    text = mask(text)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    how = {"replace_whitespace": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(line, WIDTH, **how) for line in text.split("\n"))
