"""The whole trainer against stock TRL: the same losses, step for step."""

import inspect
import json
import shutil
from pathlib import Path

import accelerate
import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from conftest import ARCHITECTURES, EDGE_PAIRS, launch, losses_of, trainer_of
from datasets import Dataset
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, Trainer
from trl import DPOTrainer
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo.recipe.parse import parse
from dpo.training.batching import DealtSampler, EvenBatches, deal, innermost, layout
from dpo.training.trainer import FastDPOTrainer


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


@pytest.fixture(scope="module")
def one_process(tiny_model, tiny_data, tmp_path_factory):
    """Stock losses of one process: nothing shared, reference live."""
    return printed_losses(
        *(tiny_model, tiny_data, tmp_path_factory.mktemp("one"), "cpu", "1"),
        *("--share_prefix=false", "--precompute_ref_log_probs=false"),
    )


def flags(model: Path, data: Path, folder: Path) -> list[str]:
    return [
        *(f"--model_name_or_path={model}", f"--dataset_name={data}", f"--output_dir={folder}/run"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4", "--max_steps=4"),
        *("--logging_steps=1", "--eval_steps=4", "--reward_prompts=1", "--learning_rate=0.001"),
        *("--bf16=false", "--report_to=none", f"--reference_cache={folder}/cache"),
    ]


def printed_losses(model, data, folder, config: str, processes: str, *more: str) -> list[float]:
    given = flags(model, data, folder)
    result = launch("--config", config, "--gpus", processes, "--", *given, *more)
    assert result.returncode == 0, result.stderr[-3000:]
    return logged(folder)


def logged(folder: Path) -> list[float]:
    history = json.loads((folder / "run/trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.distributed
def test_two_processes_under_ddp_are_one(one_process, tiny_model, tiny_data, tmp_path):
    ours = printed_losses(tiny_model, tiny_data, tmp_path, "ddp", "2")
    assert ours == pytest.approx(one_process, abs=1e-4)


@pytest.mark.distributed
def test_an_adapter_under_zero3_on_two_processes(tiny_model, tiny_data, tmp_path):
    """Stock TRL's losses; and of another checkpoint of the same architecture other reference
    log-probabilities, though ZeRO-3 shows each process the same empty weights.

    Full fine-tuning under ZeRO is in test_train.py.
    """
    adapter = ("--use_peft", "--lora_target_modules", "q_proj", "v_proj")
    plain = ("--share_prefix=false", "--precompute_ref_log_probs=false")
    stock = printed_losses(tiny_model, tiny_data, tmp_path / "stock", "cpu", "1", *adapter, *plain)
    ours = printed_losses(tiny_model, tiny_data, tmp_path / "ours", "zero3", "2", *adapter)
    assert ours == pytest.approx(stock, abs=1e-4)

    cache = tmp_path / "ours/cache"
    before = set(cache.iterdir())
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for parameter in model.parameters():
        parameter.data *= 1.1
    other = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    model.save_pretrained(other)
    last = ("--max_steps=1", "--eval_strategy=no", f"--reference_cache={cache}")
    printed_losses(other, tiny_data, tmp_path / "other", "zero3", "2", *last)
    (made,) = set(cache.iterdir()) - before
    kept = [load_file(path)["ref_chosen_logps"] for path in (made, *before)]
    assert all(not np.allclose(kept[0][:8], values[:8], equal_nan=True) for values in kept[1:])


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


def test_the_pinned_versions_are_as_relied_on():
    """What trainer.py overrides or calls, as TRL, transformers and accelerate have it today."""

    def parameters(function) -> list[str]:
        return list(inspect.signature(function).parameters)

    stock = DPOTrainer._precompute_ref_logps
    assert parameters(stock) == ["self", "dataset", "name", "batch_size"]
    assert parameters(FastDPOTrainer._precompute_ref_logps) == parameters(stock)
    assert parameters(DPOTrainer.compute_ref_log_probs) == ["self", "model", "inputs"]
    assert parameters(DPOTrainer.get_train_dataloader) == ["self"]
    built = inspect.getsource(DPOTrainer.__init__)
    # Scored when policy, reference and head are ready, and not before.
    assert built.index("add_fused_lm_head(") < built.index("self._precompute_ref_logps(")
    assert "if self.precompute_ref_logps:\n" in inspect.getsource(DPOTrainer._compute_loss)
    # It tells the sampler beneath its own the epoch.
    assert "batch_sampler.sampler.set_epoch" in inspect.getsource(DataLoaderShard.set_epoch)
    # Each step's micro-batches are fetched together, and each is weighed by their number.
    assert parameters(DPOTrainer.get_batch_samples) == [
        "self",
        "epoch_iterator",
        "num_batches",
        "device",
    ]
    stepped = inspect.getsource(Trainer.training_step)
    assert "loss = loss / self.current_gradient_accumulation_steps" in stepped
    assert "inputs = self._prepare_inputs(inputs)" in stepped
    assert "self._prepare_input(inputs)" in inspect.getsource(Trainer._prepare_inputs)
    # With no batch size it hands out whatever batches it is given, in turn.
    dealt = inspect.getsource(BatchSamplerShard._iter_with_no_split)
    assert "self.batch_size is None or len(batch) == self.batch_size" in dealt
    # It moves whatever knows `to` along with a batch.
    assert 'hasattr(tensor, "to")' in inspect.getsource(accelerate.utils.send_to_device)
