"""The one subclass of TRL's DPOTrainer: it plugs the pieces of this repository in."""

from __future__ import annotations

import inspect
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from trl import DPOTrainer

from dpo import (
    adapters,
    checkpoints,
    hub,
    memory,
    output,
    positions,
    prefix_sharing,
    reference,
    resuming,
    shared_attention,
)
from dpo.batching import COMPOSITION_MATTERS, DealtSampler, innermost
from dpo.monitors import Monitors
from dpo.prefix_sharing import SharedPrefixCollator
from dpo.reading import IDS
from dpo.seen import gathered


def keep_gradients(model: torch.nn.Module) -> None:
    """Let 4-bit weights on a CPU be trained through. In evaluation bitsandbytes repacks them for a
    kernel that has no gradient, and goes on using it in training."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class FastDPOTrainer(DPOTrainer):
    """What is learned is what stock TRL learns.

    With `share_prefix`, and where the model allows it: prompts computed once and no padding
    (prefix_sharing.py), and with it the head on completion tokens only and pairs dealt by length
    (batching.py). With `precompute_ref_log_probs`: the reference scored once (reference.py), found
    again by its weights, among them those in the file `adapter` if it is one on its base.
    """

    def __init__(
        self,
        *args,
        share_prefix: bool,
        reference_cache: str,
        adapter: Path | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs,
    ):
        self.share_prefix, self.reference_cache = share_prefix, Path(reference_cache)
        self.adapter, self.settings = adapter, settings or {}
        self.batch: dict[str, Any] | None = None  # the last one, for a run that ends on it
        self.sharing, self._ready, self._saving = "off", False, False
        self.started = time.monotonic()  # so much earlier, once a run goes on from a checkpoint
        self.live = self._live_since(
            **inspect.signature(DPOTrainer.__init__).bind(self, *args, **kwargs).arguments
        )
        super().__init__(*args, **kwargs)
        self._make_ready()
        if self._precompute_engine is not None:
            # Its hooks would go on counting the modules that pass, and after a single batch, the
            # check of a kept reference, lose count in training (ZeRO-3).
            self._precompute_engine.destroy()
            self._precompute_engine = None
        self.monitors, self.settled = Monitors(self), resuming.Settled(self)
        self.add_callback(self.monitors)
        self.add_callback(self.settled)

    @staticmethod
    def _live_since(model, args=None, train_dataset=None, eval_dataset=None, **_) -> str | None:
        """Why the reference is not scored beforehand, though it was asked for."""
        reason = None
        if args is not None and args.precompute_ref_log_probs:
            reason = positions.by_batch(model, args, train_dataset, eval_dataset)
            args.precompute_ref_log_probs = reason is None
        return reason

    def _make_ready(self) -> None:
        """Once, when TRL has built the models and before anything goes through them."""
        if self._ready:
            return
        self._ready = True
        keep_gradients(self.model)
        for model in (self.model, self.ref_model):
            if model is not None:
                positions.forget_longer_batches(model)
        if is_peft_model(self.model):
            adapters.match_reference(self.model)
        if self.share_prefix:
            self._share_prefixes()

    def _share_prefixes(self) -> None:
        prefix_sharing.head_on_completions(self.accelerator.device)
        models = [self.model.get_base_model() if is_peft_model(self.model) else self.model]
        if self.ref_model is not None:
            models.append(self.accelerator.unwrap_model(self.ref_model))
        reason = prefix_sharing.obstacle(models[0])
        if is_peft_model(self.model) and self.model.active_peft_config.is_prompt_learning:
            reason = "the adapter puts virtual tokens before the prompt"
        if reason:
            self.sharing = f"off, since {reason}"
            return
        for model in models:
            prefix_sharing.share_prefixes(model)
        self.data_collator = SharedPrefixCollator(**vars(self.data_collator))
        half = self.accelerator.mixed_precision != "no" or self.model.dtype.itemsize < 4
        self.sharing = f"on, {shared_attention.backend(self.accelerator.device, half)}"

    # Rows that were linted are tokens already (preferences.py).
    def _prepare_dataset(self, dataset, *args):
        if IDS[0] in (dataset.column_names or ()):
            return dataset
        return super()._prepare_dataset(dataset, *args)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            hub.drop_pickle(output_dir or self.args.output_dir)

    def push_to_hub(self, commit_message: str = "End of training", revision: str | None = None):
        return hub.publish(self, commit_message, revision)

    def create_model_card(self, model_name: str | None = None, *args, **kwargs) -> None:
        super().create_model_card(hub.plain(model_name or ""), *args, **kwargs)

    # TRL scores here, at the end of its __init__, when the models are built.
    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._make_ready()
        rows = self._rows_of_the_run(super().get_train_dataloader()) if name == "train" else None
        with memory.explained(self, "scoring the reference"):
            return reference.with_logps(self, dataset, name, batch_size, self.reference_cache, rows)

    def compute_ref_log_probs(self, model, inputs):
        self.batch = inputs
        return super().compute_ref_log_probs(model, inputs)

    # All of it, since the optimizer's states come with its first step, outside training_step.
    def train(self, *args, **kwargs):
        with memory.explained(self):
            return super().train(*args, **kwargs)

    # The one place where every loss passes before it goes backward.
    def compute_loss(self, model, inputs, *args, **kwargs):
        self.batch = inputs
        if not (self.is_in_train and self.model.training):
            return super().compute_loss(model, inputs, *args, **kwargs)
        with gathered(self.accelerator) as numbers:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.monitors.saw(loss, inputs["completion_mask"], tuple(numbers[-6:-4]))
        return loss

    # Called at every step between the last backward and the optimizer's step.
    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.monitors.check_gradient(norm)
        return norm

    def _rows_of_the_run(self, loader: DataLoader) -> np.ndarray:
        """The rows that will be trained on: all, or the first of a run shorter than an epoch."""
        steps = max(self.args.max_steps, 0) or len(self.train_dataset)
        return np.array([*innermost(loader).sampler][: steps * self.pairs_per_step])

    # accelerate puts its own seeded sampler in place of any that it is given, so that ours goes
    # around that one.
    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        if self.precompute_ref_logps:
            scored = np.array(self.train_dataset["ref_chosen_logps"])
            if np.isnan(scored[self._rows_of_the_run(loader)]).any():
                raise RuntimeError("the run has pairs that the reference did not score")
        micro_batch, batch = self.args.train_batch_size, self.pairs_per_step
        if self.deals_by_length and batch > micro_batch:
            lengths = reference.shared_lengths(self.train_dataset, self.args.max_length)
            batches = innermost(loader)
            batches.sampler = DealtSampler(batches.sampler, lengths, micro_batch, batch)
        return loader

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a run must have in common with the checkpoint that it goes on from."""
        model, rows = self.accelerator.unwrap_model(self.model), self.train_dataset
        listed = not isinstance(rows, IterableDataset) and {*reference.ROWS} <= {*rows.column_names}
        return {
            "processes": self.accelerator.num_processes,
            "sharding": checkpoints.sharding(self.accelerator),
            "model": reference.digest_of_weights(model, self.adapter),
            "data": reference.digest_of_rows(rows) if listed else None,
            "settings": self.settings,
        }

    # transformers would write a checkpoint at its place; there it lies when it is whole.
    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return f"{folder}/{checkpoints.BESIDE}" if self._saving else folder

    def _save_checkpoint(self, model, trial) -> None:
        state, folder = self.state, Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        beside = folder / checkpoints.BESIDE / checkpoint.name
        with output.written_to(checkpoint):
            self._saving = True
            super()._save_checkpoint(model, trial)
            self._saving = False
            if self.args.sync_ref_model and not self.args.save_only_model:
                resuming.save_reference(self, beside)
            unlogged = self.settled.unlogged or resuming.unlogged(self)
            self.accelerator.wait_for_everyone()
            if state.best_model_checkpoint == str(beside):
                state.best_model_checkpoint = str(checkpoint)
            about = {}
            if self.is_world_process_zero():
                state.save_to_json(str(beside / "trainer_state.json"))
                about = self.about | {
                    "optimizer": not self.args.save_only_model,
                    "seconds": time.monotonic() - self.started,
                    "unlogged": unlogged,
                }
            checkpoints.finish(beside, checkpoint, about)
            if self.is_world_process_zero():
                best = state.best_model_checkpoint
                checkpoints.rotate(folder, self.args.save_total_limit, best)
            self.accelerator.wait_for_everyone()

    def save_alone(self) -> None:
        """Write a checkpoint of the last step that was completed, before the run fails in the one
        after it; where other processes are needed for that, they cannot be told."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        alone = self.args.world_size == 1 and not sharded
        there = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}").exists()
        if alone and self.state.global_step and not there:
            self.model.zero_grad()
            self._save_checkpoint(self.model, None)

    # The system kills a process when memory runs out, and a data worker is a small one to choose.
    def get_batch_samples(self, *args):
        try:
            return super().get_batch_samples(*args)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.save_alone()
            whole = checkpoints.last_whole(Path(self.args.output_dir))
            raise SystemExit(
                f"a data worker was killed after step {self.state.global_step}, often for want of "
                "memory: give fewer dataloader_num_workers, and the same command goes on from "
                f"{whole or 'the start'}"
            ) from error

    # A run that was killed between its last checkpoint and its policy has no step left to train.
    # transformers looks whether training is over only after a step.
    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    @property
    def pairs_per_step(self) -> int:
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    @property
    def deals_by_length(self) -> bool:
        """Whether pairs may change micro-batch. A router's balance is taken over a micro-batch."""
        shares = isinstance(self.data_collator, SharedPrefixCollator)
        shares = shares and not isinstance(self.train_dataset, IterableDataset)
        return shares and not self.aux_loss_enabled and not COMPOSITION_MATTERS & {*self.loss_types}
