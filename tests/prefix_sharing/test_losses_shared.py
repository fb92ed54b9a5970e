"""Every loss of TRL has the same value with prefixes shared."""

import inspect
import re

import pytest
import torch
from trl import DPOTrainer

from support.tiny import trainer_of


def loss_types() -> list[str]:
    """All that the pinned TRL offers, from its own mouth."""
    said = inspect.getsource(DPOTrainer._compute_loss)
    (listed,) = re.findall(r"Should be one of \[(.*?)\]", said, flags=re.DOTALL)
    return re.findall(r"'(\w+)'", listed)


@pytest.fixture(scope="module")
def both_trainers(tmp_path_factory):
    """Stock and ours with the same policy, some steps away from the same reference."""
    trainers = []
    for fast in (False, True):
        folder = tmp_path_factory.mktemp("losses")
        trainer = trainer_of(folder, "llama", fast=fast, precompute_ref_log_probs=False)
        draw = torch.Generator().manual_seed(0)
        for parameter in trainer.model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw)
        trainers.append(trainer)
    return trainers


def losses(trainers, **settings) -> list[torch.Tensor]:
    values = []
    for trainer in trainers:
        for name, value in settings.items():
            setattr(trainer, name, value)
        batch = trainer.data_collator(list(trainer.train_dataset))
        values.append(trainer.compute_loss(trainer.model, batch))
    assert "shared_prefixes" in batch
    return values


def test_there_are_loss_types():
    assert len(loss_types()) >= 15 and "sigmoid" in loss_types()


@pytest.mark.parametrize("kind", loss_types())
def test_every_loss_type_has_the_value_of_stock_trl(kind, both_trainers):
    smoothing = 0.1 if kind in ("exo_pair", "robust") else 0.0
    stock, ours = losses(both_trainers, loss_types=[kind], label_smoothing=smoothing)
    assert ours.item() == pytest.approx(stock.item(), rel=1e-5, abs=1e-6)


def test_other_ways_to_weigh_a_loss_have_the_value_of_stock_trl(both_trainers):
    plain = {"loss_types": ["sigmoid"], "label_smoothing": 0.0, "ld_alpha": None}
    for changed in (
        {"ld_alpha": 0.3},
        {"f_divergence_type": "js_divergence"},
        {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ):
        normal = {"f_divergence_type": "reverse_kl", "loss_weights": [1.0]}
        stock, ours = losses(both_trainers, **(plain | normal | changed))
        assert ours.item() == pytest.approx(stock.item(), rel=1e-5)
