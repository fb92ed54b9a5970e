"""The one subclass of TRL's DPOTrainer: it plugs the pieces of this repository in."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model, send_to_device
from datasets import IterableDataset
from peft import PeftConfig, PeftModel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo.core import stats
from dpo.core.environment import Launch, launched
from dpo.data import schema
from dpo.data.schema import IDS, longest_row
from dpo.models import adapters, rope
from dpo.prefix_sharing import attention, backbone, head
from dpo.prefix_sharing.plan import SharedPrefixCollator
from dpo.training import batching, reference, stock
from dpo.training.batching import COMPOSITION_MATTERS, DealtSampler, WeighsPairs, innermost
from dpo.training.monitoring.alerts import Monitors
from dpo.training.monitoring.probes import gathered, per_pair
from dpo.training.monitoring.throughput import Throughput
from dpo.training.preflight import memory
from dpo.training.save import WritesCheckpoints
from dpo.training.waiting import ReferenceCanWait


def keep_gradients(model: torch.nn.Module) -> None:
    """Let 4-bit weights on a CPU be trained through. In evaluation bitsandbytes repacks them for a
    kernel that has no gradient, and goes on using it in training."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def stays_live(
    model: Any, own: Any, adapter: PeftConfig | None, args: DPOConfig, launch: Launch, *data: Any
) -> str | None:
    """Why the reference cannot be scored beforehand; None if it can.

    Args:
        model: a name that TRL would load with `args`, or the model; `adapter` is a new one on it.
        own: the reference, if it is a model of its own.
        data: the rows that will be trained on and held out.
    """
    if launch.fsdp and own is None and (adapter is not None or isinstance(model, PeftModel)):
        return (
            "until training begins FSDP leaves an adapter's base where it was loaded, whole and "
            "beside the GPUs"
        )
    longest = max(longest_row(each, args.max_length) for each in data)
    return rope.by_batch(model if own is None else own, args, longest)


