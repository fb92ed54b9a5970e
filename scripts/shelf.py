"""Write recipes/README.md, the table of the shelf, from the recipes' own headers: `make shelf`.

What a recipe's header says is what the table says, so that neither can be right alone. The machine
in a header is the one that its plan finds (make plan): that line is written here too.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
from dpo.core.terminal import at_once, guarded, parser_of

if __name__ == "__main__":  # --help, before what takes seconds to import
    at_once(lambda: parser_of(__doc__).parse_args())

import re
import textwrap
from pathlib import Path

from tqdm.auto import tqdm

from dpo.core.files import write_whole
from dpo.core.refusal import Refusal
from dpo.plan import cards
from dpo.plan.ask import Asked
from dpo.plan.choice import best
from dpo.recipe import header
from dpo.recipe.parse import FOLDER, make_parser, read_yaml

TABLE = FOLDER / "README.md"
COLUMNS = ("recipe", "model", "data", "loss", "β", "learning rate", "batch", "smallest machine")
COLUMNS += ("GPU-hours on 8 × H100", "published", "reached")
INTRODUCTION = """\
# The shelf

One file a model and data set. Each says where its numbers come from, what was published with
them, what machine it is for, and what it reached here. `make train RECIPE=<name>` runs one,
`make data RECIPE=<name>` shows its data, and [docs/data.md](../docs/data.md) says what data can
look like. This table is made of their headers by `make shelf`. The smallest machine, with nothing
offloaded, and the GPU-hours, where data are UltraFeedback's, are [plans](../docs/plan.md) and not
measured.

"""


def machine(name: str) -> str | None:
    """What a header says of the machine, by the recipe's plan; None for one that trains on a
    CPU."""
    card = cards.CARDS["H100-80GB"]
    found = Asked(name, (), 8, 1, card).smallest()
    if found is None:
        raise Refusal(f"{name}: no machine holds it by its plan")
    planned, gpus, nodes, option = found
    if not planned.half:
        return None
    memory = round(planned.card.memory / 2**30 / 8) * 8
    count = "one GPU" if gpus * nodes == 1 else f"{gpus * nodes} GPUs"
    said = (
        f"{count} of {memory} GB with CONFIG={option.config}, {option.peak / 1e9:.0f} GB on each "
    )
    said += "by its plan"
    source = f"{planned.recipe.script.dataset_name} {planned.recipe.mixture.datasets}"
    if "ultrafeedback" in source.lower() and planned.recipe.global_batch % 8 == 0:
        options = planned.on(card).options(8, 1, offload=False)
        if (taken := best(options, card.memory)) and taken.cost.gpu_hours:
            said += f"; some {taken.cost.gpu_hours:.2g} GPU-hours on 8 × H100"
    return f"{said}."


def with_machine(path: Path, said: str) -> str:
    """A recipe's text with what its plan says in its header, before what is said beside it."""
    text = path.read_text(encoding="utf-8")
    begin, old, end = re.split(r"(?ms)^(# Machine: .*?)(?=^# \w)", text, maxsplit=1)
    own = re.sub(r"\s*\n#\s+", " ", old.removeprefix("# Machine: ").strip())
    own = own[len(re.match(r"(.* by its plan.*?\.( |$))?", own)[0]) :]
    lines = textwrap.wrap(f"Machine: {said} {own}".strip(), 98, subsequent_indent="  ")
    return begin + "".join(f"# {line}\n" for line in lines) + end


def row(path: Path, defaults: dict) -> tuple[str, ...]:
    """One recipe as a row of the table, its cells in the order of COLUMNS."""
    keys, said = defaults | read_yaml(path), header.fields(path)
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
        found[0]
        if (found := re.match(r".*?(?= with CONFIG| by its plan|[:,])", said["Machine"]))
        else "",
        found[1] if (found := re.search(r"some (\S+) GPU-hours", said["Machine"])) else "–",
        said["Published"].removesuffix("."),
        header.reached(said),
    )


def table() -> str:
    defaults = vars(make_parser().parse_known_args([])[0])
    rows = [row(path, defaults) for path in sorted(FOLDER.rglob("*.yaml"))]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return INTRODUCTION + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@guarded
def main() -> None:
    parser_of(__doc__).parse_args()
    for path in tqdm(sorted(FOLDER.rglob("*.yaml")), desc="Plans"):
        if said := machine(path.stem):
            write_whole(path, with_machine(path, said))
    write_whole(TABLE, table())
    print(f"Written: {TABLE}\nNext: make test finds the recipes in it by itself")


if __name__ == "__main__":
    main()
