"""Write recipes/README.md, the table of the shelf, from the recipes' own headers: `make shelf`.

What a recipe's header says is what the table says, so that neither can be right alone.
"""

import re
from pathlib import Path

from dpo.core.files import write_whole
from dpo.core.refusal import Refusal
from dpo.core.terminal import guarded, parser_of
from dpo.recipe.parse import FOLDER, make_parser, read_yaml

TABLE = FOLDER / "README.md"
COLUMNS = ("recipe", "model", "data", "loss", "β", "learning rate", "batch", "published", "reached")
INTRODUCTION = """\
# The shelf

One file a model and data set. Each says where its numbers come from, what was published with
them, what machine it is for, and what it reached here. `make train RECIPE=<name>` runs one,
`make data RECIPE=<name>` shows its data, and [docs/data.md](../docs/data.md) says what data can
look like. This table is made of their headers by `make shelf`.

"""


def header(path: Path) -> dict[str, str]:
    """The fields of a recipe's header, and its first line as `title`."""
    text = path.read_text(encoding="utf-8").split("\n\n")[0]
    text = re.sub(r"\n#   ", " ", text)
    title, *fields = (line.removeprefix("# ") for line in text.splitlines() or [""])
    found = {"title": title} | {key: said for key, _, said in (f.partition(": ") for f in fields)}
    for key in ("Published", "Reached"):
        if key not in found:
            raise Refusal(f"{path}: its header has no line `# {key}: ...`, which the table shows")
    return found


def row(path: Path, defaults: dict) -> tuple[str, ...]:
    """One recipe as a row of the table, its cells in the order of COLUMNS."""
    keys, said = defaults | read_yaml(path), header(path)
    data = keys["dataset_name"] or ", ".join(dict.fromkeys(d["path"] for d in keys["datasets"]))
    batch = keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"]
    kind = " (QLoRA)" if keys["load_in_4bit"] else " (LoRA)" if keys["use_peft"] else ""
    return (
        f"[{path.stem}]({path.relative_to(FOLDER)})",
        keys["model_name_or_path"] + kind,
        data,
        " + ".join(keys["loss_type"]),
        f"{keys['beta']:g}",
        f"{keys['learning_rate']:g}".replace("e-0", "e-"),
        str(batch),
        said["Published"].removesuffix("."),
        said["Reached"].split(";")[0].removesuffix("."),
    )


def table() -> str:
    defaults = vars(make_parser().parse_known_args([])[0])
    rows = [row(path, defaults) for path in sorted(FOLDER.rglob("*.yaml"))]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return INTRODUCTION + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@guarded
def main() -> None:
    parser_of(__doc__).parse_args()
    write_whole(TABLE, table())
    print(f"Written: {TABLE}\nNext: make test finds the recipes in it by itself")


if __name__ == "__main__":
    main()
