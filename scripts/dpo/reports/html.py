"""Pages: one file each, no script, no network. All that data and models say is escaped as it is
put in, and what would steer a terminal or turn text around is shown."""

from __future__ import annotations

import base64
import io
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dpo.core.secrets import mask
from dpo.core.terminal import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ["MPLBACKEND"] = "Agg"  # a picture is written, and never shown


def _shown(value: Any) -> str:
    """Before it is escaped: a secret with an ampersand would be another text then."""
    if isinstance(value, Markup):  # of a macro, and so of values that went through here
        return Markup(visible(value))
    return visible(mask(str(value)))


PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters["base64"] = lambda content: base64.b64encode(content).decode()
# Lines are broken before an interval, and not within.
PAGES.filters["unbroken"] = partial(
    re.sub, r"\([^()]*\)", lambda part: part[0].replace(" ", "\u00a0")
)


def render(page: str, **given: Any) -> str:
    """A page of templates/ with what it is given; `title` heads it."""
    return PAGES.get_template(f"{page}.html").render(given)


def png(figure: Figure) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    return buffer.getvalue()
