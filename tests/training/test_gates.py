"""What is seen before step 1, that seeing it changes nothing, and what a run says out of memory."""

import itertools
import random
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl import DPOTrainer

from dpo.data import schema
from dpo.losses import START
from dpo.recipe.arguments import RunArguments
from dpo.training.preflight import longest_batch, memory, same_start
from dpo.training.preflight.checks import Gates
from dpo.training.resume import TakeUp
from support.commands import TIMES
from support.tiny import trainer_of


@pytest.fixture(autouse=True)
def always_tried(monkeypatch):
    """The longest micro-batch, though step 1 is nearly as long."""
    monkeypatch.setattr(longest_batch, "CLOSE", 2)


def gated(folder: Path, name: str = "llama", *, on: bool = True, own=None, **arguments):
    trainer = trainer_of(folder, name, fast=True, **({"max_steps": 2} | arguments))
    if on:
        trainer.add_callback(Gates(trainer, SimpleNamespace(run=RunArguments(**(own or {})))))
    return trainer


def refused(trainer, **arguments) -> str:
    """The line with which a run ends before anything is learned."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(SystemExit) as stop:
        trainer.train(**arguments)
    message = stop.value.code
    assert isinstance(message, str) and "\n" not in message, message
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)
    return message


class Remember(TrainerCallback):
    """The random states when the first step begins."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.states = [random.random(), np.random.random(), torch.rand(1).item()]


HEALTHY = {
    "shared": {},
    "padded": {"share_prefix": False},
    "live": {"precompute_ref_log_probs": False},
    "lora": {"lora": True},
    "dropout": {"lora": True, "disable_dropout": False},
    "checkpointed": {"gradient_checkpointing": True},
    "bfloat16": {"bf16": True},
    "epochs": {"num_train_epochs": 3, "max_steps": -1},
}


@pytest.mark.parametrize("way", HEALTHY)
def test_a_healthy_run_learns_what_it_would_have(way, tmp_path):
    """Weights, everything logged, and the random states, to the bit."""
    ran = []
    for on in (True, False):
        trainer, seen = (
            gated(tmp_path / str(on), on=on, **({"max_steps": 3} | HEALTHY[way])),
            Remember(),
        )
        trainer.add_callback(seen)
        trainer.train()
        logged = [
            {
                key: value
                for key, value in entry.items()
                if key not in TIMES and "runtime" not in key and "_per_" not in key
            }
            for entry in trainer.state.log_history
        ]
        ran.append((dict(trainer.model.named_parameters()), logged, seen.states))
    (weights, *rest), (others, *others_rest) = ran
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert rest == others_rest


