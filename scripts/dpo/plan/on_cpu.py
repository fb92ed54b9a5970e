"""Whether a run that trains on this machine's CPU fits into its memory. Most do by far, which the
sizes of their model's files show at once; where they do not, the plan is made."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from dpo.plan import auto, cards
from dpo.recipe.parse import FOLDER
from dpo.runs import launch

STANDS = 20  # bytes a number: policy, gradients, two moments and reference in float32
FEW = 1 / 3  # of the memory; the rest is for libraries and activations, which no plan has counted
MODEL = "model_name_or_path"


def numbers_in(folder: Path) -> int | None:
    """Numbers in the weights of a model's folder, by the headers of its files; None without any."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [each["shape"] for name, each in header.items() if name != "__metadata__"]
        total += sum(map(math.prod, shapes))
    return total or None


def surely_fits(name: str, processes: int) -> bool:
    """Whether what stands there while all of a model trains leaves most of the memory free."""
    with contextlib.suppress(OSError, ValueError, KeyError):  # training says what is wrong with it
        if numbers := numbers_in(Path(name)):
            return STANDS * numbers * processes <= FEW * cards.memory_here()
    return False


def check(recipe: str, config: str, gpus: str, arguments: list[str], force: bool, **_: Any) -> None:
    """Have a run on this machine's CPU not start that does not fit.

    Args:
        recipe, config, gpus, arguments: as `launch.plan` takes them.
        force: try it all the same, and say what it needs.

    Raises:
        Refusal: its plan says that it does not fit.
    """
    if config != "cpu" and launch.gpus_here():
        return
    keys, flags = launch.look(["--config", f"{FOLDER}/{recipe}.yaml", *arguments])[1:]
    given = [word.partition("=") for word in [*flags, ""]]
    named = [at for at, (flag, *_) in enumerate(given) if flag == f"--{MODEL}"]
    name = str(keys.get(MODEL, ""))
    if named:
        name = given[named[-1]][2] or flags[named[-1] + 1]
    processes = 1 if config in ("", *launch.ONE_PROCESS) else launch.number_of(gpus) or 1
    config = config or "cpu"
    if config not in cards.ON_CPU or surely_fits(name, processes):
        return
    on = {"gpu": cards.CPU, "memory": f"{cards.memory_here() / 1e9:f}"}
    plan = auto.plan_of(recipe, processes, 1, arguments, **on)
    if not isinstance(plan, str):  # what is wrong with it, training says
        said = auto.settle(plan, config, force)[2]
        print(said, end="\n" * bool(said), flush=True)
