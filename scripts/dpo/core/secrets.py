"""Tokens and passwords: taken out before anything can keep them, masked wherever text leaves.

Nothing heavy is imported: the launcher uses this too.
"""

import functools
import html
import json
import os
import re
from typing import Any

from dpo.core.refusal import Refusal

MASK = "***"
SHORTEST = 8  # characters: what is shorter, such as `false`, would be masked inside other words
NAMES = re.compile(r"(^|_)(TOKEN|(API_?)?KEY|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?)(_|$)", re.I)
PLACES = ("_PATH", "_FILE", "_DIR")  # HF_TOKEN_PATH is where a token lies, and no token
# As Hugging Face, W&B and others issue them, in a header, in a URL.
SHAPES = (
    re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    re.compile(r"\bwandb_v1_[A-Za-z0-9_]{20,}"),
    re.compile(r"\b(gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-)[A-Za-z0-9_-]{20,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)"),
    re.compile(r"(?i)(?<=authorization)['\"]?\s*[:=]\s*['\"]?(bearer|basic|token)\s+[^\s'\"]+"),
)
KEYED = re.compile(r"['\"]((hub|auth|use_auth)_)?(token|password|api_key)['\"]\s*:")  # in a dict
INSTEAD = "log in with `hf auth login` or `wandb login`, or set HF_TOKEN or WANDB_API_KEY"


@functools.cache  # every cell of a page asks for every name
def _named(variable: str) -> bool:
    return bool(NAMES.search(variable)) and not variable.upper().endswith(PLACES)


def known() -> list[str]:
    """The values of environment variables whose name says that they are secret, longest first, and
    as they look in JSON and in HTML."""
    found = {value for name, value in os.environ.items() if _named(name) and len(value) >= SHORTEST}
    written = {form for v in found for form in (v, json.dumps(v)[1:-1], html.escape(v))}
    return sorted(written, key=len, reverse=True)


def mask(text: str, values: list[str] | None = None) -> str:
    """The text with `***` for every secret in it. `values` are those known, if they are at hand."""
    for value in known() if values is None else values:
        text = text.replace(value, MASK)
    for shape in SHAPES:
        text = shape.sub(MASK, text)
    return text


def masked(value: Any, values: list[str] | None = None) -> Any:
    """A value of JSON with every text in it masked: in JSON itself a mask could take a quote's
    escape with it, and a secret could hide behind one."""
    values = known() if values is None else values
    if isinstance(value, str):
        return mask(value, values)
    if isinstance(value, dict):
        return {masked(key, values): masked(each, values) for key, each in value.items()}
    return [masked(v, values) for v in value] if isinstance(value, list | tuple) else value


def refuse(where: str, said: Any) -> None:
    """Refuse what would be kept with a run, or shared, and holds a secret.

    Raises:
        Refusal: it does. The line names the place, and not the secret.
    """
    text = str(said)
    if mask(text) != text or KEYED.search(text):
        raise Refusal(
            f"{where} holds a token or a password, which would be kept with the run: take it out; "
            f"{INSTEAD}"
        )


def take_out(argv: list[str]) -> list[str]:
    """The arguments without `--hub_token`, which goes to where huggingface_hub looks for it: to
    HF_TOKEN in the environment. What keeps arguments (W&B, the report, a pickle of them) has none.

    Raises:
        Refusal: another argument holds a secret.
    """
    kept, arguments = [], iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.replace("-", "_") == "__hub_token":
            os.environ["HF_TOKEN"] = value if equals else next(arguments, "")
        else:
            kept.append(argument)
    for place, argument in enumerate(kept):
        before = kept[place - 1] if place and not argument.startswith("-") else argument
        refuse(f"argument {before.partition('=')[0]}", argument)
    return kept
