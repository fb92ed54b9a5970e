"""Held-out pairs scored by the trainer when training has ended, and which of them are ties."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from dpo.core import stats
from dpo.data import schema
from dpo.evaluation import contestants, measure
from dpo.evaluation.pairs import of_pairs
from dpo.models import scoring
from dpo.recipe.parse import parse
from dpo.training import held_out_scores
from support.tiny import EDGE_PAIRS, MAX_LENGTH, trainer_of

PAIRS = 7  # an odd number, so that the last batch is not full


def rows(**columns) -> Dataset:
    """Held-out pairs as a run has them, each of its own prompt."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    found = [dict(zip(names, pair, strict=True)) for pair in EDGE_PAIRS[:PAIRS]]
    digests = [{f"{n.removesuffix('_ids')}_digest": at for n in names} for at in range(PAIRS)]
    table = Dataset.from_list([a | b for a, b in zip(found, digests, strict=True)])
    for name, values in columns.items():
        table = table.add_column(name, values)
    return table


def trained(folder, name="llama", **settings):
    """A trainer after some steps, with pairs held out."""
    settings = {"max_steps": 4, "learning_rate": 5e-3, "per_device_eval_batch_size": 2} | settings
    trainer = trainer_of(folder, name, fast=True, with_held_out=True, **settings)
    trainer.eval_dataset = rows()
    if trainer.precompute_ref_logps:
        trainer.eval_dataset = trainer._precompute_ref_logps(trainer.eval_dataset, "eval", 2)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "llama"},
        {"name": "gemma3", "precompute_ref_log_probs": False},
        {"name": "qwen3", "lora": True, "precompute_ref_log_probs": False},
        {"name": "mistral", "share_prefix": False, "per_device_eval_batch_size": 3},
    ],
    ids=str,
)
def test_the_trainer_scores_what_its_models_say(settings, tmp_path):
    """Pair by pair, in the order of the data, policy and reference."""
    trainer = trained(tmp_path, **settings)
    found = held_out_scores.score(trainer)
    models = [trainer.model, AutoModelForCausalLM.from_pretrained(tmp_path / "model")]
    models[0].eval()
    pairs = schema.pair_rows(rows(), MAX_LENGTH, "keep_start")
    expected = [scoring.score(model, pairs, 0).reshape(2, PAIRS) for model in models]
    assert found.policy == pytest.approx(expected[0], abs=2e-4)
    assert found.reference == pytest.approx(expected[1], abs=2e-4)
    tokens = np.array([len(completion) for _, completion in pairs]).reshape(2, PAIRS)
    assert found.tokens.tolist() == tokens.sum(axis=0).tolist()
    # The identical pair is a tie; training has moved the others, by far more than rounding.
    assert (found.margins(0.1) == 0).tolist() == [at == 5 for at in range(PAIRS)]

    held_out_scores.keep(tmp_path, found, "these")
    assert held_out_scores.kept(tmp_path, "others") is None
    for name, value in vars(held_out_scores.kept(tmp_path, "these")).items():
        assert np.array_equal(value, getattr(found, name)), name


@pytest.mark.parametrize(
    "settings",
    [
        {"ld_alpha": 0.5},  # what weighs tokens is no log-probability
        {"sync_ref_model": True, "ref_model_sync_steps": 1, "precompute_ref_log_probs": False},
    ],
    ids=str,
)
def test_what_the_trainer_has_no_reference_for_is_left_to_one_process(settings, tmp_path):
    assert held_out_scores.score(trained(tmp_path, max_steps=1, **settings)) is None


def test_without_a_known_reward_no_model_is_loaded(monkeypatch, tmp_path):
    """What the trainer has scored is all there is to say of pairs."""
    recipe = parse(
        ["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu", f"--output_dir={tmp_path}"]
    )
    draw = np.random.default_rng(0)
    scored = scoring.Scored(
        draw.normal(-50, 9, (2, PAIRS)), draw.normal(-50, 9, (2, PAIRS)), np.full(PAIRS, 20), 1e-4
    )

    def load(*args):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(contestants.Contestant, "load", load)
    monkeypatch.setattr(contestants.Contestant, "tokenizer", load)
    found = measure.after_training(recipe, str(tmp_path), rows(), "cpu", scored)["pairs"]
    assert found["margins"] == pytest.approx(scored.margins(0.1).round(6).tolist())
    assert found["count"] == found["prompts"] == PAIRS
    known = rows(
        prompt=[*"abcdefg"], vader_chosen=[0.5] * PAIRS, vader_rejected=[0.1] * (PAIRS - 1) + [0.5]
    )
    ceiling = of_pairs(scored, known, 0.1)["ceiling"]
    assert ceiling == (PAIRS - 0.5) / PAIRS  # a tie is half right, by whatever reward
    with pytest.raises(AssertionError, match="a model is loaded"):
        measure.after_training(recipe, str(tmp_path), known, "cpu", scored)


@pytest.mark.parametrize("precompute", [True, False], ids=["cached", "live"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_moves_nothing_is_a_tie_everywhere(dtype, precompute, tmp_path):
    """The first step of a warmup has learning rate 0. What rounding then makes of the margins has
    a sign, and no meaning: in what is logged, and in the report."""
    trainer = trained(
        *(tmp_path, "llama"),
        max_steps=1,
        learning_rate=0.0,
        precompute_ref_log_probs=precompute,
        bf16=dtype == torch.bfloat16,
        eval_strategy="steps",
        eval_steps=1,
    )
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert logged["rewards/accuracies"] == logged["eval_rewards/accuracies"] == 0.5
    found = held_out_scores.score(trainer)
    assert found.nats_per_token == stats.NATS_PER_TOKEN[dtype]
    rounded = found.policy + found.nats_per_token * np.random.default_rng(1).normal(
        0, 0.1, found.policy.shape
    )
    for scored in (found, replace(found, policy=rounded)):
        result = of_pairs(scored, trainer.eval_dataset, 0.1)
        accuracy = result["accuracy"]
        assert accuracy["mean"] == 0.5 and result["ties"] == PAIRS
        assert accuracy["low"] < 0.5 < accuracy["high"]
        assert result["margins"] == [0.0] * PAIRS


def test_one_rule_says_what_a_tie_is():
    width = stats.width(0.1, 1e-4, np.array([100.0, 100.0, 100.0, 400.0]))
    assert width == pytest.approx([1e-4, 1e-4, 1e-4, 2e-4])
    margins = stats.settled(np.array([9e-5, 2e-4, -2e-4, -2e-4]), width)
    assert stats.accuracy(margins).tolist() == [0.5, 1.0, 0.0, 0.5]


def test_a_small_beta_leaves_no_tie_in_what_is_kept():
    """`make compare` counts the margins of the report, in which 1e-7 is no tie."""
    one, two = np.array([[-3.0] * PAIRS, [-4.0] * PAIRS]), np.full((2, PAIRS), -3.5)
    scored = scoring.Scored(one, two, np.full(PAIRS, 9), 1e-4)
    found = of_pairs(scored, rows(), beta=1e-7)
    assert found["accuracy"]["mean"] == 1.0
    assert stats.accuracy(np.array(found["margins"])).tolist() == [1.0] * PAIRS
