"""What would happen on a GPU, with a stand-in for one (gpu_stand_in.py): where tensors lie, and
what the host waits for. What its kernels compute, `make check-gpu` sees."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback
from trl import DPOTrainer

from dpo.core.environment import Launch
from dpo.data import schema
from dpo.models import scoring
from dpo.prefix_sharing import attention
from dpo.prefix_sharing.head import head_on_completions
from dpo.recipe.arguments import RunArguments
from dpo.training.monitoring import throughput
from dpo.training.preempt import Leave
from dpo.training.preflight.checks import Gates
from dpo.training.trainer import FastDPOTrainer
from support.gpu_stand_in import GPU, OnGPU, gpu, kernel
from support.tiny import ARCHITECTURES, trainer_of, varlen_by_hand

FLASH = "on, attention in one call of FlashAttention (varlen)"
PADDED = "on, attention in one call of SDPA, branches padded"
HALF_WEIGHTS = {"attn_implementation": "sdpa", "dtype": "bfloat16"}
# How a run computes, on a GPU of which compute capability, and by which attention.
WAYS = {
    "float32": ({}, (9, 0), PADDED),
    "autocast": ({"bf16": True}, (9, 0), FLASH),
    "weights": ({"model_init_kwargs": HALF_WEIGHTS}, (9, 0), FLASH),
    "before Ampere": ({"bf16": True}, (7, 5), PADDED),
}


@pytest.fixture(autouse=True)
def flash(monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", kernel(varlen_by_hand))
    monkeypatch.setitem(throughput.PEAK_SIZE, "cuda", 64)  # it is a CPU that multiplies


def run_of(folder, name: str, fast: bool = True, **arguments) -> DPOTrainer:
    """A run of three steps with an evaluation, its gates and its monitors."""
    given = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "with_held_out": True}
    given |= {"optim": "adamw_torch", "dataloader_pin_memory": False, "seed": 1}
    trainer = trainer_of(folder, name, fast=fast, **(given | arguments))
    if fast:
        trainer.add_callback(Gates(trainer, SimpleNamespace(run=RunArguments())))
    return trainer


def losses(trainer: DPOTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, way) for name in ARCHITECTURES for way in ("float32", "autocast")),
     *(("llama", way) for way in ("weights", "before Ampere"))],
)  # fmt: skip
def test_a_run_stays_on_its_gpu(name, way, tmp_path):
    """The reference, gates, trial, steps, evaluation, and what `make evaluate` scores."""
    settings, capability, sharing = WAYS[way]
    on_cpu = run_of(tmp_path, name, **settings)
    on_cpu.train()
    with gpu(capability):
        # The second of two finds the reference's log-probabilities, and checks them.
        for _ in range(2 if name == "llama" else 1):
            trainer = run_of(tmp_path, name, **settings)
            assert trainer.args.device == trainer.accelerator.device == GPU
            assert trainer.sharing == sharing
            trainer.train()
        assert all(isinstance(p, OnGPU) for p in trainer.model.parameters())
        cut = (trainer.args.max_length, trainer.args.truncation_mode)
        rows = schema.pair_rows(trainer.eval_dataset, *cut)
        with trainer.accelerator.autocast():
            trainer.model.eval()
            scored = scoring.score(trainer.model, rows, 0, pairs=True)
    assert np.isfinite(scored).all() and len(losses(trainer)) == 3
    bound = 1e-4 if way == "float32" else 0.05
    assert losses(trainer) == pytest.approx(losses(on_cpu), abs=bound)


@pytest.mark.parametrize("way", WAYS)
def test_the_host_waits_no_more_often_than_stock_trl_lets_it(way, tmp_path):
    """Our own waits: one a micro-batch, right after the last of TRL's; the norm; the weights; what
    was not logged yet; and whether the run was asked to stop. The last three find it idle."""
    found, (settings, capability, _) = {}, WAYS[way]
    head_on_completions(torch.device("cpu"))  # for stock TRL as well, which does so where Triton is
    for fast in (False, True):
        with gpu(capability) as waits:
            how = {"logging_steps": 100, "eval_strategy": "no", "logging_nan_inf_filter": False}
            how |= {"precompute_ref_log_probs": fast, "bf16": False, **settings}
            trainer = run_of(tmp_path, "llama", fast, **how)
            if fast:
                leave = Leave(Launch())
                trainer.add_callback(leave)
            counted = Waits(waits)
            trainer.add_callback(counted)
            trainer.train()
        found[fast] = counted.steps[1]  # two micro-batches
    stock, files = found[False], ("alerts", "probes", "resume", "preempt")
    ours = {where for where in found[True] if any(f"{file}.py" in where for file in files)}
    assert sorted(found[True][where] for where in ours) == [1, 1, 1, 1, 2]
    others = {where: n for where, n in found[True].items() if where not in ours}
    assert others and all(n <= stock.get(where, 0) for where, n in others.items()), others


class Waits(TrainerCallback):
    """What the host has waited for from the end of each step to that of the next."""

    def __init__(self, waits):
        self.waits, self.steps = waits, []

    def on_step_end(self, *args, **kwargs):
        self.steps.append(dict(self.waits))
        self.waits.clear()


@pytest.mark.parametrize("fault", ["plan", "norms"])
def test_the_stand_in_sees_what_crashed_on_every_gpu(fault, tmp_path, monkeypatch):
    """The plan of a batch that stays behind; norms of weights on two devices."""
    if fault == "plan":
        monkeypatch.setattr(FastDPOTrainer, "_prepare_input", Trainer._prepare_input)
    with gpu():
        trainer = run_of(tmp_path, "llama")
        if fault == "plan":
            with pytest.raises(RuntimeError, match="on the same device"):
                trainer.train()
        else:  # as zero3_offload has them
            weights = [*trainer.model.parameters()]
            norms = torch._foreach_norm([w.held if i % 2 else w for i, w in enumerate(weights)])
            with pytest.raises(RuntimeError, match="on the same device"):
                torch.stack(norms)


def test_norms_of_weights_on_two_devices(tmp_path, monkeypatch):
    """Under zero3_offload, some lie in the machine's memory."""
    with gpu():
        trainer = run_of(tmp_path, "llama", eval_strategy="no")
        trained = dict(trainer.model.named_parameters())
        some = {name: p.held if i % 2 else p for i, (name, p) in enumerate(trained.items())}
        monkeypatch.setattr("dpo.training.monitoring.alerts.trainable", lambda model: some)
        trainer.monitors.check_weights()
        next(iter(some.values())).data.held.fill_(torch.nan)
        with pytest.raises(SystemExit, match="not finite"):
            trainer.monitors.check_weights()


def test_the_stand_in_is_as_strict_as_a_gpu():
    with gpu() as waits:
        here, there = torch.ones(3), torch.ones(3, device=GPU)
        assert there.device == here.to(GPU).device == (there * 2 + torch.tensor(1.0)).device == GPU
        assert torch.zeros_like(there).device == there.new_zeros(2).device == GPU
        assert here.device == there.cpu().device == there.to("cpu").device == torch.device("cpu")
        for mix in (lambda: here + there, lambda: there @ here, lambda: torch.stack([here, there])):
            with pytest.raises(RuntimeError, match="on the same device"):
                mix()
        with pytest.raises(TypeError, match="convert cuda:0"):
            np.asarray(there)
        waits.clear()
        for wait in (
            there.sum().item,
            there.tolist,
            there.cpu,
            there.nonzero,
            there.max().__bool__,
        ):
            wait()
        assert sum(waits.values()) == 5
        weight = there.clone().requires_grad_()
        (weight * 2).sum().backward()
        assert weight.grad.tolist() == [2, 2, 2] and weight.grad.device == GPU
