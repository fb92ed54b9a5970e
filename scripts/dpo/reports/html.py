"""What every page here is made of: one file, no script, no network, and all that data and models
say escaped."""

from __future__ import annotations

import base64
import html
import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dpo.runs.output_folder import NO_SCRIPTS

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --ink: #1f2328; --dim: #59636e;
  --up: #1a7f37; --down: #cf222e; --page: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #151b23; --ink: #f0f6fc;
  --dim: #9198a1; --up: #3fb950; --down: #f85149; --page: #0d1117; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p.alert { border-left: .25rem solid var(--down); padding: .1rem .8rem; margin: .75rem 0 0; }
p.dim, td.dim, .tile small { color: var(--dim); }
p { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
.tile { border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile small { display: block; font-size: .82rem; }
img { width: 100%; height: auto; background: white; border: 1px solid var(--line);
  border-radius: .6rem; padding: .5rem; }
.sample { border: 1px solid var(--line); border-radius: .6rem; margin: 0 0 .75rem;
  overflow: hidden; }
.sample h3 { margin: 0; padding: .5rem 1rem; font-size: .95rem; background: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.pair > div { padding: .7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.pair.many { grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.pair small { color: var(--dim); display: block; }
.up { color: var(--up); } .down { color: var(--down); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid var(--line); padding: .3rem .5rem; vertical-align: top;
  overflow-wrap: anywhere; }
th { text-align: left; padding: .3rem .5rem; vertical-align: bottom; }
.wide { overflow-x: auto; }
.wide td, .wide th { min-width: 8.5rem; overflow-wrap: normal; }
.wide :is(td, th):first-child { position: sticky; left: 0; background: var(--page);
  overflow-wrap: anywhere; }
.whole { white-space: nowrap; }
li, p, h1, h2, summary { overflow-wrap: anywhere; }
details summary { cursor: pointer; margin: .75rem 0; }
.key { display: inline-block; width: 1.9rem; padding: .35rem .15rem; vertical-align: middle;
  line-height: 0; background: #fff; border-radius: .2rem; }
.key i { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: .75rem; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
  padding: .3rem 1rem .7rem; --tone: var(--dim); }
span.tokens { padding: 0; }
.tokens.chosen { --tone: var(--up); } .tokens.rejected { --tone: var(--down); }
.tokens :is(i, b) { font: inherit; background: color-mix(in srgb, var(--tone) 9%, transparent); }
.tokens b { background: color-mix(in srgb, var(--tone) 26%, transparent); }
.tokens .many { text-decoration: underline dotted; }
.tokens .special { background: #f2cc60; color: #1f2328; }
.tokens .cut { text-decoration: line-through; opacity: .6; }
.sample > small { display: block; color: var(--dim); padding: .6rem 1rem 0; }
.numbers { overflow-x: auto; }
.numbers :is(td, th) { overflow-wrap: normal; text-align: right; }
.numbers :is(td, th):first-child { text-align: left; }
td.best { font-weight: 600; color: var(--up); }
code { font-size: .9em; }
"""


def tile(name: str, value: str, note: str) -> str:
    return (
        f'<div class="tile"><small>{html.escape(name)}</small><b>{html.escape(value)}</b>'
        f"<small>{html.escape(note)}</small></div>"
    )


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    return buffer.getvalue()


def picture(content: bytes, says: str) -> str:
    """A PNG as it stands in a page; `says` is read out in its place."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(says)}" src="data:image/png;base64,{data}">'


def facts(rows: dict[str, object]) -> str:
    """A table of two columns."""
    cells = "".join(
        f'<tr><td class="dim">{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>'
        for key, value in rows.items()
    )
    return f"<table>{cells}</table>"


def document(title: str, body: str) -> str:
    """A page with a title that is escaped here, and a body of escaped parts."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
{NO_SCRIPTS}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{body}
</body></html>
"""
