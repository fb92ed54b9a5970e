"""Write a recipe to start from: `make new` runs this.

    make new RECIPE=my-recipe MODEL=Qwen/Qwen3-0.6B DATASET=path/to/pairs.jsonl
    make new RECIPE=... MODEL=... DATASET=... COLUMNS="prompt=question chosen=good rejected=bad"
    make new FROM=theirs.yaml RECIPE=my-recipe GPUS=8

Looks at the model's size, at the data's columns, splits and rows, and at this machine, and puts
numbers that were published for that size into recipes/<RECIPE>.yaml, each with where it comes
from. Model and data are names of the hub, or folders and files here. COLUMNS names the columns of
data that call them otherwise, ours before theirs.

FROM is a DPO recipe of alignment-handbook, older TRL, axolotl, LLaMA-Factory, open-instruct or
ms-swift: YAML, JSON, TOML or a shell script. Every key is mapped, renamed or left out with the
reason. MODEL and DATASET go before its own; GPUS says how many it ran on, where it does not.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import re
from functools import partial
from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.recipe.parse import FOLDER
from dpo.runs.launch import number_of


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = partial(parser.add_argument, default="")
    add("--recipe", help="the new one's name")
    add("--model", help="a folder, or a name of the hub")
    add("--dataset", help="a file, a folder, or a name of the hub")
    add("--columns", help='the data\'s own names: "prompt=question chosen=good rejected=bad"')
    add("--from", help="a recipe of another tool")
    add("--gpus", help="how many that one ran on, where it does not say")
    return parser.parse_args()


def plain(name: str) -> str:
    """A name in the letters and signs that a recipe's has."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-._")


def asked() -> tuple[dict[str, str], Path, int | None]:
    """The arguments, the file to write, and the number of GPUs.

    Raises:
        Refusal: one is missing, or the name is none, or there is such a recipe.
    """
    args = vars(arguments())
    if args["from"]:
        args["recipe"] = args["recipe"] or plain(Path(args["from"]).stem)
    for name in () if args["from"] else ("recipe", "model", "dataset"):
        if not args[name]:
            raise Refusal(
                f"{name.upper()}= is missing: make new RECIPE=my-recipe MODEL=Qwen/Qwen3-0.6B "
                "DATASET=path/to/pairs.jsonl, or make new FROM=theirs.yaml"
            )
    name = args["recipe"]
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        near = f"small letters, digits, points, dashes: {plain(name) or 'my-recipe'}"
        raise Refusal(f"RECIPE={name}: a name has {near}")
    path = FOLDER / f"{name}.yaml"
    if path.exists():
        raise Refusal(f"{path} is there already: give another RECIPE=")
    return args, path, number_of(args["gpus"])


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(asked)

import yaml

from dpo.core.files import write_whole
from dpo.core.terminal import visible
from dpo.data.formats.columns import mapping_of
from dpo.data.starting import data_of, has_chat_template, recipe
from dpo.recipe.convert.convert import convert


@guarded
def main() -> None:
    args, path, gpus = asked()
    name, source = args["recipe"], Path(args["from"])
    if args["from"]:
        data, mapping = {}, mapping_of(args["columns"], "COLUMNS")
        if args["dataset"]:
            chat = bool(args["model"]) and has_chat_template(args["model"])
            lines, _ = data_of(args["dataset"], mapping, chat)
            data = yaml.safe_load("\n".join(lines))
        elif mapping:
            data = {"column_mapping": mapping}
        text, told = convert(source, name, args["model"], data, gpus)
        print(visible("\n".join(told)))
    else:
        text = recipe(name, args["model"], args["dataset"], args["columns"])
    write_whole(path, text)
    print(f"Written: {path}\nNext: make data RECIPE={name}, then make train RECIPE={name}")


if __name__ == "__main__":
    main()