LOSSES = {
    **{name: {} for name in START if name != "exo_pair"},
    "exo_pair": {"label_smoothing": 0.01},
    "robust, smoothed": {"loss_type": ["robust"], "label_smoothing": 0.2},
    "aot, smoothed": {"loss_type": ["aot"], "label_smoothing": 0.2},
    "mpo": {"loss_type": ["sigmoid", "bco_pair", "apo_zero"], "loss_weights": [0.8, 0.2, 1.5]},
    "forward_kl": {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"},
    "js_divergence": {"loss_type": ["ipo"], "f_divergence_type": "js_divergence"},
    "alpha_divergence": {"loss_type": ["hinge"], "f_divergence_type": "alpha_divergence"},
    "ld": {"loss_type": ["sigmoid"], "ld_alpha": 0.5},
}


def test_every_loss_starts_at_its_constant(tmp_path, monkeypatch):
    """TRL's own loss, and a constant that is off by a hundredth part is refused."""
    trainer = gated(tmp_path, precompute_ref_log_probs=False)
    stock = {"label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "ld_alpha": None}
    for (name, settings), beta in itertools.product(LOSSES.items(), (0.01, 0.1, 5)):
        chosen = stock | {"loss_type": [name], "loss_weights": None, "beta": beta} | settings
        for key, value in chosen.items():
            setattr(trainer.args, key, value)
            setattr(trainer, "loss_types" if key == "loss_type" else key, value)
        trainer.loss_weights = trainer.args.loss_weights or [1.0]
        assert same_start.starts_elsewhere(trainer) is None, (name, beta)
        loss, slope = same_start.start_loss(trainer.args)
        with monkeypatch.context() as patch:
            patch.setattr(same_start, "start_loss", lambda args: (loss * 1.01 + 0.01, slope))  # noqa: B023
            assert "TRL computes another loss" in same_start.starts_elsewhere(trainer), (name, beta)


def test_a_wrong_loss_is_noticed(tmp_path, monkeypatch):
    trainer = gated(tmp_path)
    trainer.loss_types = ["hinge"]  # and the arguments say sigmoid
    message = refused(trainer)
    assert "is 1 before step 1, and 0.69315 is that of sigmoid" in message


def test_losses_without_a_constant_pass(tmp_path):
    gated(tmp_path / "a", loss_type=["sft"]).train()
    gated(tmp_path / "b", use_weighting=True).train()


def test_the_loss_of_a_mixture_of_experts_is_seen_without_its_balance(tmp_path):
    gated(tmp_path, "mixtral", router_aux_loss_coef=0.5).train()


@pytest.mark.parametrize("live", [False, True])
def test_a_policy_that_is_not_its_reference(live, tmp_path):
    def elsewhere(folder, own=None):
        trainer = gated(folder, own=own, precompute_ref_log_probs=not live)
        with torch.no_grad():
            trainer.model.lm_head.weight.add_(0.05 * torch.randn_like(trainer.model.lm_head.weight))
        return trainer

    message = refused(elsewhere(tmp_path / "a"))
    assert "the policy does not start as its reference: of pair 0" in message
    assert ("make clean-cache" in message) != live
    assert "--policy_is_reference false" in message
    elsewhere(tmp_path / "b", {"policy_is_reference": False}).train()


def test_rows_of_another_cache_whose_errors_cancel_on_average(tmp_path):
    """Each pair has the reference of its neighbour: in a batch of both, all means are right."""
    trainer = gated(tmp_path)
    swapped = trainer.train_dataset
    for column in schema.REFERENCE_LOGPS:
        values = np.array(swapped[column]).reshape(-1, 2)[:, ::-1].flatten()
        swapped = swapped.remove_columns(column).add_column(column, values)
    trainer.train_dataset = swapped
    assert "does not start as its reference" in refused(trainer)


def test_a_run_that_goes_on_is_not_at_its_reference(tmp_path):
    trainer = gated(tmp_path, save_strategy="steps", save_steps=1, learning_rate=0.1)
    trainer.train()
    again = gated(tmp_path, save_strategy="steps", save_steps=1, learning_rate=0.1)
    again.train(resume_from_checkpoint=f"{tmp_path}/run/checkpoint-1")
    assert again.state.global_step == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, tmp_path):
    trainer = gated(tmp_path)
    trainer.model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    message = refused(trainer)
    assert (
        "before step 1 the weights of model.layers.1.mlp.up_proj.weight are not finite" in message
    )


def test_gradients_that_are_not_finite(tmp_path):
    """A finite loss with a gradient that is not, as some attention kernels have had."""
    trainer = gated(tmp_path)
    trainer.model.model.norm.register_full_backward_hook(
        lambda module, inwards, outwards: tuple(gradient / 0 for gradient in inwards)
    )
    message = refused(trainer)
    assert "the gradient of " in message and "is not finite on the longest micro-batch" in message


def test_a_disk_without_room_for_the_checkpoints(tmp_path, monkeypatch):
    trainer = gated(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    # Two checkpoints of weights and two moments, and the policy, in float32.
    needed = 2 * 12 * parameters + 4 * parameters
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    message = refused(trainer)
    for word in ("2 checkpoints", "save_total_limit", "save_only_model", "--output_dir"):
        assert word in message
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    trainer.train()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4 * parameters))
    gated(tmp_path / "none").train()  # which saves nothing but its policy


def test_a_checkpoint_is_as_large_as_expected(tmp_path, monkeypatch):
    """The estimate against what is written."""
    trainer = gated(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=1)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free=0, total=0, used=0)
    )
    message = refused(trainer)
    assert "needs 0.0 GB" in message
    monkeypatch.undo()
    trainer.train()
    written = sum(f.stat().st_size for f in (tmp_path / "run/checkpoint-2").glob("*.[sp]*t*"))
    parameters = sum(p.numel() for p in trainer.model.parameters())
    assert written == pytest.approx(12 * parameters, rel=0.3)


def test_a_completion_that_is_cut_away(tmp_path):
    trainer = gated(tmp_path, precompute_ref_log_probs=False)
    trainer.data_collator.max_length = trainer.args.max_length = 20  # the last prompt's length
    assert "chosen has no token left to learn: raise max_length" in refused(trainer)


def test_a_pad_token_that_is_text(tmp_path):
    trainer = gated(tmp_path, precompute_ref_log_probs=False)
    word = trainer.train_dataset[0]["chosen_ids"][2]
    trainer.processing_class = SimpleNamespace(pad_token_id=word, pad_token="and", eos_token_id=1)
    message = refused(trainer)
    assert "pair 0: chosen has the pad token 'and' as text" in message
    trainer.processing_class = SimpleNamespace(pad_token_id=None)
    assert "has no pad token" in refused(trainer)


