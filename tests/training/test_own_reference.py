"""A reference that is not what the policy starts from: stock TRL's numbers, scored once."""

import gc
import json
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import create_model_from_path

from dpo.core.refusal import Refusal
from dpo.data.schema import REFERENCE_LOGPS
from dpo.models import scoring
from dpo.recipe.arguments import RunArguments
from dpo.training.monitoring.drift import Drift
from dpo.training.preflight.checks import Gates
from dpo.training.resume import to_go_on_from
from support.tiny import random_model, trainer_of


def other(folder: Path, name: str = "llama", seed: int = 5) -> Path:
    """The folder of a model with other weights than those that the policy starts from."""
    random_model(name, seed).save_pretrained(folder / f"reference-{seed}")
    return folder / f"reference-{seed}"


def load(folder: Path) -> PreTrainedModel:
    return create_model_from_path(str(folder), attn_implementation="sdpa")


def with_reference(folder: Path, of: Path, name: str = "llama", *, waits=False, gate=True, **more):
    """Our trainer with the model in `of` as its reference, checked as runs are."""
    ours = {"load_reference": partial(load, of), "pairs_wait": waits}
    objects = {**(more.pop("objects", None) or {}), **ours}
    trainer = trainer_of(folder, name, fast=True, objects=objects, **more)
    if gate:
        trainer.add_callback(gates(trainer))
    return trainer


def gates(trainer) -> Gates:
    return Gates(trainer, SimpleNamespace(run=RunArguments()))


