"""Which way make train takes on this machine's GPUs, by its plan. Nothing heavy is imported: the
plan is made by a process of its own, which leaves no CUDA context behind."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dpo.core.environment import PLAN, finding_us
from dpo.core.refusal import Refusal, last_line

AUTO = "auto"
HANDED = ("terms", "stands", "peak", "step_seconds")  # of a way, that a run is told
Way = dict[str, Any]  # an option of a plan in JSON


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 99.95e9 else f"{size / 1e9:.0f}"


def without(flags: Sequence[str], names: list[str]) -> list[str]:
    """Flags of train.py without those of some names, with their values."""
    kept: list[str] = []
    drops = False
    for word in flags:
        if word.startswith("--"):
            drops = word.partition("=")[0] in names
        kept += [] if drops else [word]
    return kept


def plan_of(
    recipe: str, gpus: int, nodes: int, flags: list[str], **on: str
) -> dict[str, Any] | str:
    """The plan as plan.py tells it in JSON, or why there is none.

    Args:
        on: another card than this machine's, as plan.py takes `gpu` and `memory`.
    """
    words = ["scripts/plan.py", "--json", "--recipe", recipe, "--gpus", str(gpus)]
    command = [sys.executable, *words, "--nodes", str(nodes)]
    command += [word for name, value in on.items() for word in (f"--{name}", value)]
    command += ["--", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=finding_us(os.environ))
    if done.returncode < 0:
        return f"the process that makes one was ended by signal {-done.returncode}"
    return json.loads(done.stdout) if done.returncode == 0 else last_line(done.stderr)


def settle(
    plan: dict[str, Any], config: str, force: bool
) -> tuple[str, list[str], str, Way | None]:
    """The config to take, flags to add, a line that says so, and what the plan says of that way.

    Args:
        config: that was asked for; "" leaves it to the plan.
        force: go on with what does not fit.

    Raises:
        Refusal: what is asked for does not fit, or nothing does.
    """
    memory, machine, options = plan["card"]["memory"], plan["machine"], plan["options"]
    card = f"{plan['card']['name']} of {gb(memory)} GB"

    def needs(way: Way) -> str:
        said = f"{gb(way['peak'])} GB of a {card}"
        beside = f" and {gb(way['machine'])} GB of the machine's {gb(machine)} GB"
        return said + beside * bool(way["machine"])

    def filled(way: Way) -> float:
        return max(way["peak"] / memory, way["machine"] / machine)

    def nearest() -> Way:
        return min(options, key=lambda way: (filled(way), way["peak"]))

    with_change = f", with {plan['change']}" if plan["change"] else ""
    other = plan["command"] + with_change if plan["command"] else "no one change makes it fit"
    advice = f"{other}. FORCE=1 tries it all the same"
    if not config:
        taken = next((option for option in options if option["taken"]), None)
        if taken is None and not force:
            raise Refusal(f"no way fits a {card}, the nearest needs {needs(nearest())}: {advice}")
        said = "CONFIG={} by the plan: {}; make plan shows the other ways"
        if taken is None:
            taken = nearest()
            said = "FORCE=1: nothing fits by the plan, and CONFIG={} is tried, which needs {}"
        return taken["config"], taken["flags"], said.format(taken["config"], needs(taken)), taken
    way = plan["as_it_goes"].get(config)
    if way is None or filled(way) <= 1:
        return config, [], "", way
    said = f"CONFIG={config} needs {needs(way)} as the recipe goes"
    if not force:
        raise Refusal(f"{said}: {advice}")
    return config, [], f"FORCE=1: {said}, and is tried all the same", way


def handed(way: Way | None) -> dict[str, str]:
    """An environment by which a run knows what its plan says, to hold what it measures against."""
    return {PLAN: json.dumps({name: way[name] for name in HANDED})} if way else {}