class FastDPOTrainer(WeighsPairs, WritesCheckpoints, ReferenceCanWait):
    """What is learned is what stock TRL learns.

    With `share_prefix`, and where the model allows it: prompts computed once and no padding
    (backbone.py), and with it the head on completion tokens only and pairs dealt by length
    (batching.py). With `precompute_ref_log_probs`: the reference scored once (reference.py,
    waiting.py), found again by its weights, among them those in the file `adapter` if it is one on
    its base. `load_reference` gives a reference that is not what the policy starts from.
    """

    def __init__(
        self,
        *args,
        share_prefix: bool,
        adapter: Path | None = None,
        settings: dict[str, Any] | None = None,
        launch: Launch | None = None,
        reference_cache: str,
        pairs_wait: bool = False,
        load_reference: Callable[[], PreTrainedModel] | None = None,
        **kwargs,
    ):
        self.share_prefix = share_prefix
        self.launch = launch or launched()
        self.batch: dict[str, Any] | None = None  # the last one, for a run that ends on it
        self.pairs: list[list[float]] = []  # the last batch's, of all processes (probes.per_pair)
        self._sharing, self._ready = "off", False
        self.live: str | None = None  # why not scored beforehand, though asked for
        given = inspect.signature(DPOTrainer).bind(*args, **kwargs).arguments
        config, data = given.get("args"), (given.get("train_dataset"), given.get("eval_dataset"))
        if load_reference:
            given["ref_model"] = load_reference()
        if config is not None and config.precompute_ref_log_probs:
            start = (given["model"], given.get("ref_model"), given.get("peft_config"), config)
            self.live = stays_live(*start, self.launch, *data)
            given["args"] = copy.copy(config)
            given["args"].precompute_ref_log_probs = self.live is None
        # Whether the reference can be loaded again.
        self.by_name = load_reference is not None or isinstance(given["model"], str)
        with stock.unhashed():
            ours = {"reference_cache": reference_cache, "pairs_wait": pairs_wait}
            ours |= {"load_reference": load_reference}
            super().__init__(adapter=adapter, settings=settings, **ours, **given)
        self._make_ready()
        if self._precompute_engine is not None:
            # Its hooks would go on counting the modules that pass, and after a single batch, the
            # check of a kept reference, lose count in training (ZeRO-3).
            self._precompute_engine.destroy()
            self._precompute_engine = None
        self.monitors = Monitors(self)
        self.throughput = Throughput(self)
        for callback in (self.monitors, self.throughput):
            self.add_callback(callback)

    def _make_ready(self) -> None:
        """Once, when TRL has built the models and before anything goes through them."""
        if self._ready:
            return
        self._ready = True
        keep_gradients(self.model)
        stock.no_dropout_without_gradients(self.model)
        if self.args.disable_dropout:
            stock.no_dropout(self.model)
        for model in (self.model, self.ref_model):
            if model is not None:
                rope.forget_longer_batches(model)
        if is_peft_model(self.model):
            adapters.match_reference(self.model)
        if self.load_reference:  # as TRL has it in the policy: what is kept is found by it
            config = reference.reference_itself(self).config.get_text_config()
            config.pad_token_id = self._tokenizer.pad_token_id
        if self.share_prefix:
            self._share_prefixes()

    def _share_prefixes(self) -> None:
        head.head_on_completions(self.accelerator.device)
        reasons = [backbone.obstacle(model) for model in self._models()]
        if is_peft_model(self.model):
            reasons.append(adapters.obstacle(self.model))
        if type(self.data_collator) is not DataCollatorForPreference:
            reasons.append("the data collator is not TRL's own")
        if self.args.neftune_noise_alpha:
            reasons.append("the noise of neftune_noise_alpha goes by the shape of a batch")
        if reason := next(filter(None, reasons), None):
            self._sharing = f"off, since {reason}"
            return
        for model in self._models():
            backbone.share_prefixes(model)
        self.data_collator = SharedPrefixCollator(**vars(self.data_collator))
        half = self.accelerator.mixed_precision != "no" or self.model.dtype.itemsize < 4
        self._sharing = f"on, {attention.backend(self.accelerator.device, half)}"

    @property
    def sharing(self) -> str:
        """Whether prefixes are shared, and by what, or why not."""
        on = backbone.OTHERWISE not in map(backbone.obstacle, self._models())
        return self._sharing if on else f"off, since {backbone.OTHERWISE}"

    def _models(self) -> list[PreTrainedModel]:
        """The policy, and the reference if it is a model of its own, without what wraps them."""
        policy: Any = self.model
        models = [policy.get_base_model() if is_peft_model(policy) else policy]
        if self.ref_model is not None:
            models.append(self.accelerator.unwrap_model(self.ref_model))
        return models

    # accelerate has FSDP round all floats that leave a layer to bfloat16, log-probabilities too;
    # copy what goes into each, the plan of a batch too; and keep the gradients of a step whole, in
    # bfloat16, until its last micro-batch. Weights are gathered in bfloat16 as before.
    def create_accelerator_and_postprocess(self) -> None:
        config: Any = self.args.accelerator_config
        if self.launch.fsdp:
            sums = {"sync_each_batch": True, **(config.gradient_accumulation_kwargs or {})}
            config.gradient_accumulation_kwargs = sums
        super().create_accelerator_and_postprocess()
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin and (policy := plugin.mixed_precision_policy):
            sums = {"reduce_dtype": torch.float32, "output_dtype": None}
            plugin.mixed_precision_policy = replace(policy, cast_forward_inputs=False, **sums)

    # Called in Trainer.__init__.
    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        if self.args.ddp_find_unused_parameters is None:
            self.args.ddp_find_unused_parameters = stock.may_leave_unused(self.model)
        return super()._build_accelerator_args(**kwargs)

    # Rows that were linted are tokens already (dataset.py).
    def _prepare_dataset(self, dataset, *args):
        if IDS[0] in (dataset.column_names or ()):
            return dataset
        return super()._prepare_dataset(dataset, *args)

    # A run that is out of memory while it scores says with which batch.
    def compute_ref_log_probs(self, model, inputs):
        self.batch = inputs
        return super().compute_ref_log_probs(model, inputs)

    # All of it, since the optimizer's states come with its first step, outside training_step.
    def train(self, *args, **kwargs):
        with memory.explained(self):
            return super().train(*args, **kwargs)

    # transformers' own leaves behind what is no tensor, such as the plan of a batch, and under
    # DeepSpeed casts what is a float, such as the reference's log-probabilities, to bfloat16.
    def _prepare_input(self, data):
        return send_to_device(data, self.args.device)

    # The one place where every loss passes before it goes backward.
    def compute_loss(self, model, inputs, *args, **kwargs):
        self.score_pairs(inputs)
        self.batch = inputs
        trains = self.is_in_train and self.model.training
        counts = self.to_come.pop(0) if self.to_come else None
        with gathered(self.accelerator, counts) as numbers:
            found = super().compute_loss(model, inputs, *args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        masks = inputs["attention_mask"], inputs["completion_mask"]
        self.pairs = per_pair(self.accelerator, numbers, masks, loss, counts)
        # TRL counts a tie as wrong.
        mode = "train" if self.model.training else "eval"
        accuracy = float(self.right(np.array(self.pairs)).mean())
        self._metrics[mode]["rewards/accuracies"][-1] = accuracy
        self._metrics[mode][batching.COUNTED].append(len(self.pairs))
        if not trains:
            self.eval_losses += [pair[4] for pair in self.pairs]
            return found
        self.monitors.saw(self.pairs)
        self.throughput.saw(self.pairs)
        # TRL's loss is a mean over a micro-batch, and what transformers sums up a mean over those.
        mine = counts[self.accelerator.process_index]
        return loss * (mine * self.step_layout.size / self.step_layout.sum())

    def right(self, pairs: np.ndarray) -> np.ndarray:
        """Accuracy of the pairs, columns as `probes.per_pair` has them, each alone."""
        tie = stats.width(self.beta, reference.nats_per_token(self), pairs[:, 2] + pairs[:, 3])
        return stats.accuracy(stats.settled(pairs[:, 0] - pairs[:, 1], tie))

    # Called at every step between the last backward and the optimizer's step.
    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.monitors.check_gradient(norm)
        return norm

    # accelerate puts its own seeded sampler in place of any that it is given, so that ours goes
    # around that one.
    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        if self.precompute_ref_logps:
            rows = self._rows_of_the_run(loader)
            if not np.isin(rows, self.pairs_of_the_run).all():
                raise RuntimeError("the run has pairs that the reference did not score")
        micro_batch, batch = self.args.train_batch_size, self.pairs_per_step
        if self.deals_by_length and batch > micro_batch:
            cut = (self.args.max_length, self.args.truncation_mode)
            lengths = schema.shared_lengths(self.train_dataset, *cut)
            batches = innermost(loader)
            batches.sampler = DealtSampler(batches.sampler, lengths, micro_batch, batch)
        if self._lays_out and self.args.world_size > 1:
            self._deal_evenly(loader, micro_batch, batch)
        return loader

    # A run that was killed between its last checkpoint and its policy has no step left to train.
    # transformers looks whether training is over only after a step.
    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    @property
    def composition_matters(self) -> bool:
        """Whether the loss depends on which pairs come together in a micro-batch: a router's
        balance is taken over one."""
        return self.aux_loss_enabled or bool(COMPOSITION_MATTERS & {*self.loss_types})

    @property
    def deals_by_length(self) -> bool:
        """Whether pairs may change micro-batch."""
        shares = isinstance(self.data_collator, SharedPrefixCollator)
        shares = shares and not isinstance(self.train_dataset, IterableDataset)
        return shares and not self.composition_matters
