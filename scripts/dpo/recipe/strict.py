"""YAML and JSON in which each key stands once: their own readers keep the last, and say nothing."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from dpo.core.refusal import Refusal


def refuse(name: str | Path, key: str, *lines: int) -> NoReturn:
    where = " and ".join(map(str, dict.fromkeys(lines)))
    words = "in lines" if " and " in where else "in line"
    raise Refusal(f"{name}: key {key!r} stands twice, {words} {where}: keep one")


class Strict(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`: what it brings may be overridden
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if isinstance(key, dict | list):
                said = "braces or brackets at a value's start want quotes around them"
                raise yaml.constructor.ConstructorError(None, None, said, key_node.start_mark)
            if key in seen:
                refuse(self.name, key, seen[key], line)
            seen[key] = line
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, text: str) -> Any:
    """What the text of a file of YAML holds.

    Raises:
        Refusal: it is not YAML, or repeats a key.
    """
    try:
        loader = Strict(text)
        loader.name = str(path)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise Refusal(f"{path}, line {line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise Refusal(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def load_json(path: Path, text: str) -> Any:
    """What the text of a file of JSON holds.

    Raises:
        Refusal: it is not JSON, or repeats a key.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            lines = enumerate(text.splitlines(), 1)
            refuse(path, twice, *(n for n, line in lines if json.dumps(twice) in line))
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise Refusal(f"{path}: not JSON: {error}") from error


def numbers(value: Any) -> Iterator[float]:
    """All floats in a value, however deep."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)


def check_finite(values: dict[str, Any], where: Callable[[str], object]) -> None:
    """Raises Refusal, with where a key stands, if a value is not finite or holds what is not."""
    for key, value in values.items():
        if not all(map(math.isfinite, numbers(value))):
            raise Refusal(f"{where(key)}: {key} is {value}: give a finite number")
