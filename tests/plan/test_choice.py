"""Which way is taken: on cards of which no speed is known, by the machine's own memory, beside a
reference of another size; and the command that is printed for it."""

import subprocess

import pytest

from dpo.core.refusal import Refusal
from dpo.plan import auto
from dpo.plan.arithmetic import hours
from dpo.plan.ask import Asked
from dpo.plan.cards import CARDS, Card, card, machine_of
from dpo.plan.choice import SURE, best

SEVEN, DEFAULT = "zephyr-7b-ultrafeedback", "smollm2-sentiment"
LARGER = "allenai/Llama-3.1-Tulu-3-70B-SFT"
H100 = CARDS["H100-80GB"]


def asked(*flags: str, gpus: int = 8, on: Card = H100, own: float | None = None) -> Asked:
    return Asked(SEVEN, flags, gpus, 1, on, cpu_memory=own)


@pytest.mark.parametrize(("recipe", "gpus", "gb"), [(DEFAULT, 1, 16.8), (SEVEN, 2, 85)])
def test_without_a_known_speed_the_fastest_is_taken_all_the_same(recipe, gpus, gb):
    """As on a card that is as large and of which it is known; never by offloading what fits."""
    known, unknown = Card("one", gb * 1e9, 165.2e12), Card("NVIDIA GeForce RTX 6080", gb * 1e9)
    planned = Asked(recipe, (), gpus, 1, known).planned()
    taken = best(planned.options(gpus, 1), known.memory)
    options = planned.on(unknown).options(gpus, 1)
    found = best(options, unknown.memory)
    assert found and taken and found.cost.seconds is None and taken.cost.seconds
    assert (found.config, found.live, found.micro) == (taken.config, taken.live, taken.micro)
    assert found.config != "zero3_offload"
    (offloaded, *_) = [o for o in options if o.config == "zero3_offload"]
    assert found.cost.compared < offloaded.cost.compared


def test_a_machine_is_taken_to_have_what_one_of_the_card_has():
    assert machine_of(CARDS["RTX-4090"], 1) == machine_of(CARDS["L40S"], 4) == 128e9
    assert machine_of(H100, 8) == machine_of(card("H100-80GB", "40"), 8) == 2048e9
    assert asked(gpus=1).machine == 256e9 and asked(own=64e9).machine == 64e9


def test_what_the_machine_cannot_hold_is_not_offloaded_to_it():
    """Then the first change that makes it fit is told, and not weeks of offloading."""
    small = Card("small", 24e9)
    alike = ("--gradient_checkpointing", "true", "--precompute_ref_log_probs", "true")  # fewer ways
    here = asked(*alike, gpus=1, on=small)
    options = here.planned().options(1, 1)
    offloaded = [option for option in options if option.config == "zero3_offload"]
    assert all(option.machine > 128e9 and option.peak < SURE * 24e9 for option in offloaded)
    assert best(options, 24e9, here.machine) is None
    assert best(options, 24e9, machine=256e9) in offloaded
    change, then, _, option = here.made_to_fit() or pytest.fail("nothing makes it fit")
    assert change == "LoRA" and "--use_peft" in then.flags and option.machine < SURE * 128e9
    larger = asked(*alike, gpus=1, on=small, own=256e9)
    assert larger.planned().least(1, 1, larger.machine) < SURE * 24e9
    assert here.planned().least(1, 1, here.machine) > 100e9


def test_what_fits_a_gpu_is_not_offloaded(monkeypatch):
    """However much faster it would be: a compiler and a slow bus are not in a plan's hours."""
    monkeypatch.setitem(hours.SLOWER, "zero3_offload", 0.1)
    planned = Asked(DEFAULT, (), 1, 1, Card("RTX-4080", 3.9e9, 97.5e12)).planned()
    options = planned.options(1, 1)
    offloaded = min((o for o in options if o.machine), key=lambda option: option.cost.compared)
    found = best(options, 3.9e9, 128e9)
    assert found and found.config == "single_gpu" and found.micro < offloaded.micro
    assert found.cost.compared > offloaded.cost.compared and offloaded.peak < SURE * 3.9e9


