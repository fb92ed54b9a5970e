"""make shelf: what a recipe's header says of its machine is what its plan finds."""

import pytest

import shelf
from dpo.recipe import header
from support.place import ROOT


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipes_machine_is_the_one_that_its_plan_finds(recipe):
    said = shelf.machine(recipe.stem)
    assert said is None or header.fields(recipe)["Machine"].startswith(said), "make shelf"
