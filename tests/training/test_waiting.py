"""Step 1 does not wait for the reference on a CPU, and nothing is learned otherwise for it."""

import gc
import json
import weakref

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from dpo.core.refusal import Refusal
from dpo.data.schema import PLACE, REFERENCE_LOGPS
from dpo.training import waiting
from dpo.training.monitoring.drift import Drift
from dpo.training.waiting import ReferenceCanWait
from support.tiny import losses_of, trainer_of

WAITS = {"fast": True, "objects": {"pairs_wait": True}, "max_steps": 6}
WAITS |= {"gradient_accumulation_steps": 1}  # four steps are an epoch


def entry(folder):
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_training_pairs_are_scored_with_the_first_batch_that_they_are_in(lora, tmp_path):
    before = trainer_of(tmp_path, "llama", **(WAITS | {"objects": None}), lora=lora)
    expected = losses_of(before)
    trainer = trainer_of(tmp_path, "llama", **WAITS, lora=lora, cache=tmp_path / "other")
    assert REFERENCE_LOGPS[0] not in trainer.train_dataset.column_names
    assert not [*(tmp_path / "other").glob("*")]  # nothing is scored yet
    assert losses_of(trainer) == pytest.approx(expected, abs=1e-5)
    assert trainer.loaded is None and trainer.ref_model is None
    assert f"{len(trainer.train_dataset)} scored as they came, and kept in" in trainer.keep_scores()
    for name, values in entry(tmp_path / "other").items():
        assert values == pytest.approx(np.array(before.train_dataset[name]), abs=1e-4)

    again = trainer_of(tmp_path, "llama", **WAITS, lora=lora, cache=tmp_path / "other")
    assert again.entry is None and PLACE not in again.train_dataset.column_names
    assert losses_of(again) == pytest.approx(expected, abs=1e-5)


def test_a_run_that_goes_on_learns_the_same_to_the_bit(tmp_path):
    """In its first epoch, with some pairs scored and some not."""
    straight = losses_of(trainer_of(tmp_path, "llama", **WAITS, cache=tmp_path / "straight"))
    halves = {**WAITS, "cache": tmp_path / "halves", "save_strategy": "steps", "save_steps": 1}
    first = trainer_of(tmp_path, "llama", **halves)
    first.args.max_steps = 2
    first.train()
    known = ~np.isnan(entry(tmp_path / "halves")[REFERENCE_LOGPS[0]])
    assert 0 < known.sum() < len(known)
    second = trainer_of(tmp_path, "llama", **halves)
    assert second.entry is not None
    second.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    found = [log["loss"] for log in second.state.log_history if "loss" in log]
    assert found == straight


@pytest.mark.parametrize("scored", [False, True], ids=["pairs wait", "held-out pairs wait"])
def test_a_model_that_was_replaced_meanwhile_is_no_reference(scored, tmp_path):
    if scored:
        trainer_of(tmp_path, "llama", fast=True)
    at = {"with_held_out": True, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_of(tmp_path, "llama", **(WAITS | at))
    assert (trainer.entry is None) == scored
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.lm_head.weight.data *= 1.1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(Refusal, match=r"is not what the policy began as.* its files have changed"):
        trainer.train()
    (checkpoint,) = tmp_path.glob("run/checkpoint-*")  # what was learned until then is not lost
    assert checkpoint.name == ("checkpoint-2" if scored else "checkpoint-1")


def test_scores_that_are_not_finite_end_the_run(tmp_path):
    trainer = trainer_of(tmp_path, "llama", **WAITS)
    trainer.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(Refusal, match=r"log-probabilities of 2 of 2 train pairs are not finite"):
        trainer.train()


@pytest.mark.parametrize(
    "settings",
    [
        {"share_prefix": False},
        {"precompute_ref_batch_size": 2},
        {"bf16": True},
        {"model_init_kwargs": {"attn_implementation": "sdpa", "dtype": "bfloat16"}},
        {"objects": None},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_where_a_batch_would_be_scored_otherwise_all_are_scored_first(settings, tmp_path):
    trainer = trainer_of(tmp_path, "llama", **(WAITS | settings))
    assert trainer.entry is None
    assert not np.isnan(trainer.train_dataset[REFERENCE_LOGPS[0]]).any()


def test_the_references_answers_at_the_first_evaluation_are_those_of_the_start(
    tmp_path, monkeypatch
):
    """And a run that is killed before them draws the same."""
    at = {"with_held_out": True, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    kept = []
    for waits in (False, True):
        monkeypatch.setattr(ReferenceCanWait, "can_wait", waits)
        trainer = trainer_of(tmp_path, "llama", fast=True, **at)
        trainer.eval_dataset = trainer.eval_dataset.add_column("prompt", ["How?"] * 4)
        trainer.add_callback(Drift(trainer))
        trainer.train()
        kept.append(json.loads((tmp_path / "run/drift.json").read_text()))
        logged = [log for log in trainer.state.log_history if "eval_drift_tokens" in log]
        assert len(logged) == 2 and trainer.loaded is None
        kept.append([log["eval_drift_nats_per_token"] for log in logged])
    assert kept[:2] == kept[2:]


def test_a_reference_that_is_loaded_again_is_in_memory_once(tmp_path, monkeypatch):
    """For training pairs, held-out pairs and answers; Python's own collection would come late."""
    loaded, load = [], waiting.load

    def watched(trainer):
        assert not [each for each in loaded if each() is not None]
        model = load(trainer)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(waiting, "load", watched)
    at = {"with_held_out": True, "eval_strategy": "steps", "eval_steps": 6}
    trainer = trainer_of(tmp_path, "llama", **(WAITS | at))
    trainer.eval_dataset = trainer.eval_dataset.add_column("prompt", ["How?"] * 4)
    trainer.add_callback(Drift(trainer))
    gc.disable()
    try:
        trainer.train()
        assert len(loaded) == 3 and not [each for each in loaded if each() is not None]
    finally:
        gc.enable()
