"""make plan, as the docs show it."""

import shlex

import pytest

from support.commands import make
from support.docs import PLANS


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
