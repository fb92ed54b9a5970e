"""How fast a run trains is said at every log, of optimizer steps alone."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from dpo.core.machine import peak_memory_gb
from dpo.data.schema import token_counts
from dpo.models import flops
from dpo.runs import metrics
from dpo.training.monitoring import throughput
from support.monitored import easy, trainer_on
from support.tiny import trainer_of

RATES = {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_gb"}


class Slow(TrainerCallback):
    """Half a second in every step, and two seconds in every evaluation."""

    def on_step_begin(self, *args, **kwargs):
        time.sleep(0.5)

    def on_evaluate(self, *args, **kwargs):
        time.sleep(2)


def test_rates_are_of_the_steps_since_the_last_log(tiny_model, tmp_path):
    flags = ("--max_steps=4", "--eval_steps=2", "--logging_steps=2")
    trainer = trainer_on(tmp_path, tiny_model, easy(32, 0), easy(8, 1), *flags)
    trainer.add_callback(Slow())
    trainer.train()
    logged = [line for line in metrics.read(tmp_path / "run") if "loss" in line]
    assert len(logged) == 2 and all(line.keys() >= RATES for line in logged)
    for line in logged:
        assert 16 / 2.5 < line["pairs_per_second"] < 16 / 1.0  # two steps of 8 pairs
        assert 0 < line["mfu"] < 1 and 0 < line["peak_memory_gb"] <= peak_memory_gb()
    # All pairs of the data are trained on once: each token of a prompt counts once.
    seconds = [16 / line["pairs_per_second"] for line in logged]
    tokens = [line["tokens_per_second"] * s for line, s in zip(logged, seconds, strict=True)]
    lengths = np.stack(token_counts(trainer.train_dataset))
    assert sum(tokens) == pytest.approx(lengths.sum())
    evaluated = [line for line in metrics.read(tmp_path / "run") if "eval_loss" in line]
    assert evaluated and not any(RATES & line.keys() for line in evaluated)


def test_useful_flops_count_what_is_trained(tmp_path):
    """Of a LoRA run the frozen weights need no gradient of their own: a third less."""
    whole, lora = (trainer_of(tmp_path, "llama", fast=True, lora=on).model for on in (False, True))
    pairs = np.array([[5, 40, 30], [7, 9, 11]])
    full = flops.useful_flops(whole, pairs)
    assert flops.useful_flops(whole, pairs[:1]) + flops.useful_flops(whole, pairs[1:]) == full
    adapted = flops.useful_flops(lora.get_base_model(), pairs)
    assert 2 / 3 * full < adapted < full
    whole.requires_grad_(False)
    frozen = flops.useful_flops(whole, pairs)
    adapters = [p.numel() for p in lora.parameters() if p.requires_grad]
    assert adapted == pytest.approx(frozen + 6 * sum(adapters) * pairs.sum(), rel=1e-6)


@pytest.mark.parametrize(("dtype", "half"), [("float32", False), ("bfloat16", True)])
def test_the_share_is_of_products_in_the_dtype_of_the_run(dtype, half, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(flops, "matmul_peak", lambda *how: asked.append(how[1]) or 1e12)
    trainer = trainer_of(tmp_path, "llama", fast=True, model_init_kwargs={"dtype": dtype})
    rates = throughput.Throughput(trainer)
    rates.saw([[0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 5.0]])
    rates.on_step_end(None, SimpleNamespace(), None)
    assert rates.since()["mfu"] > 0 and asked == [torch.bfloat16 if half else torch.float32]


def test_what_cannot_be_counted_has_no_share(tmp_path):
    trainer = trainer_of(tmp_path, "llama", fast=True)
    trainer.model.config.layer_types = ["linear_attention"] * 3
    rates = throughput.Throughput(trainer)
    rates.saw([[0.0] * 8])
    rates.on_step_end(None, SimpleNamespace(), None)
    assert rates.since().keys() == RATES - {"mfu"}
    assert rates.since() == {}
