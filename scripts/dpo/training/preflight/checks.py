"""What is seen to be right before step 1, so that a wrong run ends in its first minute.

Every check runs on the model as training will have it, wrapped and sharded, and leaves the run as
it was, to the bit: random states, metrics, gradients. All processes look at the same rows, and one
that refuses makes all refuse.
"""

import math
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import IterableDataset
from transformers import TrainerCallback

from dpo.core.refusal import Refusal
from dpo.data import schema
from dpo.recipe.parse import Recipe
from dpo.runs import checkpoints
from dpo.training.monitoring.probes import local
from dpo.training.preflight.longest_batch import batch_of, longest_fails, parameters, untouched
from dpo.training.preflight.same_start import reference_disagrees, starts_elsewhere
from dpo.training.trainer import FastDPOTrainer

SAMPLE = 64  # rows whose batch is compared with them


class Gates(TrainerCallback):
    """The checks, in the order of what they cost, when the model is wrapped and no step is done."""

    def __init__(self, trainer: FastDPOTrainer, recipe: Recipe):
        self.trainer, self.run, self.save_merged = trainer, recipe.run, recipe.run.save_merged

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        agreed(trainer, disk_too_small(trainer, self.save_merged))
        agreed(trainer, not_finite(trainer))
        if isinstance(trainer.train_dataset, IterableDataset):
            return  # no rows to choose from
        with untouched(trainer):
            agreed(trainer, wrong_batch(trainer))
            if state.global_step == 0 and trainer.load_reference:
                agreed(trainer, reference_disagrees(trainer))
            elif state.global_step == 0 and self.run.policy_is_reference:
                agreed(trainer, starts_elsewhere(trainer))
            trainer.let_go()  # as training will have it
            agreed(trainer, longest_fails(trainer))


def agreed(trainer: FastDPOTrainer, reason: str | None) -> None:
    """Refuse on all processes what one of them refuses.

    Raises:
        Refusal: one of them has a reason.
    """
    reasons = [reason] if trainer.accelerator.num_processes == 1 else gather_object([reason])
    if found := next(filter(None, reasons), None):
        raise Refusal(found)


def disk_too_small(trainer: FastDPOTrainer, save_merged: bool) -> str | None:
    """Room for the checkpoints that stay, the one being written beside them, and the policy.

    Weights in their dtype; AdamW's two moments in float32, which are as large as any optimizer's
    here; under DeepSpeed its float32 weights, and the weights once more.
    """
    args, state = trainer.args, trainer.state

    def size(parameter: torch.nn.Parameter) -> int:
        return getattr(parameter, "ds_numel", parameter.numel())

    all_of_it = parameters(trainer)
    saved = [p for _, p in all_of_it if p.requires_grad or not is_peft_model(trainer.model)]
    policy = sum(size(p) * p.element_size() for p in saved)
    trained = sum(size(p) for p in saved if p.requires_grad)
    checkpoint = policy
    if not args.save_only_model:
        checkpoint += 8 * trained
        checkpoint += policy if args.sync_ref_model else 0  # the reference, which moves
        checkpoint += (4 * trained + policy) if trainer.is_deepspeed_enabled else 0
    every = {"no": math.inf, "steps": state.save_steps}.get(args.save_strategy)
    every = every or state.max_steps / state.num_train_epochs  # `epoch` and `best`
    saves = math.ceil(state.max_steps / every) if math.isfinite(every) else 0
    kept = min(saves, (args.save_total_limit or saves) + 1)
    there = len(checkpoints.named(Path(args.output_dir)))
    needed = max(kept - there, 0) * checkpoint + policy
    if is_peft_model(trainer.model) and save_merged:
        needed += sum(size(p) * p.element_size() for _, p in all_of_it)
    free = shutil.disk_usage(args.output_dir).free
    if free >= needed:
        return None
    return (
        f"the disk of {args.output_dir} has {free / 1e9:.1f} GB free and the run needs "
        f"{needed / 1e9:.1f} GB: {kept} checkpoints of {checkpoint / 1e9:.1f} GB, {there} of them "
        "there already, and the policy. Lower save_total_limit, raise save_steps, set "
        'save_only_model: true (nothing to go on from) or save_strategy: "no", or give another '
        "--output_dir"
    )


def not_finite(trainer: FastDPOTrainer) -> str | None:
    """The first of the weights that is not finite, among those that this process holds."""
    for name, parameter in parameters(trainer):
        if not torch.isfinite(local(parameter.data if parameter.is_leaf else parameter)).all():
            return (
                f"before step {trainer.state.global_step + 1} the weights of {name} are not "
                "finite: the model's files, or the checkpoint's, are damaged or of a run that had "
                "diverged. Take another model, or go on from an earlier checkpoint"
            )
    return None


def wrong_batch(trainer: FastDPOTrainer) -> str | None:
    """Whether a batch holds what its rows do: each completion as it is cut, with its end token,
    counted whole, and nothing else.

    That a completion ends with an end token is seen of every row before (lint.py).
    """
    tokenizer, args = trainer.processing_class, trainer.args
    pad = tokenizer.pad_token_id
    if pad is None:
        return "the tokenizer has no pad token: set pad_token in its tokenizer_config.json"
    own = trainer.accelerator.unwrap_model(trainer.model).generation_config.eos_token_id
    # All ends are there: chat_template.remember_end_tokens has put them.
    ended = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    places = np.unique(np.linspace(0, len(trainer.train_dataset) - 1, SAMPLE).astype(int)).tolist()
    batch = batch_of(trainer, places)
    halves = zip(batch["input_ids"].chunk(2), batch["completion_mask"].chunk(2), strict=True)
    for name, (ids, counted) in zip(("chosen", "rejected"), halves, strict=True):
        for at, place in enumerate(places):
            row, where = trainer.train_dataset[place], f"pair {place}: {name}"
            tokens = row["prompt_ids"], row[f"{name}_ids"]
            _, kept = schema.cut_row(*tokens, args.max_length, args.truncation_mode)
            if not counted[at, 1:].any():  # the first token of a row is predicted from nothing
                return f"{where} has no token left to learn: raise max_length"
            if ids[at][counted[at].bool()].tolist() != kept:
                return f"{where} has other tokens than the batch counts: the collator is wrong"
            if pad in kept[:-1] and pad not in ended:
                return (
                    f"{where} has the pad token {tokenizer.pad_token!r} as text, and the model "
                    "would not learn it: set a pad_token of its own in tokenizer_config.json"
                )
    return None
