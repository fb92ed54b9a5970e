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
