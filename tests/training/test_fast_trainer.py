"""The whole trainer against stock TRL: the same losses, step for step."""

from pathlib import Path

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo.recipe.parse import parse
from dpo.training.batching import DealtSampler, EvenBatches, deal, innermost, layout
from support.tiny import ARCHITECTURES, EDGE_PAIRS, losses_of, trainer_of


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ten_steps_are_those_of_stock_trl(name, lora, tmp_path):
    stock = losses_of(trainer_of(tmp_path, name, fast=False, lora=lora))
    assert len(stock) == 10 and np.ptp(stock) > 1e-3
    for cached, checkpointing in ((True, False), (False, True)):
        trainer = trainer_of(
            *(tmp_path, name),
            **{"fast": True, "lora": lora, "gradient_checkpointing": checkpointing},
            precompute_ref_log_probs=cached,
        )
        assert trainer.sharing == "on, attention branch by branch (SDPA)"
        assert (trainer.ref_model is None) == (cached or lora)
        assert losses_of(trainer) == pytest.approx(stock, abs=1e-4)


def orders(folder: Path, **settings) -> tuple[list[int], list[int]]:
    """Row numbers in the order in which stock TRL and we train on them, for two epochs."""
    both = []
    for fast in (False, True):
        trainer = trainer_of(folder, "llama", fast=fast, **settings)
        loader = trainer.get_train_dataloader()
        rows = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            rows += list(innermost(loader).sampler)
        both.append(rows)
    return tuple(both)


def test_every_step_sees_the_pairs_of_stock_trl(tmp_path):
    stock, ours = orders(tmp_path, max_steps=-1, per_device_train_batch_size=1)
    assert sorted(stock[:8]) == list(range(8)) and stock[:8] != stock[8:]
    for start in range(0, 16, 2):  # 1 pair × 2 accumulated
        assert sorted(stock[start : start + 2]) == sorted(ours[start : start + 2])


@pytest.mark.parametrize("loss_type", ["sft", "aot", "aot_unpaired"])
def test_pairs_stay_together_where_it_matters_which_do(loss_type, tmp_path):
    trainer = trainer_of(tmp_path, "llama", fast=True, loss_type=[loss_type])
    assert not isinstance(innermost(trainer.get_train_dataloader()).sampler, DealtSampler)
    assert trainer.about["micro_batches"] == [2, 2, 1]  # such a run goes on with no others
    assert trainer_of(tmp_path, "llama", fast=True).about["micro_batches"] is None


def test_a_router_that_is_balanced_over_a_micro_batch_keeps_it(tmp_path):
    trainer = trainer_of(tmp_path, "mixtral", fast=True)
    assert trainer.aux_loss_enabled
    assert not isinstance(innermost(trainer.get_train_dataloader()).sampler, DealtSampler)


def test_dealing_keeps_the_pairs_and_evens_the_lengths():
    lengths = np.random.default_rng(0).lognormal(5, 0.5, 1000).astype(int)
    pairs = list(np.random.default_rng(3).permutation(1000)[:64])
    dealt = deal(pairs, lengths, micro_batch=8)
    assert sorted(dealt) == sorted(pairs)

    def spread(rows: list[int]) -> float:
        sums = lengths[rows].reshape(8, 8).sum(axis=1)
        return sums.max() / sums.mean()

    assert spread(dealt) < 1.1 < 1.25 < spread(pairs)


def test_an_incomplete_last_batch_stays_as_it_is():
    rows = list(range(11))
    sampler = DealtSampler(rows, np.arange(11) ** 2, micro_batch=2, batch=4)
    order = list(sampler)
    assert order[8:] == rows[8:] and len(sampler) == 11
    for start in (0, 4):
        step = slice(start, start + 4)
        assert sorted(order[step]) == rows[step] and order[step] != rows[step]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_a_step_of_any_size_is_cut_alike_on_every_process(micro_batch, processes):
    """Every pair once, and no process with more micro-batches than the others."""
    batch = micro_batch * processes * 3
    for rows in range(1, 2 * batch + 1):
        batches = EvenBatches(range(rows), micro_batch, batch, processes)
        dealt = [
            [*BatchSamplerShard(batches, processes, i, even_batches=False)]
            for i in range(processes)
        ]
        made = [*batches]
        assert len(batches) == len(made) and len(made) % processes == 0
        steps = [
            layout(min(batch, rows - at), micro_batch, processes) for at in range(0, rows, batch)
        ]
        counts = np.concatenate([step.flatten() for step in steps])
        assert counts.max() <= micro_batch and len({len(part) for part in map(list, dealt)}) <= 1
        seen = [row for pairs, count in zip(made, counts, strict=True) for row in pairs[:count]]
        assert seen == list(range(rows))
        assert all(pairs for pairs in made)  # none is empty, so that none waits in vain


@pytest.mark.parametrize("rows", [7, 5])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_every_pair_of_an_incomplete_batch_weighs_the_same(rows, share_prefix, tmp_path):
    """Seven or five pairs at a batch of 8, in micro-batches of 8, 4, 2 and 1: in what is learned,
    in what is logged, and in an evaluation."""
    learned, named = {}, ("loss", "grad_norm", "rewards/margins", "logps/chosen")
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    held_out = Dataset.from_list([dict(zip(names, p, strict=True)) for p in EDGE_PAIRS[:rows]])
    for micro in (8, 4, 2, 1):
        trainer = trainer_of(
            *(tmp_path, "llama"),
            fast=True,
            pairs=EDGE_PAIRS[:rows],
            share_prefix=share_prefix,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // micro,
            per_device_eval_batch_size=micro,
            held_out=held_out,
            **{"max_steps": -1, "num_train_epochs": 2, "max_grad_norm": 0},
        )
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        learned[micro] = [[entry[name] for name in named] for entry in log]
        found = trainer.evaluate()
        learned[micro].append([found.get(f"eval_{name}", 0) for name in named])
    assert len(learned[8]) == 3
    for micro in (4, 2, 1):
        assert np.array(learned[micro]) == pytest.approx(np.array(learned[8]), abs=1e-4)


def test_share_prefix_false_is_stock_trl(tmp_path):
    given = ["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu"]
    assert parse(given).run.share_prefix
    assert not parse([*given, "--share_prefix", "false"]).run.share_prefix
    trainer = trainer_of(tmp_path, "llama", fast=True, share_prefix=False)
    assert trainer.sharing == "off"
    assert type(trainer.data_collator) is DataCollatorForPreference
    assert not isinstance(innermost(trainer.get_train_dataloader()).sampler, DealtSampler)
    assert "forward" not in vars(trainer.model.base_model)
    assert trl_utils._use_triton is chunked_logprob._use_triton


def test_the_reference_is_live_where_it_moves():
    always = ["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu"]
    assert parse(always).training.precompute_ref_log_probs
    for flag in ("--sync_ref_model", "--dataset_streaming"):
        assert not parse([*always, flag]).training.precompute_ref_log_probs
    assert not parse(
        [*always, "--precompute_ref_log_probs=false"]
    ).training.precompute_ref_log_probs
