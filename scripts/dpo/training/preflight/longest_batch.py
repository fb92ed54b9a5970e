"""The longest micro-batch, tried before step 1: a run that would die at night dies at once."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dpo.data import schema
from dpo.training.batching import innermost
from dpo.training.monitoring.probes import local, own_draws
from dpo.training.preflight import memory
from dpo.training.trainer import FastDPOTrainer

CLOSE = 0.9  # of the tokens of the longest micro-batch


@contextmanager
def untouched(trainer: FastDPOTrainer) -> Iterator[None]:
    """Whatever goes through the model in here, training goes on as if it had not."""
    training, tokens = trainer.model.training, trainer._total_train_tokens
    metrics, gradients = trainer._metrics, trainer.accelerator.gradient_state
    synced = gradients.sync_gradients
    trainer._metrics = {mode: defaultdict(list) for mode in metrics}
    trainer.is_in_train = False  # monitors look at what is trained
    try:
        with own_draws(trainer.accelerator.device):
            yield
    finally:
        trainer._metrics, trainer._total_train_tokens = metrics, tokens
        trainer.is_in_train = True
        gradients._set_sync_gradients(synced)
        trainer.model_wrapped.train(training)


def parameters(trainer: FastDPOTrainer) -> list[tuple[str, torch.nn.Parameter]]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return [(n, p) for n, p in model.named_parameters() if p.is_floating_point()]


def batch_of(trainer: FastDPOTrainer, rows: Any) -> dict[str, Any]:
    return trainer.data_collator(list(trainer.train_dataset.select(rows)))


def micro_batches(trainer: FastDPOTrainer) -> Iterator[tuple[int, list[int]]]:
    """Tokens and rows of every micro-batch that the run will take, on whichever process: computed
    tokens with shared prefixes, else those of the padded rectangle."""
    args, state = trainer.args, trainer.state
    how = (trainer.train_dataset, args.max_length, args.truncation_mode)
    _, chosen, rejected = schema.cut_lengths(*how)
    shared = schema.shared_lengths(*how)
    batches = innermost(trainer.get_train_dataloader())
    left = state.max_steps * args.gradient_accumulation_steps * args.world_size
    for epoch in range(math.ceil(state.num_train_epochs)):
        if hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(epoch)
        for rows in itertools.islice(batches, left):
            tokens = shared[rows].sum()
            if trainer.sharing.startswith("off"):
                tokens = 2 * len(rows) * max(chosen[rows].max(), rejected[rows].max())
            yield int(tokens), rows
        left = max(left - len(batches), 0)


def longest_to_try(trainer: FastDPOTrainer) -> list[int]:
    """The rows of the micro-batch with the most tokens of the run.

    Empty where step 1 of a run on one CPU comes close to it: there the trial takes as long as a
    step, and finds no more than that step will.
    """
    batches, accelerator = micro_batches(trainer), trainer.accelerator
    first = next(batches)
    most, rows = max(itertools.chain([first], batches), key=itemgetter(0))
    alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    begins = trainer.state.global_step == 0
    return [] if alone and begins and first[0] >= CLOSE * most else rows


def longest_fails(trainer: FastDPOTrainer) -> str | None:
    """Train the longest micro-batch forward and backward, and forget it.

    Its gradients are summed over no other process under DDP, which would lay out its buckets anew,
    and are erased. Nothing is stepped: an optimizer's states come with its first step (under
    DeepSpeed they are there), and room for them is held meanwhile.

    Raises:
        Refusal: it does not fit in memory.
    """
    rows, args, model = longest_to_try(trainer), trainer.args, trainer.model_wrapped
    if not rows:
        return None
    seen: dict[str, Tensor] = {}

    def note(name: str, gradient: Tensor) -> None:
        seen[name] = torch.isfinite(gradient).all()

    trainer.accelerator.gradient_state._set_sync_gradients(False)
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    with ExitStack() as stack:
        stack.enter_context(memory.explained(trainer, "trying the longest micro-batch"))
        held = room_for_states(trainer)  # noqa: F841
        if isinstance(model, DistributedDataParallel):
            stack.enter_context(model.no_sync())
        if trainer.is_deepspeed_enabled:  # which takes gradients away as they come
            for name, parameter in parameters(trainer):
                if parameter.requires_grad:
                    stack.callback(parameter.register_hook(partial(note, name)).remove)
        loss = trainer.training_step(model, batch_of(trainer, rows))
    for name, parameter in parameters(trainer):
        if parameter.grad is not None:
            note(name, local(parameter.grad))
    forget_gradients(trainer)
    if trainer.accelerator.mixed_precision == "fp16":  # its first loss scales overflow
        seen = {}
    wrong = [name for name, finite in seen.items() if not finite]
    if wrong or not torch.isfinite(loss):
        what = f"the gradient of {wrong[0]}" if wrong else "the loss"
        return (
            f"{what} is not finite on the longest micro-batch (pairs {', '.join(map(str, rows))}): "
            "try another --attn_implementation, --bf16 false, or a lower max_length"
        )
    return None


def room_for_states(trainer: FastDPOTrainer) -> list[Tensor]:
    """Tensors as large as what AdamW will keep from its first step on: two moments of every trained
    weight, in 8 bits one byte each. None where that is not known, as of other optimizers, or the
    states are there already."""
    optimizer, small = trainer.args.optim, ("8bit", "4bit")
    there = trainer.is_deepspeed_enabled or trainer.optimizer.state  # as in a run that goes on
    if not optimizer.startswith("adamw") or there:
        return []
    dtype = torch.uint8 if any(bits in optimizer for bits in small) else None
    weights = [local(p) for _, p in parameters(trainer) if p.requires_grad]
    return [torch.empty_like(weight, dtype=dtype) for weight in weights for _ in range(2)]


def forget_gradients(trainer: FastDPOTrainer) -> None:
    """As if nothing had gone backward.

    ZeRO-3 begins anew when its gradients are zeroed, and so does ZeRO-1 in bfloat16, which has an
    optimizer of its own. Else ZeRO-1 and 2 keep what they have summed: it is dropped as they drop
    it themselves when a step overflows.
    """
    if not trainer.is_deepspeed_enabled:
        return trainer.model_wrapped.zero_grad()
    zero = trainer.model_wrapped.optimizer
    zero.zero_grad()
    if hasattr(zero, "all_grad_tensors"):
        zero.micro_step_id = -1
        zero.all_grad_tensors.clear()
        zero.averaged_gradients.clear()
        zero._release_preflattened_grad_buffers()
        zero.reset_cpu_buffers()