def learned(trainer) -> tuple[list, dict[str, torch.Tensor]]:
    """What a training has logged of every step, and its weights."""
    trainer.train()
    keys = ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "eval_loss")
    log = [[entry.get(key, 0) for key in keys] for entry in trainer.state.log_history[:-1]]
    return log, {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


WAYS = {
    "scored once": {},
    "padded": {"share_prefix": False},
    "as pairs come": {"waits": True},
    "live": {"precompute_ref_log_probs": False},
    "live and padded": {"precompute_ref_log_probs": False, "share_prefix": False},
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_losses_and_gradients_are_those_of_stock_trl(name, lora, tmp_path):
    """Its norm at every step, and all weights after ten of them. One step is an epoch: each pair
    comes five times."""
    of = other(tmp_path, name)
    stock = trainer_of(tmp_path, name, fast=False, lora=lora, objects={"ref_model": load(of)})
    expected, weights = learned(stock)
    assert expected[0][0] != pytest.approx(np.log(2), abs=0.01)  # it starts elsewhere
    # Without shared prefixes the model's own code is stock.
    ways = {way: given for way, given in WAYS.items() if name == "llama" or "padded" not in way}
    for way, given in ways.items():
        trainer = with_reference(tmp_path / way, of, name, lora=lora, **given)
        found, mine = learned(trainer)
        assert (trainer.ref_model is None) == ("live" not in way), way
        assert np.array(found) == pytest.approx(np.array(expected), abs=1e-4, rel=1e-4), way
        for key, weight in weights.items():
            torch.testing.assert_close(mine[key], weight, atol=2e-4, rtol=0, msg=f"{way}: {key}")


@pytest.mark.parametrize("way", WAYS)
def test_the_policys_own_start_as_a_reference_changes_nothing(way, tmp_path):
    """To the bit, dropout too; and it is found by what was kept for a run that states none."""
    drops = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.3)
    held_out = {"with_held_out": True, "eval_strategy": "steps", "eval_steps": 3}
    for adapter in (None, drops):
        given = {"max_steps": 6, **held_out, "cache": tmp_path / f"cache-{adapter is None}"}
        given |= WAYS[way]
        waits = {"pairs_wait": given.pop("waits", False)}
        plain = {**given, "objects": {"peft_config": adapter, **waits}}
        log, weights = learned(trainer_of(tmp_path, "llama", fast=True, **plain))
        given |= {"objects": {"peft_config": adapter}, "waits": waits["pairs_wait"]}
        if way == "as pairs come":  # and none is found
            given["cache"] = tmp_path / f"other-{adapter is None}"
        trainer = with_reference(tmp_path, tmp_path / "model", **given)
        found, mine = learned(trainer)
        assert found == log and len(log) == 8
        assert all(torch.equal(mine[name], weights[name]) for name in weights)
        kept = [*given["cache"].glob("*.safetensors")]
        # Of the pairs trained on and of those held out.
        assert len(kept) == {"live": 0, "live and padded": 0, "as pairs come": 1}.get(way, 2)


def test_another_reference_is_another_entry_and_the_policys_start_is_none(tmp_path):
    """Found again by a run whose policy starts from that very model."""
    cache = tmp_path / "cache"
    scores = {}
    for seed in (5, 6):
        trainer = with_reference(tmp_path, other(tmp_path, seed=seed), cache=cache)
        scores[seed] = trainer.train_dataset[REFERENCE_LOGPS[0]]
    assert scores[5] != scores[6] and len([*cache.glob("*.safetensors")]) == 2
    again = trainer_of(tmp_path / "b", "llama", fast=True, weights=5, cache=cache)
    assert again.train_dataset[REFERENCE_LOGPS[0]] == scores[5]
    assert len([*cache.glob("*.safetensors")]) == 2


@pytest.mark.parametrize("waits", [False, True], ids=["scored first", "as pairs come"])
def test_a_run_that_goes_on_learns_the_same_to_the_bit(waits, tmp_path):
    """Killed in its first epoch, with some pairs scored and some not."""
    of, more = other(tmp_path), {"max_steps": 6, "gradient_accumulation_steps": 1, "waits": waits}
    straight, weights = learned(with_reference(tmp_path, of, cache=tmp_path / "a", **more))
    more |= {"cache": tmp_path / "b", "save_strategy": "steps", "save_steps": 1}
    first = with_reference(tmp_path, of, **more)
    first.args.max_steps = 2
    first.train()
    second = with_reference(tmp_path, of, **more)
    checkpoint = to_go_on_from(second, tmp_path / "run", None, False)
    assert checkpoint and checkpoint.name == "checkpoint-2"
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.ref_model is None and second.loaded is None
    log = [entry["loss"] for entry in second.state.log_history if "loss" in entry]
    assert log == [entry[0] for entry in straight]
    mine = dict(second.model.named_parameters())
    assert all(torch.equal(mine[name], weights[name]) for name in weights)


def test_a_checkpoint_takes_no_other_reference(tmp_path):
    """Under the same name, too."""
    more = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    with_reference(tmp_path, of := other(tmp_path), **more).train()
    random_model("llama", 6).save_pretrained(of)
    for trainer in (with_reference(tmp_path, of, **more), trainer_of(tmp_path, "llama", fast=True)):
        with pytest.raises(Refusal, match="was written with other reference than this run reads"):
            to_go_on_from(trainer, tmp_path / "run", None, False)


def test_it_is_let_go_of_before_step_1(tmp_path):
    """And before the longest micro-batch is tried: it takes memory that training may need."""
    trainer = with_reference(tmp_path, other(tmp_path))
    there = weakref.ref(trainer.accelerator.unwrap_model(trainer.ref_model))
    gone = []
    plain = trainer.training_step
    trainer.training_step = lambda *a, **k: gone.append(there() is None) or plain(*a, **k)
    trainer.train()
    gc.collect()
    assert all(gone) and len(gone) >= 20


@pytest.mark.parametrize("waits", [False, True], ids=["scored first", "as pairs come"])
def test_scores_that_the_reference_does_not_give_end_the_run(waits, tmp_path):
    """Before step 1; and the policy's start, which is elsewhere, is no reason to."""
    more = {"gate": False, "waits": waits, "per_device_train_batch_size": 2, "max_steps": 2}
    with_reference(tmp_path, of := other(tmp_path), **more).train()
    trainer = with_reference(tmp_path, of, **(more | {"gate": True, "cache": tmp_path / "new"}))
    if waits:
        plain = trainer.entry.add
        trainer.entry.add = lambda rows, logps, split: plain(rows, logps + 0.5, split)
    else:
        with torch.no_grad():
            trainer.ref_model.lm_head.weight.mul_(1.1)
    with pytest.raises(Refusal, match="the reference is not what it was when it was scored: of"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("scored", [False, True], ids=["pairs wait", "held-out pairs wait"])
def test_a_reference_that_was_replaced_meanwhile_is_none(scored, tmp_path):
    of, cache = other(tmp_path), tmp_path / "cache"
    at = {"with_held_out": True, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}
    if scored:
        with_reference(tmp_path, of, cache=cache, max_steps=6)
    trainer = with_reference(tmp_path, of, waits=True, cache=cache, **at)
    assert (trainer.entry is None) == scored
    trainer.let_go()
    trainer.loaded = None  # as after the first evaluation
    random_model("llama", 6).save_pretrained(of)
    with pytest.raises(Refusal, match=r"is not what the run began with: its files have changed"):
        trainer.train()


def test_drift_is_measured_from_it(tmp_path):
    """Whether it answers at the start or at the first evaluation; from the first step on the policy
    is away from it."""
    of, at = other(tmp_path), {"with_held_out": True, "eval_strategy": "steps", "eval_steps": 2}
    found = []
    for waits in (False, True):
        trainer = with_reference(tmp_path / str(waits), of, max_steps=4, gate=False, **at)
        trainer.eval_dataset = trainer.eval_dataset.add_column("prompt", ["How?"] * 4)
        drift = Drift(trainer)
        type(trainer).can_wait = waits
        trainer.callback_handler.callbacks += [drift, gates(trainer)]
        trainer.train()
        kept = json.loads((tmp_path / str(waits) / "run/drift.json").read_text())
        logged = [log for log in trainer.state.log_history if "eval_drift_tokens" in log]
        found.append((kept, [log["eval_drift_nats_per_token"] for log in logged]))
        pad = trainer.processing_class.pad_token_id
        under = AutoModelForCausalLM.from_pretrained(of)
        expected = scoring.score(under, [*zip(kept["prompts"], kept["answers"], strict=True)], pad)
        assert kept["logps"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert found[0] == found[1] and found[0][1][0] > 0.1


def test_the_kept_scores_are_its_own(tmp_path):
    trainer = with_reference(tmp_path, of := other(tmp_path), waits=True, max_steps=2)
    trainer.train()
    trainer.keep_scores()
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    stock = trainer_of(tmp_path, "llama", fast=False, objects={"ref_model": load(of)})
    batch = stock.data_collator(list(stock.train_dataset))
    expected = stock.compute_ref_log_probs(stock.ref_model, batch)
    for name, values in zip(REFERENCE_LOGPS, expected, strict=True):
        kept = load_file(entry)[name]
        known = ~np.isnan(kept)
        assert known.any() and kept[known] == pytest.approx(values.numpy()[known], abs=1e-4)
