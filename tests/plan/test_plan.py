"""A plan as a user asks for it, the way that is taken, and what is said where none fits."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from dpo.core.refusal import Refusal
from dpo.plan import auto, table
from dpo.plan.arithmetic import lengths
from dpo.plan.ask import Asked, card_of
from dpo.plan.auto import gb
from dpo.plan.cards import card
from dpo.plan.choice import SURE, best
from dpo.plan.options import micro_batches
from dpo.plan.table import row
from support.commands import at_once
from support.planned import told

SEVEN = "zephyr-7b-ultrafeedback"


def asked(*flags: str, gpus: int = 8, memory: str = "80") -> Asked:
    return Asked(SEVEN, flags, gpus, 1, card("H100-80GB", memory), cpu_memory=2e12)


def test_the_default_is_planned_from_its_own_files():
    result = told("--price", "2")
    assert result.returncode == 0, result.stderr
    words = " ".join(result.stdout.split())
    assert "134.5M parameters" in words and "501 pairs" in words and "its own data" in words
    assert "24 of 8 pairs" in words and "1 × H100-80GB" in words and "2 an hour" in words
    assert words.count("← taken") == 1
    assert "Next: make train RECIPE=smollm2-sentiment CONFIG=single_gpu GPUS=1" in words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipe", "zephyr"), "no RECIPE 'zephyr'"),
        (("--gpu", "H1000"), "GPU=H1000 is not known"),
        (("--accelerate_config", "zero3"), "CONFIG=zero3: a plan shows every config beside the"),
        (("--accelerate_config", "zero4"), "no CONFIG 'zero4'"),
        (("--memory", "much"), "MEMORY=much is no number of GB"),
        (("--gpus", "some"), "GPUS=some is not a number"),
        (("--", "--bta", "1"), "bta"),
        (("--gpus", "0"), "GPUS=0 is not a number of GPUs: give 1 or more"),
        (("--price", "-1"), "PRICE=-1 is no price of a GPU for an hour: give a number above 0"),
        (("--price", "nan"), "PRICE=nan is no price"),
        (("--price", "cheap"), "PRICE=cheap is no price"),
        (("--price", "inf", "--run", "outputs/none"), "PRICE=inf is no price"),
        (
            ("--utilisation", "2"),
            "UTILISATION=2 is no share of the peak: give a number above 0 and",
        ),
        (("--utilisation", "0"), "UTILISATION=0 is no share"),
        (("--memory", "inf"), "MEMORY=inf is no number of GB"),
        (("--memory", "-80", "--gpu", "H200"), "MEMORY=-80 is no number of GB"),
    ],
)
def test_what_is_misspelt_is_one_line_at_once(words, said):
    told, code = at_once("plan.py", *words)
    assert code and said in told and "Traceback" not in told and len(told.splitlines()) == 1, told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--", "--model_name_or_path", "outputs/none"), "outputs/none"),
        # Before anything of the model is looked at.
        (("--gpus", "3", "--", "--model_name_or_path", "outputs/none"), "3 processes cannot share"),
        (("--gpus", "5"), "5 processes cannot share a global batch of 8 pairs"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, said):
    result = told(*words)
    assert result.returncode and said in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_the_fastest_that_fits_is_taken():
    planned = asked().planned()
    options = planned.options(8, 1)
    taken = best(options, planned.card.memory)
    assert taken and taken.peak <= SURE * planned.card.memory
    for option in options:
        assert option.peak == pytest.approx(sum(option.terms.values()))
        if option.peak <= SURE * planned.card.memory:
            assert (taken.cost.seconds or 0) <= (option.cost.seconds or 0)
    # What shards more needs less, and so does a GPU among more of them.
    peaks = {(o.config, o.live, o.checkpointing): o.peak for o in options}
    assert {config for config, *_ in peaks} == {
        *("ddp", "zero1", "zero2", "zero3", "fsdp2", "zero3_offload")
    }
    for live in (False, True):
        order = [peaks[config, live, True] for config in ("ddp", "zero1", "zero2", "zero3")]
        assert order == sorted(order, reverse=True)
    more = {(o.config, o.live, o.checkpointing): o.peak for o in planned.options(8, 2)}
    assert more["zero3", False, True] < peaks["zero3", False, True]


def test_what_the_recipe_states_stays_stated():
    given = ("--gradient_checkpointing", "false", "--precompute_ref_log_probs", "false")
    options = asked(*given).planned().options(8, 1)
    assert {(option.live, option.checkpointing) for option in options} == {(True, False)}


def test_fewer_pairs_at_a_time_make_the_same_batch():
    recipe = asked().parsed()
    for micro, accumulation in micro_batches(recipe, 8):
        assert micro * accumulation * 8 == recipe.global_batch == 128
    given = asked("--per_device_train_batch_size", "16", "--gradient_accumulation_steps=8")
    (option,) = [o for o in given.planned().options(8, 1) if o.config == "zero1" and o.live][1:]
    line = given.command(option, given.flags_of(option, 8))
    assert option.micro < 16 and line.count("--per_device_train_batch_size") == 1
    whole = asked("--loss_type", "aot").parsed()
    assert len(micro_batches(whole, 8)) == 1, "its loss goes by which pairs come together"


def test_the_first_single_change_that_makes_it_fit_is_named():
    small = asked("--gradient_checkpointing", "false", gpus=1, memory="12")
    assert best(small.planned().options(1, 1), 12e9) is None
    words, then, _, option = small.made_to_fit() or pytest.fail("nothing makes it fit")
    assert words == "gradient_checkpointing" and option.checkpointing
    assert then.flags[-2:] == ("--gradient_checkpointing", "true")
    changes = [name for name, _ in small.changed()]
    assert changes[1:4] == ["the reference scored beforehand", "max_length 768", "max_length 512"]
    assert changes[5:] == [
        *("LoRA", "an adapter on 4 bits (QLoRA)"),
        *(f"{count} GPUs" for count in (2, 4, 8, 16, 32, 64)),
    ]


def plan_of(memory: str, *flags: str) -> dict:
    words = ["--json", "--recipe", SEVEN, "--gpus", "8", "--memory", memory]
    result = told(*words, "--gpu", "H100-80GB", "--", *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_plan_chooses_where_it_trains():
    plan = plan_of("80")
    config, flags, said, way = auto.settle(plan, "", force=False)
    (taken,) = [option for option in plan["options"] if option["taken"]]
    assert (config, flags, way) == (taken["config"], taken["flags"], taken)
    assert f"CONFIG={config} by the plan" in said
    assert plan["command"].startswith(f"make train RECIPE={SEVEN} CONFIG={config} GPUS=8")
    assert auto.settle(plan, "zero3", force=False) == ("zero3", [], "", plan["as_it_goes"]["zero3"])
    with pytest.raises(Refusal, match=r"CONFIG=ddp needs 1\d\d GB of .* CONFIG=\w+ .*FORCE=1"):
        auto.settle(plan, "ddp", force=False)
    # What is nearly full may start, if somebody asks for it.
    plan["as_it_goes"]["zero2"]["peak"] = 0.97 * plan["card"]["memory"]
    assert auto.settle(plan, "zero2", force=False)[:3] == ("zero2", [], "")


def test_where_nothing_fits_no_run_starts():
    alike = ("--gradient_checkpointing", "true", "--precompute_ref_log_probs", "true")  # fewer ways
    plan = plan_of("2", *alike)
    assert not any(option["taken"] for option in plan["options"])
    with pytest.raises(Refusal, match=r"no way fits .* the nearest needs"):
        auto.settle(plan, "", force=False)
    assert auto.settle(plan, "", force=True)[0] == "zero3_offload"


def test_a_plan_that_cannot_be_made_says_why():
    assert "no RECIPE" in str(auto.plan_of("none", 1, 1, []))


def test_the_longest_micro_batch_is_one_of_the_run():
    pairs = np.array([[10, 5, 5], [1, 1, 1], [4, 30, 2], [3, 3, 3]])
    assert lengths.longest(pairs, 1, 100, shared=True) == ((4, 30, 2),)
    assert sorted(lengths.longest(pairs, 4, 1, shared=True)) == sorted(map(tuple, pairs.tolist()))
    assert (4, 30, 2) in lengths.longest(pairs, 2, 100, shared=False)


@pytest.mark.parametrize(
    ("limit", "most"), [(1024, 1024), (4096, 4096), (24576, 24576), (None, 2216)]
)
def test_of_data_that_are_not_here_the_longest_pair_is_as_long_as_may_be(limit, most):
    flags = ("--max_length", str(limit)) if limit else ("--max_length", "none")
    kept = asked(*flags).planned().lengths
    assert (kept.pairs[:, 0] + kept.pairs[:, 1:].max(axis=1)).max() == most
    taken = limit in (4096, 24576)
    assert ("taken to be of max_length" in kept.source) == taken
    (longest,) = lengths.longest(kept.pairs, 1, 10_000, shared=True)
    assert longest[0] + longest[1] == most or not taken


def test_without_a_gpu_the_plan_is_for_a_known_one(monkeypatch):
    monkeypatch.setattr("dpo.plan.cards.here", lambda: None)
    found, why = card_of("", "")
    assert found.name == "H100-80GB" and "no GPU is here" in why
    assert card_of("4090", "")[0].name == "RTX-4090"


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_figure_is_cut_however_narrow_the_terminal(width):
    planned = asked().planned()
    options = planned.options(8, 1)
    taken = best(options, planned.card.memory)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*table.tables(options, planned.card, taken, console), sep="\n", crop=False)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= max(width, 80)
    for option in options:
        figures = row(option, (planned.card.memory, math.inf), option is taken)
        lines = [line.split() for line in text.splitlines() if option.config in line]
        needed = {figures[12], figures[14], figures[1]}
        assert any(needed <= {*line} for line in lines), option
    last = next(line for line in text.splitlines() if "← taken" in line)
    assert (gb(taken.terms["policy"]) in last) == (width >= 140)  # else in the second table
    assert gb(taken.terms["policy"]) in text and gb(taken.terms["activations"]) in text
