"""Show what DPO does, by experiments on the embedded default: `make learn` runs this.

    make learn                               # all of them, the shortest first
    make learn WHAT=noise                    # one, or several by comma
    make learn WHAT=noise ARGS="--small"     # to see how it goes: a few steps and prompts
    make learn WHAT=closed_form ARGS="-- --beta 0.25"    # with another number

What each has trained and measured is kept in outputs/learn/<name>/: the same command goes on from
there. Results are written into docs/learn/: <name>.json, which holds every number, and <name>.png.
In small, or with flags, all of it goes into a folder that is named so.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import ast
from pathlib import Path

from dpo.core.terminal import at_once, guarded, parser_of

ROOM = Path(__file__).resolve().parent / "dpo" / "learn"
INTO, DOCS = Path("outputs/learn"), Path("docs/learn")


def experiments() -> dict[str, tuple[float, str]]:
    """By name, the shortest first: the minutes that it takes on two cores, and what it shows. Read
    and not imported, which would take seconds."""
    found = {}
    for path in (*ROOM.glob("*.py"), *ROOM.glob("*/__init__.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        stated = [n for n in tree.body if isinstance(n, ast.Assign)]
        minutes = [n.value for n in stated if ast.unparse(n.targets[0]) == "MINUTES"]
        if minutes:
            name = path.parent.name if path.stem == "__init__" else path.stem
            shows = str(ast.get_docstring(tree)).partition("\n")[0]
            found[name] = (ast.literal_eval(minutes[0]), shows)
    return dict(sorted(found.items(), key=lambda each: each[1]))


def names(text: str) -> list[str]:
    """The experiments that are asked for, in the order of their time; all where none is named."""
    known, asked = experiments(), [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in known]:
        each = "; ".join(f"{name} ({minutes:g} minutes)" for name, (minutes, _) in known.items())
        raise argparse.ArgumentTypeError(f"WHAT: no {', '.join(unknown)}: choose from {each}")
    return [name for name in known if name in asked or not asked]


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    each = "; ".join(f"{n}, {m:g} minutes: {shows}" for n, (m, shows) in experiments().items())
    add("--what", type=names, default="", help=f"which, by comma (all). {each}".replace("%", "%%"))
    add("--small", action="store_true", help="a few steps and prompts, and nothing into docs/")
    add("--output", type=Path, default=INTO, help=f"where the folders of the runs are ({INTO})")
    add("--docs", type=Path, help=f"folder of the results ({DOCS}; else that of the runs)")
    add("arguments", nargs="*", metavar="-- ARGS", help="flags for every run, as --beta 0.3")
    return parser.parse_args()


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)

import importlib
import re

from dpo.core.machine import measuring_device
from dpo.learn.runs import STOPPED
from dpo.recipe.flags import refuse
from dpo.runs.output_folder import lock


def folder_of(name: str, small: bool, given: list[str]) -> str:
    """The name of the folder of an experiment's runs: in small, and with each set of flags,
    another."""
    flags = re.sub(r"[^\w.=+-]+", "_", " ".join(given).replace("--", "")).strip("_")
    return "-".join(filter(None, (name, "small" * small, flags[:100])))


@guarded
def main() -> None:
    args, written = arguments(), []
    measuring_device()
    rooms = {name: importlib.import_module(f"dpo.learn.{name}") for name in args.what}
    for name, room in rooms.items():
        refuse(args.arguments, name, (*room.SETS, "output_dir"))
    for name, room in rooms.items():
        into = args.output / folder_of(name, args.small, args.arguments)
        into.mkdir(parents=True, exist_ok=True)
        docs = args.docs or (DOCS if into.name == name else into)
        try:
            with lock(into):
                written += room.run(into, docs, args.small, args.arguments)
        except KeyboardInterrupt:
            print(STOPPED)
            raise
    print(f"Written: {', '.join(map(str, written))}")
    print("Next: docs/learn.md says how to read them")


if __name__ == "__main__":
    main()
