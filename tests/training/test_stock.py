"""What TRL and transformers would do at every start or step, and what is taken in its place."""

import pytest
import torch
import transformers.training_args
from trl.trainer import dpo_trainer

from dpo.recipe.parse import parse
from support.tiny import ARCHITECTURES, losses_of, trainer_of

EMBEDDED = "recipes/smollm2-sentiment.yaml"


def test_only_stock_hashes_the_whole_model(tmp_path, monkeypatch):
    """Stock does where we say that it does: with another TRL the hash may have moved."""
    hashed = []
    monkeypatch.setattr(dpo_trainer, "hash_module", lambda model: hashed.append(model) or "")
    trainer_of(tmp_path / "ours", "llama", fast=True)
    assert not hashed
    trainer_of(tmp_path / "stock", "llama", fast=False, precompute_ref_log_probs=True)
    assert len(hashed) == 1


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ddp_looks_for_unused_weights_where_there_is_a_router(tmp_path, name, lora):
    def looks(**stated) -> bool:
        trainer = trainer_of(tmp_path, name, fast=True, lora=lora, **stated)
        return trainer.accelerator.ddp_handler.find_unused_parameters

    assert looks() == (name == "mixtral")
    assert looks(ddp_find_unused_parameters=name != "mixtral") == (name != "mixtral")


@pytest.mark.parametrize(
    ("gpus", "flags", "workers"),
    [
        (True, [], 2),
        (True, ["--dataloader_num_workers=0"], 0),
        (True, ["--dataloader_num_workers=5"], 5),
        (True, ["--use_cpu"], 0),
        (True, ["--dataset_streaming", "--max_steps=2"], 0),  # its order would be another
        (False, ["--use_cpu"], 0),
        (False, ["--use_cpu", "--dataloader_num_workers=2"], 2),
    ],
)
def test_batches_are_made_ahead_beside_a_gpu(monkeypatch, gpus, flags, workers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(
        transformers.training_args.TrainingArguments, "device", torch.device("cpu"), raising=True
    )
    found = parse(["--config", EMBEDDED, "--bf16=false", *flags])
    assert found.training.dataloader_num_workers == workers
    # What a run remembers is what was stated, and none of it decides what is learned.
    stated = any("workers" in flag for flag in flags)
    assert ("dataloader_num_workers" in found.stated) == stated
    assert "dataloader_num_workers" not in found.learned(found.stated)


def test_batches_made_ahead_are_the_same(tmp_path):
    alone = losses_of(trainer_of(tmp_path, "llama", fast=True, max_steps=3))
    ahead = trainer_of(tmp_path, "llama", fast=True, max_steps=3, dataloader_num_workers=2)
    assert losses_of(ahead) == alone
