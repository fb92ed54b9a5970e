"""Pages: one file each, no network, and no script but those that a page names and its content
security policy allows by their hash. All that data and models say is escaped as it is put in, and
what would steer a terminal or turn text around is shown."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dpo.core.secrets import mask, masked
from dpo.core.terminal import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ["MPLBACKEND"] = "Agg"  # a picture is written, and never shown


FOLDERS = [Path(__file__).with_name(name) for name in ("templates", "vendor")]


def shown(value: Any) -> str:
    """Text as a page shows it: secrets masked, control characters spelt out. Before it is escaped:
    a secret with an ampersand would be another text then."""
    if isinstance(value, Markup):  # of a macro, and so of values that went through here
        return Markup(visible(value))
    return visible(mask(str(value)))


PAGES = Environment(
    loader=FileSystemLoader(FOLDERS),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters["base64"] = lambda content: base64.b64encode(content).decode()
# Lines are broken before an interval, and not within.
PAGES.filters["unbroken"] = functools.partial(
    re.sub, r"\([^()]*\)", lambda part: part[0].replace(" ", "\u00a0")
)


def render(page: str, scripts: tuple[str, ...] = (), **given: Any) -> str:
    """A page of templates/ with what it is given; `title` heads it. `scripts` are files of
    templates/ and vendor/, which the page carries and runs in this order; it can run no others."""
    texts = [*map(script, scripts)]
    policy = " ".join(f"'sha256-{sha256(text)}'" for text in texts) or "'none'"
    return PAGES.get_template(f"{page}.html").render(given, scripts=texts, policy=Markup(policy))


@functools.cache
def script(name: str) -> Markup:
    """A file of templates/ or vendor/ as the text of a script element."""
    (path,) = (folder / name for folder in FOLDERS if (folder / name).is_file())
    return Markup(path.read_text(encoding="utf-8").strip())


def sha256(text: str) -> str:
    """As a content security policy names what may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> Markup:
    """A value as JSON in a script element of type application/json: masked, and without the
    characters that could end the element or begin a comment."""
    text = json.dumps(masked(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def png(figure: Figure) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    return buffer.getvalue()