def test_an_end_token_that_pads_is_learned_all_the_same(tmp_path):
    """TRL pads with the end token where there is no other, and its collator goes by lengths."""
    trainer = gated(tmp_path, precompute_ref_log_probs=False)
    end = trainer.processing_class.eos_token_id
    trainer.processing_class.pad_token = trainer.processing_class.eos_token
    trainer.data_collator.pad_token_id = end
    trainer.train_dataset = trainer.train_dataset.map(
        lambda row: {"chosen_ids": [*row["chosen_ids"][:3], end]}
    )
    collator = trainer.data_collator

    def forgets_the_end(rows):
        batch = collator(rows)
        return batch | {"completion_mask": batch["completion_mask"] * (batch["input_ids"] != end)}

    trainer.data_collator = forgets_the_end
    assert "pair 0: chosen has other tokens than the batch counts" in refused(trainer)
    trainer.data_collator = collator
    trainer.train()


@pytest.mark.parametrize("share", [True, False])
def test_the_longest_micro_batch_of_the_run_is_tried(share, tmp_path, monkeypatch):
    """Of those that are really trained on, in every epoch, and no other."""
    trained, tried = [], []
    trainer = gated(
        tmp_path, share_prefix=share, max_steps=-1, num_train_epochs=3, learning_rate=1e-9
    )
    step = type(trainer).training_step

    def note(self, model, inputs, *more):
        shape = inputs["attention_mask"].numel()
        if share:
            shape = sum(map(sum, inputs["shared_prefixes"].lengths))
        (trained if tried else tried).append(shape)
        return step(self, model, inputs, *more)

    monkeypatch.setattr(type(trainer), "training_step", note)
    trainer.train()
    assert tried == [max(trained)] and len(trained) == 12


def test_step_1_is_the_trial_where_it_is_nearly_the_longest(tmp_path, monkeypatch):
    """On one CPU, of a run that begins: one that goes on may do so on another machine."""
    planned, taken = [], []
    step, plan = DPOTrainer.training_step, longest_batch.micro_batches

    def note(self, *more):
        taken.append(self)
        return step(self, *more)

    def noted(trainer):
        planned[:] = plan(trainer)
        return iter(planned)

    monkeypatch.setattr(DPOTrainer, "training_step", note)
    monkeypatch.setattr(longest_batch, "micro_batches", noted)
    how = {"seed": 2, "save_strategy": "steps", "save_steps": 1}
    gated(tmp_path, **how).train()
    first, most = planned[0][0], max(tokens for tokens, _ in planned)
    assert first < most and len(taken) == 1 + len(planned)
    for close, trials in ((first / most, 0), (first / most + 0.01, 1)):
        monkeypatch.setattr(longest_batch, "CLOSE", close)
        taken.clear()
        gated(tmp_path, **how).train()
        assert len(taken) == trials + len(planned)
    monkeypatch.setattr(longest_batch, "CLOSE", 0)
    taken.clear()
    gated(tmp_path, **how).train(resume_from_checkpoint=f"{tmp_path}/run/checkpoint-1")
    assert len(taken) == 1 + len(planned) // 2


def test_streams_have_no_longest_row(tmp_path):
    trainer = gated(tmp_path, share_prefix=False, precompute_ref_log_probs=False)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    trainer.train()
    assert trainer.state.global_step == 2


def fails_at(trainer, call: int) -> None:
    """Let the `call`-th forward in training ask for ten terabytes."""
    calls, backbone = [], trainer.model.model

    def ask(module, inputs):
        if module.training:
            calls.append(1)
            if len(calls) == call:
                torch.empty(10**13, dtype=torch.uint8)

    backbone.norm.register_forward_pre_hook(ask)


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_full_gpu_is_told_from_a_broken_one(said, full, tmp_path):
    """By what libraries say that torch's allocator knows nothing of."""
    trainer = gated(tmp_path)
    explained = memory.explained(trainer, "trying the longest micro-batch")
    with pytest.raises(SystemExit if full else RuntimeError) as stop, explained:
        raise RuntimeError(said)
    assert ("out of memory, trying" in str(stop.value)) == full


@pytest.mark.parametrize(
    ("device", "processes", "shards"), [("cpu", 1, 0), ("cpu", 2, 1), ("cuda", 1, 1)]
)
def test_sharding_is_named_where_it_needs_less(device, processes, shards):
    """Of one process on a CPU there is nothing to shard."""
    args = SimpleNamespace(device=torch.device(device), world_size=processes, max_length=24)
    ways = "; ".join(memory.another_run(args, torch.nn.Linear(1, 1)))
    assert ("CONFIG to zero2" in ways) == shards and "max_length to less than 24" in ways


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total", 9 * 2**30),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", 20 * 2**20),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.", 4000),
        ("CUDA error: out of memory", 0),
    ],
)
def test_what_was_asked_for_is_read_off_what_pytorch_says(said, asked):
    assert memory.asked_for(said) == asked


