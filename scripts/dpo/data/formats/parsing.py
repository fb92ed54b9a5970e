"""A row's values as they were meant: messages that were written as text, and the nulls with which
a table fills up its structs."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Container
from functools import partial
from typing import Any

from dpo.data.formats.parts import CANDIDATES, RATINGS
from dpo.data.formats.turns import Fault, as_anthropic_has_it
from dpo.data.sources.files import Twice, once
from dpo.data.tokenize import GIVEN

LISTS = (*GIVEN, "history", *CANDIDATES, *RATINGS)  # columns that are no text of their own
ROLE = re.compile(r"""["'](role|from)\\*["']\s*:""")
BEGIN = ("[", "{", "(", '"', "'")
BEGUN = re.compile(r"""\s*[\[(]?\s*\{\s*["'](role|from|content|value)["']\s*:""")
ARRAY = re.compile(r"\s*array\((\[.*\]),\s*dtype=object\)\s*", re.DOTALL)


def with_commas(text: str) -> str:
    """A list as numpy prints it, `[{...} {...}]`, as Python writes it."""
    tokens: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if tokens and (tokens[-1][1], token.string) == ("}", "{"):
            tokens.append((tokenize.OP, ","))
        if token.type != tokenize.NL:
            tokens.append((token.type, token.string))
    return tokenize.untokenize(tokens)


def value_of(text: str) -> Any:
    """What text says as JSON, as Python or as numpy prints it; None if it is neither.

    Raises:
        Fault: it is JSON with a key twice in one object.
    """
    as_json, literal = partial(json.loads, object_pairs_hook=once), ast.literal_eval
    for read in (as_json, literal, lambda text: literal(with_commas(text))):
        try:
            return read(text)
        except Twice as error:
            raise Fault("not_messages", str(error)) from error
        except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            continue
    return None


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(
        isinstance(value.get(who), str) and what in value
        for who, what in (("role", "content"), ("from", "value"), ("role", "tool_calls"))
    )


def messages_in(text: str, column: str) -> Any:
    """Messages, if text is a list of them or one, or that as JSON text once more; else the text.
    What merely begins with a bracket is text: code, an answer in JSON.

    Raises:
        Fault: it begins as messages do, and they cannot be read.
    """
    array = ARRAY.fullmatch(text)
    inner = array[1] if array else text.strip()
    if not inner.startswith(BEGIN) or not ROLE.search(inner):
        return text
    value = value_of(inner)
    if isinstance(value, str) and value != text:
        again = messages_in(value, column)
        return text if isinstance(again, str) else again
    value = [*value] if isinstance(value, tuple) else value
    turns = value if isinstance(value, list) else [value]
    if turns and all(map(is_message, turns)):
        return value
    if value is None and BEGUN.match(inner):
        raise Fault("not_messages", f"{column} begins as messages in JSON do, and is none")
    return text


def turned(value: Any) -> Any:
    """Messages that a table keeps as an object of lists, roles and contents, as a list of them;
    anything else as it is."""
    if not isinstance(value, dict) or not {"role", "from"} & {*value}:
        return value
    columns = [*value.values()]
    if not all(isinstance(cells, list) for cells in columns) or len({*map(len, columns)}) > 1:
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def meant(row: dict[str, Any], padded: Container[str]) -> dict[str, Any]:
    """A row with the messages, and the lists of other known columns, that it holds as text.

    Args:
        padded: columns whose nulls may be those of a struct, which gives each row the keys of all.

    Raises:
        Fault: text begins as messages do, and they cannot be read.
    """
    read = {}
    for name, value in row.items():
        if isinstance(value, str) and name in LISTS:
            found = value_of(value.strip()) if value.lstrip()[:1] in ("[", "{") else None
            value = found if isinstance(found, (list, dict)) else value
        elif isinstance(value, str):
            value = messages_in(as_anthropic_has_it(value), name)
        elif isinstance(value, (list, dict)):
            value = turned(value)
            if name in padded:
                # Late, since seconds of others come with it.
                from trl.trainer.utils import remove_none_values

                value = remove_none_values(value)
        read[name] = value
    return read
