"""Flags on the command line, as strictly read as keys in a file: each once, JSON whole."""

import argparse
import json
from collections.abc import Iterable

from dpo.core.refusal import Refusal

KEPT = 'ARGS="{flag} \'{{\\"name\\": 0.1}}\'"'


def name_of(argument: str) -> str:
    """`--max-steps=2` is a flag of the name max_steps."""
    return argument[2:].partition("=")[0].replace("-", "_")


def names_in(argv: list[str]) -> set[str]:
    return {name_of(argument) for argument in argv if argument.startswith("--")}


def refuse(given: list[str], what: str, sets: Iterable[str]) -> None:
    """Refuse flags of a user that a program, `what`, `sets` itself, and would drop.

    Raises:
        Refusal: there are some.
    """
    if taken := sorted(names_in(given) & {*sets}):
        raise Refusal(f"ARGS: {', '.join(taken)}: {what} sets this itself: leave it out")


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
        Refusal: a flag is given twice, in whichever spelling, or its value begins as JSON and is
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
            raise Refusal(f"ARGS: {given[name]!r} and {said!r}: {name} stands twice: keep one")
        given[name] = said
        value = value if equals else " ".join(after)
        if value.startswith(("{", "[")):
            try:
                json.loads(value)
            except ValueError as error:
                raise Refusal(
                    f"ARGS: {flag} is {value}, which is no JSON: {error}. A shell takes quotes "
                    f"away and splits at blanks; so they stay: {KEPT.format(flag=flag)}"
                ) from error
    return frozenset(given)


def mapping_of(text: str | None, key: str = "column_mapping") -> dict[str, str]:
    """Our names to theirs, from a recipe's mapping (as JSON) or from `prompt=question chosen=good`.

    Args:
        key: what the user wrote it to, for messages.

    Raises:
        Refusal: it is no such mapping, or names a column twice.
    """
    form = "write prompt=question chosen=good rejected=bad, ours before theirs"
    if not text:
        return {}
    if str(text).lstrip().startswith("{"):
        try:
            pairs = [*json.loads(text, object_pairs_hook=list)]
        except ValueError as error:
            raise Refusal(f"{key}: {error}: {form}") from error
    else:
        pairs = [part.split("=", 1) for part in str(text).replace(",", " ").split()]
    if not all(len(pair) == 2 and all(isinstance(n, str) and n for n in pair) for pair in pairs):
        raise Refusal(f"{key}: {text}: {form}")
    for names in zip(*pairs, strict=True):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise Refusal(f"{key}: {twice!r} stands twice: a column has one name")
    return dict(pairs)