def test_of_ways_that_do_not_fit_the_one_with_the_least_is_shown():
    """On a CPU gradients are not there beside the activations of the only micro-batch."""
    planned = Asked(DEFAULT, (), 1, 1, Card("cpu", 4.2e9)).planned()
    for option in planned.options(1, 1):
        pairs = [(n, 8 // n) for n in (8, 4, 2, 1)]
        how = option.config, option.live, option.checkpointing, 1
        peaks = [planned.option(*how, *each).peak for each in pairs]
        assert option.peak == min(peaks) or option.peak <= SURE * 4.2e9, pairs


def way(config: str, peak: float, machine: float = 0, taken: bool = False) -> dict:
    return {"config": config, "peak": peak, "machine": machine, "taken": taken, "flags": []}


def plan_of(*ways: dict, machine: float = 128e9) -> dict:
    goes = {each["config"]: each for each in ways}
    plan = {"card": {"name": "RTX-4090", "memory": 25e9}, "machine": machine, "options": [*ways]}
    return plan | {"as_it_goes": goes, "command": "make train ARGS=--lora", "change": "LoRA"}


def test_a_run_starts_by_both_memories_and_says_so():
    taken = way("zero3_offload", 17e9, 100e9, taken=True)
    config, _, said, _ = auto.settle(plan_of(taken), "", force=False)
    assert config == "zero3_offload"
    assert "17.0 GB of a RTX-4090 of 25.0 GB and 100 GB of the machine's 128 GB" in said
    larger = way("zero3_offload", 40e9, 159e9)  # and as much of the machine
    large = plan_of(way("single_gpu", 144e9), larger, way("zero3_offload", 17e9, 159e9))
    with pytest.raises(Refusal, match=r"no way fits .* 17.0 GB .*128 GB: .*, with LoRA. FORCE=1"):
        auto.settle(large, "", force=False)
    with pytest.raises(Refusal, match=r"CONFIG=zero3_offload needs .* and 159 GB .*FORCE=1"):
        auto.settle(large, "zero3_offload", force=False)


@pytest.mark.parametrize("config", ["", "single_gpu", "zero3_offload"])
def test_what_is_forced_is_said(config):
    large = plan_of(way("single_gpu", 144e9), way("zero3_offload", 17e9, 159e9))
    found, _, said, _ = auto.settle(large, config, force=True)
    assert said.startswith("FORCE=1: ") and f"CONFIG={found}" in said and "tried" in said
    assert found == (config or "zero3_offload") and "\n" not in said


PASTED = "train:\n\t@python3 -c 'import sys; print(sys.argv[1:])' $(ARGS)\n"


@pytest.mark.parametrize(
    "value",
    ["plain", "two words", "it's", 'say "x"', "$HOME", "a`b`", "back\\slash", "#5", '{"a": 0.1}'],
)
def test_the_printed_command_can_be_pasted(value, tmp_path):
    here = asked("--model_name_or_path", value, "--beta=0.2")
    (tmp_path / "Makefile").write_text(PASTED)
    (option, *_) = asked().planned().options(8, 1)
    line = here.command(option, ["--gradient_checkpointing", "false"])
    assert line.startswith(f"make train RECIPE={SEVEN} CONFIG=")
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    words = ["--model_name_or_path", value, "--beta=0.2", "--gradient_checkpointing", "false"]
    assert done.stdout.strip() == str(words), done.stderr


def test_of_several_machines_the_command_is_the_first_ones():
    several = Asked(SEVEN, (), 8, 4, H100)
    (option, *_) = several.planned().options(8, 4)
    assert " NODES=4 NODE_RANK=0 MAIN=10.0.0.1:29500" in several.command(option, [])
    assert "NODE_RANK" not in asked().command(option, [])


def test_an_adapters_reference_is_live_under_fsdp():
    lora = ("--use_peft", "true", "--lora_target_modules", "all-linear")
    live = {(o.config, o.live) for o in asked(*lora).planned().options(8, 1)}
    assert ("fsdp2", True) in live and ("fsdp2", False) not in live
    assert ("zero2", False) in live and ("zero2", True) not in live
    goes = asked(*lora).planned().as_it_goes(8, 1)
    assert goes["fsdp2"].live and not goes["zero2"].live
    stated = asked(*lora, "--precompute_ref_log_probs", "true").planned().options(8, 1)
    assert "fsdp2" not in {option.config for option in stated}, "training refuses it"


def test_a_reference_of_the_same_size_takes_what_the_policys_start_does():
    plain = asked().planned().options(8, 1)
    own = (
        asked("--ref_model_name_or_path", "alignment-handbook/zephyr-7b-sft-full")
        .planned()
        .options(8, 1)
    )
    for one, other in zip(plain, own, strict=True):
        assert other.stands == pytest.approx(one.stands, rel=0.001)
        assert other.cost.flops == pytest.approx(one.cost.flops, rel=0.001)
        assert other.machine >= one.machine


def test_a_reference_of_another_size_is_counted_by_its_own():
    """Live, and beside the policy while it is scored beforehand."""
    found = asked("--ref_model_name_or_path", LARGER).planned().options(8, 1)
    ways = {(o.config, o.live, o.checkpointing): o for o in found}
    whole = 2 * 70.55e9  # bytes in bfloat16
    for live in (True, False):
        terms = ways["zero2", live, True].terms
        assert terms["reference"] == pytest.approx(whole, rel=0.01)
        assert terms["policy"] == pytest.approx(2 * 7.24e9, rel=0.01)
        sharded = ways["zero3", live, True].terms
        assert sharded["reference"] == pytest.approx(whole / 8, rel=0.01)
    scoring = ways["zero2", False, True].terms  # gradients and activations are not there yet
    assert scoring["gradients"] == scoring["activations"] == 0 < scoring["optimizer"]
    assert ways["ddp", False, True].terms["optimizer"] == 0
    assert ways["fsdp2", False, True].terms["gathered"] == pytest.approx(whole, rel=0.01)
    plain = asked().planned().options(8, 1)[0].cost.flops["reference"]
    assert 8 < found[0].cost.flops["reference"] / plain < 12
    taken = best(found, H100.memory)
    assert taken and taken.config == "zero3"
