"""make plan, as the docs show it."""

import json
import shlex
import sys

import pytest

from support.commands import make, run
from support.docs import PLANS

# More steps than one, or the reference, which scores pairs as they come, would be gone by then.
SHORT = ("--max_steps=3", "--per_device_train_batch_size=2", "--eval_strategy=no")


@pytest.mark.parametrize("command", PLANS[1:])
def test_a_plan_of_the_docs(command):
    result = make(*shlex.split(command)[1:])
    assert result.returncode == 0, result.stderr
    recipe = command.split("RECIPE=")[1].split()[0]
    assert (
        "← taken" in result.stdout and f"Next: make train RECIPE={recipe} CONFIG=" in result.stdout
    )
    assert ("1.8 an hour" in result.stdout) == ("PRICE" in command)


def test_a_run_beside_its_plan(swept):
    """Of a run that another test makes."""
    folder, *_ = swept
    result = make("plan", f"RUN={folder}/beta=0.1", "UTILISATION=0.2")
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["planned", "measured"] in [line[-6:-4] for line in lines]
    (peak,) = [line for line in lines if line[:2] == ["peak,", "resident"] and len(line) == 5]
    assert float(peak[2]) > 0 and float(peak[3]) > 0.1


def test_a_plan_says_what_a_process_takes():
    """Resident, as the system counts it; without any of its larger terms it would be off."""
    told = run(sys.executable, "scripts/plan.py", "--json", "--gpu", "cpu", "--", *SHORT)
    way = json.loads(told.stdout)["as_it_goes"]["cpu"]
    flags = ["--output_dir=outputs/short", "--reference_cache=outputs/cache", "--save_strategy=no"]
    done = run(sys.executable, "scripts/launch.py", "--", *SHORT, *flags, WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    with open("outputs/short/report.json") as file:
        measured = json.load(file)["peak_memory_gb"] * 1e9
    assert way["peak"] == pytest.approx(measured, rel=0.1)
    for name in ("policy", "optimizer", "reference", "libraries"):
        assert way["peak"] - way["terms"][name] < 0.9 * measured, name
