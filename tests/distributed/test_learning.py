"""What several processes learn is what one learns."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dpo.training.resume import REFERENCE
from support.several import (
    CONFIGS,
    MOVES,
    NAMES,
    assert_learned_alike,
    assert_scored_alike,
    losses_of,
    under,
)

WAYS = [
    ("full", "shared", "cached"),
    ("full", "twice", "live"),
    ("adapter", "shared", "cached"),
    ("full", "shared", "live"),
    ("full", "twice", "cached"),
    ("lora", "shared", "live"),
]


# All of them without shards and with all sharded, half of them where less is.
@pytest.mark.parametrize(
    ("config", "trained", "prefix", "reference"),
    [
        under(config, *way)
        for config in NAMES
        for way in WAYS[: len(WAYS) if config in ("ddp", "zero3") else 3]
    ],
)
def test_two_processes_learn_what_one_learns(
    config, trained, prefix, reference, learn, one_process, tmp_path
):
    """The global batch is the recipe's, however many processes share it."""
    folder, shared = tmp_path / "run", prefix == "shared"
    ways = [f"--share_prefix={shared}"]
    ways += ["--precompute_ref_log_probs=False"] if reference == "live" else []
    scored = (trained, prefix, reference) == WAYS[0]
    ways += [] if scored else ["--eval_strategy=no", "--save_strategy=no"]
    said = learn(folder, trained, config, 2, *ways)
    assert "2 pairs a device × 1 accumulated × 2 processes = 4 pairs" in said
    stage = f", ZeRO-{config[4]}" if config.startswith("zero") else ", FSDP" * (config == "fsdp2")
    assert f"2 × 1 threads{stage}\n" in said
    assert f"sharing  {'on' if shared else 'off'}" in said
    stays = config == "fsdp2" and trained != "full"  # its base is on no GPU yet
    cached = reference == "cached" and not stays
    assert ("scored, and kept in" in said) == cached
    assert ("which stays live: until training begins FSDP" in said) == stays
    if stage == ", ZeRO-3":
        live = " and 50% of the reference" if trained == "full" and not cached else ""
        assert f"each process holds 50% of the policy{live}\n" in said
    assert_learned_alike(folder, one_process(trained))
    measured = json.loads((folder / "measured.json").read_text())
    assert not measured["uncounted"] and measured["terms"]["optimizer"] > 0
    assert (measured["how"]["config"], measured["how"]["processes"]) == (config, 2)
    if scored:
        assert_scored_alike(folder, one_process(trained))


@pytest.mark.parametrize(("config", "rows"), [("ddp", 7), ("zero3", 5)])
def test_every_pair_of_an_incomplete_batch_weighs_the_same(
    config, rows, learn, tiny_data, tmp_path
):
    """Of the second step of an epoch, 3 pairs or 1 are left for two processes, and of the second
    batch of an evaluation."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for split in ("train", "test"):
        lines = (data / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{split}.jsonl").write_text("".join(lines[:rows]))
    few = [f"--dataset_name={data}", "--per_device_eval_batch_size=2"]
    for where, processes in (("cpu", 1), (config, 2)):
        learn(tmp_path / where, "full", where, processes, *few)
    assert_learned_alike(tmp_path / config, tmp_path / "cpu")
    one, two = (
        json.loads((tmp_path / where / "report.json").read_text())["curves"]["held_out"]
        for where in ("cpu", config)
    )
    assert len(one) == 1 and two[0] == pytest.approx(one[0], abs=1e-5)


def test_a_kept_reference_serves_a_sharded_policy(learn, one_process, tmp_path):
    """Where it is found, a single batch goes through the policy before training."""
    for name, said in (("first", "16 scored, and kept in"), ("second", "all found in")):
        assert said in learn(tmp_path / name, "full", "zero3", 2, "--eval_strategy=no")
        assert_learned_alike(tmp_path / name, one_process("full"))


@pytest.mark.parametrize("config", ["zero2", "zero3", "fsdp2"])
def test_a_reference_that_moves_is_sharded_and_goes_on(config, learn, one_process, tmp_path):
    """It moves as that of one process does, and a run that was stopped between two moves ends with
    the weights of one that was not, to the bit."""
    folder, at_the_end = tmp_path / "run", f"checkpoint-10/{REFERENCE}"
    moved = one_process("moved")
    learn(folder, "full", config, 2, *MOVES)
    assert_learned_alike(folder, moved)
    expected, found = load_file(moved / at_the_end), load_file(folder / at_the_end)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)
    (policy,) = folder.glob("*.safetensors")
    ended = [path.read_bytes() for path in (policy, folder / at_the_end)]
    for name in ("report.json", "trainer_state.json", policy.name):
        (folder / name).unlink()
    for step in (6, 8, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    assert f"Continuing from {folder}/checkpoint-4" in learn(folder, "full", config, 2, *MOVES)
    assert [path.read_bytes() for path in (policy, folder / at_the_end)] == ended


@pytest.mark.parametrize("config", CONFIGS)
def test_four_bits_are_carried_by_every_config(config, learn, one_process, tmp_path):
    """What one process learns in them, to bfloat16's precision; without them it learns other
    things."""
    learn(tmp_path / "run", "qlora", config, 2, "--eval_strategy=no", "--save_strategy=no")
    losses = losses_of(tmp_path / "run")
    assert losses == pytest.approx(losses_of(one_process("qlora")), abs=5e-3)
    assert losses != pytest.approx(losses_of(one_process("half")), abs=2e-2)
