"""A plan for a CPU, and what does not start by it."""

import functools
import json

import pytest
from transformers import AutoModelForCausalLM

from dpo.core.refusal import Refusal
from dpo.plan import auto, cards, on_cpu
from dpo.plan.arithmetic import processor
from dpo.plan.arithmetic.processor import drawn
from dpo.plan.ask import Asked
from dpo.plan.cards import card
from support.launched import forked

DEFAULT = "smollm2-sentiment"


def test_what_shares_a_machine_has_a_part_of_it():
    words = ["--json", "--gpu", "cpu", "--memory", "16", "--gpus", "2"]
    found = json.loads(forked("plan", *words).stdout)
    assert found["card"]["memory"] == 8e9 and {*found["as_it_goes"]} == {"ddp"}
    ways = {(each["live"], each["checkpointing"]): each for each in found["options"]}
    assert all(each["terms"]["communication"] for each in ways.values())
    assert "CONFIG=ddp GPUS=2" in found["command"]


@pytest.mark.parametrize(
    ("flags", "there"),
    [
        ((), True),  # pairs are scored as they come
        (("--bf16", "true"), True),  # held-out ones are
        (("--bf16", "true", "--eval_strategy", "no"), False),
        (("--use_peft", "true"), False),
    ],
)
def test_a_reference_counts_where_it_is_ever_beside_the_policy(flags, there):
    planned = Asked(DEFAULT, flags, 1, 1, card("cpu", "16")).planned()
    assert planned.beside(False, 1) == there


def test_answers_after_training_are_a_moment_of_their_own(tiny_model):
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    assert drawn(config, 8, 50, 4)[0] == 8 * 50 * 2 * 2 * 2 * 8 * 4  # layers, both, heads, width
    short = "--use_peft true --per_device_train_batch_size 1 --gradient_accumulation_steps 8"
    planned = Asked(DEFAULT, tuple(short.split()), 1, 1, card("cpu", "16")).planned()
    terms = planned.option("cpu", False, False, 1, 1, 8).terms
    answers = processor.after(planned.config, planned.lengths, planned.loaded.itemsize)
    assert terms["activations"] == answers[0] > 0.9e9 and not terms["optimizer"]


def test_the_numbers_of_a_model_are_read_off_its_files(tiny_model, tmp_path):
    numbers = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    assert on_cpu.numbers_in(tiny_model) == numbers and on_cpu.numbers_in(tmp_path) is None


def test_a_run_that_a_machine_cannot_hold_does_not_start_on_it(monkeypatch, capsys):
    alike = ("--gradient_checkpointing=false", "--precompute_ref_log_probs=false")  # fewer ways
    asked = {"recipe": DEFAULT, "config": "cpu", "gpus": "", "arguments": alike}
    monkeypatch.setattr(cards, "memory_here", lambda: 3e9)
    monkeypatch.setattr(auto, "plan_of", functools.cache(auto.plan_of))
    with pytest.raises(Refusal, match=r"CONFIG=cpu needs 4\.\d GB of a cpu of 3\.0 GB"):
        on_cpu.check(**asked, force=False)
    on_cpu.check(**asked, force=True)
    assert "FORCE=1: CONFIG=cpu needs" in capsys.readouterr().out


def test_what_fits_by_far_is_not_planned(tiny_model, monkeypatch):
    monkeypatch.setattr(auto, "plan_of", lambda *_, **__: pytest.fail("it takes seconds"))
    monkeypatch.setattr(cards, "memory_here", lambda: 16e9)
    for flags in ([], ["--model_name_or_path", str(tiny_model)]):
        on_cpu.check(DEFAULT, "", "", flags, force=False)
