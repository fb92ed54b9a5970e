"""Flags on the command line, as strictly read as keys in a file: each once, JSON whole."""

from __future__ import annotations

import argparse
import json
import os
import re
from typing import Any

KEPT = 'ARGS="{flag} \'{{\\"name\\": 0.1}}\'"'


def name_of(argument: str) -> str:
    """`--max-steps=2` is a flag of the name max_steps."""
    return argument[2:].partition("=")[0].replace("-", "_")


def at_home(value: Any) -> Any:
    """A value with the home folder in the place of `~/`, however deep it stands: a shell does so
    at the beginning of a word alone, and nobody does in a file, so that a run would be written to
    a folder of the name `~`."""
    if isinstance(value, dict):
        return {key: at_home(part) for key, part in value.items()}
    if isinstance(value, list):
        return [at_home(part) for part in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(^|[=,])~(?=/)", lambda before: before[1] + os.path.expanduser("~"), value)


def overridden(argv: list[str], own: list[str]) -> list[str]:
    """Flags that a user gave, but for those that a program sets itself, and then these."""
    ours, kept, dropped = {name_of(flag) for flag in own}, [], False
    for argument in argv:
        if argument.startswith("--"):
            dropped = name_of(argument) in ours
        if not dropped:
            kept.append(argument)
    return [*kept, *own]


def check(parser: argparse.ArgumentParser, argv: list[str]) -> frozenset[str]:
    """The names of the arguments that flags give.

    Raises:
        SystemExit: a flag is given twice, in whichever spelling, or its value begins as JSON and is
            none.
    """
    given: dict[str, str] = {}
    for at, argument in enumerate(argv):
        if not argument.startswith("--"):
            continue
        flag, equals, value = argument.partition("=")
        action = parser._option_string_actions.get(flag)
        name = action.dest if action else name_of(flag)
        after = [*argv[at + 1 :], "--"]
        after = after[: next(i for i, each in enumerate(after) if each.startswith("--"))]
        said = " ".join([argument, *after])
        if name in given:
            raise SystemExit(f"ARGS: {given[name]!r} and {said!r}: {name} stands twice: keep one")
        given[name] = said
        value = value if equals else " ".join(after)
        if value.startswith(("{", "[")):
            try:
                json.loads(value)
            except ValueError as error:
                raise SystemExit(
                    f"ARGS: {flag} is {value}, which is no JSON: {error}. A shell takes quotes "
                    f"away and splits at blanks; so they stay: {KEPT.format(flag=flag)}"
                ) from error
    return frozenset(given)
