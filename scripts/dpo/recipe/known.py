"""The names of all arguments and their help, read from the sources of TRL and transformers as text.

To import these takes seconds, and a misspelt flag and `--help` need none of it. What a value may
be, TRL's own parser decides (parse.py).
"""

import argparse
import ast
import difflib
import re
import shutil
import textwrap
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from dpo.core.refusal import Refusal
from dpo.recipe.arguments import DEFAULTS
from dpo.recipe.convert.old_keys import refuse_unknown, spelling
from dpo.recipe.flags import check as flags_given

# Where arguments are defined, and what they are of. A class that comes later gives those that it
# has in common with an earlier one their default and help.
SOURCES = (
    ("This repository", "dpo.recipe", "arguments.py", "RunArguments"),
    ("Data", "trl", "scripts/utils.py", "ScriptArguments"),
    ("Training", "transformers", "training_args.py", "TrainingArguments"),
    ("Training", "trl", "trainer/base_config.py", "_BaseConfig"),
    ("DPO", "trl", "trainer/dpo_config.py", "DPOConfig"),
    ("Model", "trl", "trainer/model_config.py", "ModelConfig"),
    ("Several data sets", "trl", "scripts/utils.py", "DatasetMixtureConfig"),
)
TITLES = ("This repository", "Data", "DPO", "Training", "Model", "Several data sets")  # of the help
# How a source heads a group of them.
HEADING = re.compile(r" {4}# (?:--- (.+) ---|Parameters that control (.+)|(Deprecated) parameters)")
WIDEST = 98  # characters of a line of help


def names(folder: Path) -> list[str]:
    """The names that may be given for RECIPE or CONFIG: the folder is the list.

    Raises:
        Refusal: the folder is not here.
    """
    if not folder.is_dir():
        raise Refusal(f"no folder {folder} in {Path.cwd()}: run this where the repository's is")
    return sorted(path.stem for path in folder.glob("*.yaml") if path.is_file())


def choices(given: str, known: list[str]) -> str:
    """The known names nearest to what was given, or all of a short list, for an error message."""
    if len(known) <= 20:
        return f"one of: {', '.join(known)}"
    near = difflib.get_close_matches(given, known, 3, 0.4)
    return f"did you mean: {', '.join(near)}?" if near else "none has a name like it"


class Argument(NamedTuple):
    title: str
    group: str
    kind: str  # its annotation
    default: Any
    about: dict[str, Any]  # help, choices and nargs, as far as they are written out


def value_of(node: ast.AST | None) -> Any:
    """What an expression stands for; None where only running the source would tell."""
    with suppress(ValueError):
        return ast.literal_eval(node.body if isinstance(node, ast.Lambda) else node)
    return None


@cache
def arguments() -> dict[str, Argument]:
    """All arguments by name: the fields of the dataclasses, as their sources have them."""
    found: dict[str, Argument] = {}
    for title, package, file, name in SOURCES:
        source = (Path(find_spec(package).origin).parent / file).read_text(encoding="utf-8")
        of: Any = next(n for n in ast.parse(source).body if getattr(n, "name", "") == name)
        lines, at, group = source.splitlines(), of.lineno, ""
        for node in of.body:
            for heading in filter(None, map(HEADING.match, lines[at : node.lineno])):
                group = next(filter(None, heading.groups()))
            at = node.end_lineno
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
                continue
            given: dict[str | None, Any] = {p.arg: p.value for p in node.value.keywords}
            about = {"help": value_of(given.get("help"))}  # as this repository's are written
            if metadata := given.get("metadata"):
                keys, values = (map(value_of, part) for part in (metadata.keys, metadata.values))
                about = dict(zip(keys, values, strict=True))
            default = value_of(given.get("default", given.get("default_factory")))
            target: Any = node.target
            argument = Argument(title, group, ast.unparse(node.annotation), default, about)
            first = found.get(target.id, argument)
            found[target.id] = argument._replace(title=first.title, group=first.group)
    return found


class OneLine:
    """A parser that ends with one line."""

    prog: str

    def error(self, message: str):
        raise Refusal(f"{self.prog}: {message}")


class Parser(OneLine, argparse.ArgumentParser):
    pass


class Help(argparse.HelpFormatter):
    """Wraps lines between words alone, so that an address stays whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def nargs_of(argument: Argument) -> str | None:
    """How many values may follow the flag, as TRL's parser takes it from the annotation."""
    kinds = argument.kind.split(" | ")
    if len(kinds) == 2 and "str" in kinds and "None" not in kinds:  # read as the other of the two
        kinds.remove("str")
    by_kind = "+" if kinds[0].startswith("list[") else "?" if kinds == ["bool"] else None
    return argument.about.get("nargs", by_kind)


def parser() -> argparse.ArgumentParser:
    """A parser of all flags, each with its values as text; as `parse.make_parser` in all else."""
    parser = Parser(prog="ARGS", allow_abbrev=False)
    for name, argument in arguments().items():
        both = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*both, nargs=nargs_of(argument))
        if argument.default is True and "bool" in argument.kind:
            no = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
            parser.add_argument(*no, action="store_false", dest=name)
    return parser


def usage() -> str:
    """All arguments with their help, group by group: this repository's own first."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py --config recipes/<name>.yaml [--<argument> <value> ...]",
        description="Train a policy with DPO as a recipe says; flags after it win over it. Each "
        "argument is a key of a recipe too.",
        formatter_class=partial(Help, width=width, max_help_position=8),
    )
    groups: dict[str, Any] = {}
    ordered = sorted(arguments().items(), key=lambda each: TITLES.index(each[1].title))
    for name, argument in ordered:
        title = f"{argument.title} ({argument.group})" if argument.group else argument.title
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        said = argument.about.get("help") or ""
        default = DEFAULTS.get(name, argument.default)
        if default not in (None, []):
            said += f" (default: {default})".replace("%", "%%")
        kind = argument.kind.removesuffix(" | None").replace("bool", "true | false")
        values = argument.about.get("choices") or kind.split(" | ")
        metavar = "|".join(values)
        if argument.kind == "bool" and argument.default is True:
            said += f", or --no_{name}"
        groups[title].add_argument(f"--{name}", metavar=metavar, help=said)
    return parser.format_help()


def check_names(path: Path, keys: dict[str, Any], argv: list[str]) -> frozenset[str]:
    """See that all keys of a recipe and all flags after it are arguments, without importing TRL.

    Returns the names of the arguments that the flags give.

    Raises:
        Refusal: one of them is none, or a flag is not as a flag should be (flags.py).
    """
    flags, known = parser(), [*arguments()]
    refuse_unknown(path, {str(k): choices(str(k), known) for k in keys if k not in known})
    given = flags_given(flags, argv)
    _, unknown = flags.parse_known_args(argv)
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0]
        if not unknown[0].startswith("-"):
            raise Refusal(f"ARGS: {unknown[0]!r} belongs to no flag: quote what has blanks")
        near = spelling(name.replace("-", "_")) or choices(name, known)
        raise Refusal(f"unknown argument {unknown[0]!r}: {near}")
    return given
