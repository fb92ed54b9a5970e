"""A run planned again as it was trained, and its plan beside what it measured."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset

from dpo.core.environment import Launch
from dpo.core.machine import peak_memory_gb
from dpo.core.refusal import Refusal, one_line
from dpo.data.quarantine import Linted
from dpo.plan import cards
from dpo.plan.arithmetic import lengths
from dpo.plan.arithmetic.hours import UTILISATION
from dpo.plan.arithmetic.lengths import Lengths
from dpo.plan.ask import model_of, reference_of
from dpo.plan.auto import HANDED
from dpo.plan.choice import Option
from dpo.plan.measured import measure
from dpo.plan.options import Planned
from dpo.recipe.parse import Recipe
from dpo.runs import output_folder

STANDS = ("policy", "gradients", "optimizer", "reference", "communication")
STEP = "seconds of a step"
REST = "all else at the peak"  # activations, the output layer, gathered layers; on a CPU libraries


def again(
    recipe: Recipe,
    how: dict[str, Any],
    found: Lengths | None = None,
    utilisation: float = UTILISATION,
) -> tuple[Planned, Option]:
    """The plan of a run on what it ran on, and the way in which it trained.

    Args:
        how: as `measure.how_of` has it.
        found: how long its pairs are, where that is known.

    Raises:
        Refusal: its model is not known and not to be reached, or it was sharded on a CPU.
    """
    card = cards.of_driver(how["card"]["name"], how["card"]["memory"])
    if card.on_cpu and how["config"] not in cards.ON_CPU:
        raise Refusal(f"of CONFIG={how['config']} there is no plan on a CPU")
    config, note = model_of(recipe)
    of_it = card, None, utilisation, note, reference_of(recipe)
    planned = Planned(recipe, config, found or lengths.of(recipe), *of_it)
    way = how["config"], how["live"], how["checkpointing"], how["processes"]
    return planned, planned.option(*way, how["micro"], how["accumulation"])


def of_folder(folder: Path, how: dict[str, Any], utilisation: float) -> tuple[Planned, Option]:
    """`again` of a run in a folder, whatever machine this is: where its start is not to be had,
    by the configuration that it has left.
    """
    recipe = output_folder.recipe_of(folder, Launch(processes=1, on_cpu=True))
    try:
        model_of(recipe)
    except Refusal:
        if not (folder / "config.json").is_file():
            raise
        recipe.model.model_name_or_path, recipe.model.model_revision = str(folder), "main"
    return again(recipe, how, utilisation=utilisation)


def told(planned: Planned, option: Option, how: dict[str, Any]) -> dict[str, Any]:
    """A plan as a run keeps it, and as launch.py hands it on."""
    seconds = planned.step_seconds(option, how["processes"], how["waits"])
    return asdict(option) | {"peak": option.peak, "step_seconds": seconds}


def at_the_end(folder: Path, recipe: Recipe, data: dict[str, Linted]) -> dict[str, dict[str, Any]]:
    """Take in the peak of the evaluation, where it is of the same memory, and plan the run where
    launch.py has not: on a CPU, in a second. A plan that cannot be made is none.

    Returns what the report says of it (`headline`); empty where nothing was measured.
    """
    found = output_folder.measurements(folder)
    if found is None:
        return {}
    if "resident" in found["peak"]:
        found["peak"]["resident"] = max(found["peak"]["resident"], 1e9 * peak_memory_gb())
    if not found["plan"]:
        streams = not isinstance(data["train"].pairs, Dataset)
        try:
            known = None if streams else lengths.of_data(recipe, data)
            plan = told(*again(recipe, found["how"], known), found["how"])
            found["plan"] = {name: plan[name] for name in HANDED}
        except (Exception, Refusal) as error:
            print(f"No plan beside what the run measured: {one_line(error)}", flush=True)
    measure.keep(folder, found)
    return headline(found)


def peaks(plan: dict[str, Any], measured: dict[str, float]) -> dict[str, float]:
    """The peak of a plan as each kind of peak that was measured counts it: PyTorch's allocator
    counts no CUDA context, and as allocated not what it holds and nobody uses."""
    terms, beyond = plan["terms"], {"allocated": ("CUDA", "slack"), "reserved": ("CUDA",)}
    return {
        kind: plan["peak"] - sum(terms.get(name, 0) for name in beyond.get(kind, ()))
        for kind in measured
    }


def rows(plan: dict[str, Any], measured: dict[str, Any]) -> list[dict[str, Any]]:
    """What was planned and what was measured, in bytes, and of a step in seconds. None where one of
    both is not known."""
    found, peak = dict(measured["terms"]), measured["peak"]
    if gone(plan["stands"].get("reference"), measured):
        del found["reference"]
    planned = peaks(plan, peak)
    most = next(iter(peak))  # allocated, or resident
    pairs = [(name, plan["stands"].get(name), found.get(name)) for name in STANDS]
    stands = sum(plan["stands"].values()), sum(found.values())
    whole = len(found) == len(STANDS)  # all of it was counted
    pairs.append((REST, planned[most] - stands[0], peak[most] - stands[1] if whole else None))
    pairs += [(f"peak, {kind}", planned[kind], size) for kind, size in peak.items()]
    seconds = (measured["speed"] or {}).get("step_seconds")
    pairs.append((STEP, plan["step_seconds"], seconds))
    return [{"name": n, "planned": p, "measured": m, "error": error_of(p, m)} for n, p, m in pairs]


def gone(planned: float | None, measured: dict[str, Any]) -> bool:
    """Whether the reference was not there when the run looked at what is, though so many bytes are
    planned: it may have been at the peak, before or after, for the pairs that it scored."""
    return bool(planned) and measured["terms"].get("reference") == 0


def error_of(planned: float | None, measured: float | None) -> float | None:
    """By what share of the measured the plan is above it; None where either is not known."""
    return planned / measured - 1 if planned is not None and measured else None


def headline(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Peak and speed of a run, each with what was planned and by what share that is above it: the
    peak in GB, `of` what its kind is called, and pairs a second of all processes."""
    (kind, peak), *_ = measured["peak"].items()
    plan, speed, how = measured["plan"], measured["speed"], measured["how"]
    said = plan and peaks(plan, measured["peak"])[kind] / 1e9
    found = {"peak_gb": {"of": kind, "measured": peak / 1e9, "planned": said}}
    if speed:
        batch = how["micro"] * how["accumulation"] * how["processes"]
        seconds = plan and plan["step_seconds"]
        found["pairs_per_second"] = {
            "of": f"{speed['step_seconds']:.3g} s a step",
            "measured": speed["pairs_per_second"],
            "planned": batch / seconds if seconds else None,
        }
    for each in found.values():
        each["error"] = error_of(each["planned"], each["measured"])
    return found


def reached(planned: Planned, option: Option, how: dict[str, Any], took: float) -> float | None:
    """The utilisation by which a step takes as long as it took; None where what does not go by it
    takes longer."""
    slow = 1e-6  # at which nothing but computing counts, and what comes on top
    least, one, two = (
        planned.reaching(each).step_seconds(option, how["processes"], how["waits"])
        for each in (math.inf, slow, 2 * slow)
    )
    if least is None or one is None or two is None or took <= least:
        return None
    computed = 2 * (one - two)  # seconds of it at `slow`
    return slow * computed / (took - one + computed)


def hours(planned: Planned, option: Option, processes: int) -> float:
    """Of the whole run."""
    way = option.live, option.checkpointing, option.micro
    return (planned.price_of(option.config, processes, *way).seconds or 0) / 3600