def test_out_of_memory_in_a_step(tmp_path):
    trainer = gated(tmp_path, max_steps=5, save_strategy="steps", save_steps=2)
    fails_at(trainer, 6)  # the trial; two micro-batches a step; the first of step 3
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    message = stop.value.code
    assert message.startswith("out of memory, step 3, with 2 pairs of ") and "\n" not in message
    words = memory.described(trainer.batch)
    assert words in message and "the longest row" in words
    for word in (
        "per_device_train_batch_size to 1 and gradient_accumulation_steps to 4, the same 4 pairs",
        f"to true, and the same command goes on from {tmp_path}/run/checkpoint-2. Or change use_",
        *("gradient_checkpointing to true", "use_peft", "max_length to less"),
        " GB",
    ):
        assert word in message
    again = gated(
        tmp_path, max_steps=5, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    again.train(resume_from_checkpoint=f"{tmp_path}/run/checkpoint-2")
    assert again.state.global_step == 5


def test_out_of_memory_costs_no_step(tmp_path):
    """In the second micro-batch of step 4: saved as it was after step 3, between two logs."""
    how = {"max_steps": 6, "logging_steps": 5, "save_strategy": "steps", "save_steps": 2}
    whole = gated(tmp_path / "whole", **how)
    whole.train()
    trainer = gated(tmp_path, **how)
    fails_at(trainer, 9)
    with pytest.raises(SystemExit, match=r"step 4, .* goes on from .*/run/checkpoint-3"):
        trainer.train()
    again, checkpoint = gated(tmp_path, **how), tmp_path / "run/checkpoint-3"
    again.add_callback(TakeUp(again, checkpoint))
    again.train(resume_from_checkpoint=str(checkpoint))
    first, other = (trainer.state.log_history[0] for trainer in (again, whole))
    assert first.keys() == other.keys()
    assert all(first[key] == other[key] for key in first.keys() - TIMES)
    trained = dict(whole.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in again.model.named_parameters())


def test_out_of_memory_in_the_trial(tmp_path):
    trainer = gated(tmp_path)
    fails_at(trainer, 1)
    message = refused(trainer)
    assert message.startswith("out of memory, trying the longest micro-batch, with 2 pairs of")
    assert "the same command goes on from the start." in message


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("adamw_torch", 8), ("adamw_torch_fused", 8), ("adamw_bnb_8bit", 2), ("sgd", 0)],
)
def test_the_trial_holds_what_the_optimizer_will(optimizer, expected, tmp_path, monkeypatch):
    """Two moments of every trained weight, in float32, while the longest micro-batch is tried."""
    trainer, seen, alive = gated(tmp_path, optim=optimizer), [], []
    room, stepped = longest_batch.room_for_states, trainer.training_step

    def noted(trainer):
        held = Held(room(trainer))
        seen.append((weakref.ref(held), sum(tensor.nbytes for tensor in held)))
        return held

    def step(*args):
        alive.append(seen[0][0]() is not None)
        return stepped(*args)

    monkeypatch.setattr(longest_batch, "room_for_states", noted)
    trainer.training_step = step
    trainer.train()
    assert seen[0][1] == expected * sum(p.numel() for p in trainer.model.parameters())
    assert alive[0] and not alive[-1]
    if optimizer != "sgd":  # in a run that goes on they are there, and not held twice
        assert room(trainer) == []


class Held(list):
    """A list that can be referred to weakly."""


def test_out_of_memory_while_the_reference_is_scored(tmp_path, monkeypatch):
    def ask(*arguments):
        raise MemoryError

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", ask)
    said = (
        r"^out of memory, scoring the reference, with 2 pairs of.* precompute_ref_batch_size to 1,"
    )
    with pytest.raises(SystemExit, match=said):
        gated(tmp_path)


def test_another_error_is_let_through(tmp_path):
    trainer = gated(tmp_path, on=False)
    trainer.model.model.norm.register_forward_pre_hook(lambda *_: 1 / torch.zeros(2).view(3))
    with pytest.raises(RuntimeError, match="shape"):
        trainer.train()


def test_what_is_said_of_a_batch():
    ones = torch.ones(4, 6, dtype=torch.long)
    completions = torch.tensor([[0, 0, 1, 1, 1, 1]] * 2 + [[0, 0, 1, 0, 0, 0]] * 2)
    ones[2:, 3:] = 0
    said = memory.described({"attention_mask": ones, "completion_mask": completions})
    assert said == ("with 2 pairs of 4 prompt, 8 chosen and 2 rejected tokens, the longest row 6")
