"""Headers of recipes: the numbers that a run is held against, read strictly."""

import re

import pytest

import reproduce
from dpo.core.refusal import Refusal
from dpo.recipe import header
from dpo.recipe.header import Expected, Number
from dpo.recipe.parse import look
from dpo.reports.results import PLACES
from support.commands import at_once
from support.docs import page
from support.place import ROOT

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
DEFAULT = ROOT / "recipes/smollm2-sentiment.yaml"
LINES = "# A title.\n# Published: none.\n# Machine: any.\n"


def written(folder, *lines: str):
    path = folder / "one.yaml"
    path.write_text(LINES + "".join(f"# {line}\n" for line in lines) + "\nbeta: 0.1\n")
    return path


def test_numbers_are_read_with_their_intervals(tmp_path):
    path = written(
        tmp_path,
        "Reached: true reward 0.735 (0.698 to 0.771), KL nats per sequence",
        "  5.90 (5.4 to 6.3), true reward difference -0.1 (-0.2 to 0); in 4.3 minutes.",
        "With --max_steps=2 --seed=1: answer tokens 29 (28 to 30).",
        "Run: make train",
    )
    reward = Number("true reward", "0.735", 0.698, 0.771, 3)
    kl = Number("KL nats per sequence", "5.90", 5.4, 6.3, 2)
    fallen = Number("true reward difference", "-0.1", -0.2, 0, 1)
    tokens = Number("answer tokens", "29", 28, 30, 0)
    assert header.expected(path) == [
        Expected((), (reward, kl, fallen)),
        Expected(("--max_steps=2", "--seed=1"), (tokens,)),
    ]
    assert {reward.name, kl.name, fallen.name, tokens.name} <= PLACES.keys()


@pytest.mark.parametrize(
    "said", ["not run yet.", "not run here at full length; 2 steps of it are."]
)
def test_what_was_not_run_expects_nothing(said, tmp_path):
    assert header.expected(written(tmp_path, f"Reached: {said}")) == []


@pytest.mark.parametrize(
    "said",
    [
        "true reward 0.73",
        "true reward 0.73 ± 0.06",
        "true reward 0.73 (0.6 to 0.8), accuracy of 0.7",
        "0.73 (0.6 to 0.8)",
        "true reward 0.73 (0.8 to 0.9)",
        "true reward 0.7.3 (0.6 to 0.8)",
    ],
)
def test_a_number_that_cannot_be_compared_is_named(said, tmp_path):
    for line in (f"Reached: {said}.", f"Reached: not run.\n# With --beta=1: {said}."):
        with pytest.raises(Refusal, match=r"one\.yaml: `# .*:` says .*(write|interval)"):
            header.expected(written(tmp_path, line))


@pytest.mark.parametrize(
    "lines, why",
    [
        (
            ["Reached: answer tokens 29 (28 to 30),", "true reward 0.7 (0.6 to 0.8)."],
            "three blanks",
        ),
        (["Reached: none.", "Reached: answer tokens 29 (28 to 30)."], "twice"),
        (["Reached: answer tokens 29 (28 to 30), answer tokens 31 (28 to 32)."], "twice"),
    ],
)
def test_no_number_of_a_header_is_lost(lines, why, tmp_path):
    with pytest.raises(Refusal, match=why):
        header.expected(written(tmp_path, *lines))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_header_is_such_that_its_recipe_can_be_held_to_it(path):
    found = header.expected(path)
    for each in found:
        assert {number.name for number in each.numbers} <= PLACES.keys()
        look(["--config", str(path), *each.flags])
    if not found:
        of = reproduce.Asked(path.stem, "", "", [], [])
        line = reproduce.nothing_known(of)
        assert header.fields(path)["Published"].removesuffix(".") in line and "\n" not in line


def test_what_the_default_is_held_to_is_what_was_measured():
    whole, short = header.expected(DEFAULT)
    measured = re.search(r"^\| 42 \|.*$", page("seeds.md"), flags=re.MULTILINE)[0]
    measured += page("recipes.md")
    for number in whole.numbers:
        assert number.value in measured, number
        if number.name in ("true_reward", "preference_accuracy"):
            assert f"{number.value} ({number.low:.3f} to {number.high:.3f})" in measured, number
    assert re.search(rf'make reproduce ARGS="{" ".join(short.flags)}"', page("recipes.md"))


def test_a_recipe_without_numbers_is_answered_at_once():
    said, code = at_once("reproduce.py", "--recipe", "tulu-3-8b-tulu3mix")
    assert code == 1 and said.count("\n") == 1
    assert "nothing to compare with" in said and "IFEval 81.1" in said
    assert "make evaluate SUITE=ifeval measures IFEval" in said
    said, code = at_once("reproduce.py", "--recipe", "smolm2-sentiment")
    assert code == 1 and "smollm2-sentiment" in said
    said, code = at_once("reproduce.py", "--recipe", "smollm2-sentiment", "--", "--output_dir=x")
    assert code == 1 and "output_dir: make reproduce sets this itself" in said
