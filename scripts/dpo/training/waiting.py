"""What step 1 does not wait for: the reference, where a run has a CPU to itself.

There it would take most of the time before the first step. So held-out pairs are scored when the
first evaluation asks for them, and a training pair with the first batch that it is in: by the
policy, as long as it is its reference, and then by the reference, loaded again and let go of when
no pair needs it any more. On a GPU it would lie beside the optimizer's states, for which no check
before step 1 has seen room.

A reference that the recipe states is loaded beside the policy, and let go of before step 1 where
all pairs have its scores.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, get_config_model_id

from dpo.core.refusal import Refusal
from dpo.data import schema
from dpo.data.schema import PLACE
from dpo.models import loading, rope
from dpo.prefix_sharing import backbone
from dpo.prefix_sharing.plan import SharedPrefixCollator
from dpo.training import reference, stock
from dpo.training.batching import innermost
from dpo.training.monitoring.probes import own_draws
from dpo.training.preflight import memory
from dpo.training.stock import Declared


class PlacesCollator(SharedPrefixCollator):
    """The collator of a data set whose rows know their places."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        places = [example[PLACE] for example in examples if PLACE in example]
        return super().torch_call(examples) | ({PLACE: places} if places else {})


class ReferenceCanWait(Declared):
    """The part of FastDPOTrainer (trainer.py) that has the reference score; above TRL's in its
    bases.

    Args:
        reference_cache: the folder where what is scored is kept.
        pairs_wait: whether training pairs are scored as they come, where nothing speaks against it.
        load_reference: loads the reference, where it is a model of its own.
    """

    def __init__(
        self,
        *args,
        reference_cache: str,
        pairs_wait: bool = False,
        load_reference: Callable[[], PreTrainedModel] | None = None,
        **kwargs,
    ):
        self.reference_cache, self.load_reference = Path(reference_cache), load_reference
        self.entry: reference.Entry | None = None  # of training pairs that are scored as they come
        self.rows = np.array([], dtype=int)  # of them, those of the run
        self.loaded: PreTrainedModel | None = None  # the reference, between two batches
        self._scored = 0
        self._held_out: dict[str, Any] | None = None  # what their scores depend on
        self._pairs_wait, self._building = pairs_wait, True
        super().__init__(*args, **kwargs)
        self._building = False
        # What it loads again must be this: training changes the policy's configuration.
        self.began_with = reference.reference_itself(self).config
        self.began_as = reference.digest_of_weights(self.began_with) if self.can_wait else None

    @property
    def within_policy(self) -> bool:
        """Whether the policy has its reference beneath at any time: an adapter is on it."""
        policy = self.accelerator.unwrap_model(self.model)
        return self.load_reference is None and bool(is_peft_model(policy))

    def let_go(self) -> None:
        """Free the memory of a reference of its own that training does not need: all pairs have its
        scores, or it is kept for those that do not, and comes back with them."""
        if self.load_reference is None or not self.precompute_ref_logps or self.ref_model is None:
            return
        model, self.ref_model = self.ref_model, None
        self.accelerator._models = [each for each in self.accelerator._models if each is not model]
        if self.is_deepspeed_enabled:
            model.destroy()
        waits = self.entry is not None and len(self.entry.missing(self.rows))
        self.loaded = self.accelerator.unwrap_model(model) if waits else None
        del model
        clear_device_cache(garbage_collection=True)  # a backbone that shares prefixes has a cycle

    @property
    def can_wait(self) -> bool:
        """Whether the reference can be loaded again, beside a policy that trains."""
        sharded = self.launch.deepspeed or self.launch.fsdp
        return self.by_name and not sharded and self.accelerator.device.type == "cpu"

    # TRL scores here, at the end of its __init__, when the models are built.
    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if isinstance(dataset, IterableDataset):  # which TRL refuses, in a word
            return super()._precompute_ref_logps(dataset, name, batch_size)
        self._make_ready()
        trained = dataset is self.train_dataset  # an evaluation set may be called "train" too
        held_out = dataset is self.eval_dataset
        rows = np.arange(len(dataset))
        if trained:
            rows = self._rows_of_the_run(super().get_train_dataloader())
        if held_out and self._held_out is None and self.accelerator.is_main_process:
            self._held_out = reference.content(self, dataset)  # training changes the configuration
        about = self._held_out if held_out else None
        quiet = own_draws(self.accelerator.device)  # a loader draws a seed
        with quiet, memory.explained(self, "scoring the reference"):
            entry = reference.known(self, dataset, self.reference_cache, about)
            if len(entry.missing(rows)) and self._building and self.can_wait:
                if held_out:
                    return dataset
                if trained and self._as_they_come():
                    self.entry, self.rows = entry, rows
                    self.data_collator = PlacesCollator(**vars(self.data_collator))
                    return dataset.add_column(PLACE, np.arange(len(dataset)))
            return reference.with_logps(self, dataset, name, batch_size, entry, rows)

    def _as_they_come(self) -> bool:
        """Whether a pair scored with the first batch that it is in has the score that it would have
        had: by one process, with nothing rounded, in batches that say which pairs they hold."""
        args = self.args
        exact = self.accelerator.mixed_precision == "no" and self.model.dtype == torch.float32
        whole = args.world_size == 1 and args.precompute_ref_batch_size is None
        shares = isinstance(self.data_collator, SharedPrefixCollator)
        return self._pairs_wait and exact and whole and shares

    def _rows_of_the_run(self, loader: Any) -> np.ndarray:
        """The rows that will be trained on: all, or the first of a run shorter than an epoch."""
        args, epoch = self.args, math.ceil(len(self.train_dataset) / self.pairs_per_step)
        steps = max(args.max_steps, 0) or math.ceil(args.num_train_epochs * epoch)
        return np.array([*innermost(loader).sampler][: steps * self.pairs_per_step])

    # What is in neither list is taken out of the rows.
    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.entry and PLACE not in self._signature_columns:
            self._signature_columns += [PLACE]

    def score_pairs(self, batch: dict[str, Any]) -> None:
        """Put the reference's log-probabilities into a batch of training pairs, scored here if they
        are not known yet.

        Raises:
            Refusal: they are not finite, or the reference that was loaded again is another model.
        """
        places = batch.pop(PLACE, None)
        if places is None or self.entry is None:
            return
        if len(missing := self.entry.missing(np.array(places))):
            fresh = np.isin(places, missing)
            with with_reference(self):
                pair = self.compute_ref_log_probs(reference.reference_model(self), batch)
                self.entry.add(missing, torch.stack(pair).float().cpu().numpy()[:, fresh], "train")
            self._scored += len(missing)
        for name, values in zip(schema.REFERENCE_LOGPS, self.entry.logps[:, places], strict=True):
            batch[name] = torch.from_numpy(values).to(self.accelerator.device)

    def keep_scores(self) -> str | None:
        """Keep what was scored as it came, for the run that goes on from here, and others.

        Returns what there is to say of it, if anything."""
        if self.entry is None or not self._scored:
            return None
        said = f"Reference log-probabilities of {len(self.rows)} train pairs: "
        return f"{said}{self._scored} scored as they came, and {self.entry.keep()}"

    @property
    def pairs_of_the_run(self) -> np.ndarray:
        """Row numbers of the training pairs that have the reference's scores, or get them."""
        if self.entry is not None:
            return np.sort(self.rows)
        if not self.precompute_ref_logps:
            return np.arange(len(self.train_dataset))
        scores = schema.column(self.train_dataset, schema.REFERENCE_LOGPS[0])
        return np.flatnonzero(~np.isnan(scores))

    # A run that is asked to stop ends with pairs that still wait.
    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.loaded = None

    # Held-out pairs are scored when they are asked for.
    def evaluate(self, *args, **kwargs):
        have_held_out_scored(self)
        return super().evaluate(*args, **kwargs)


@contextmanager
def with_reference(trainer: ReferenceCanWait) -> Iterator[None]:
    """Within, the trainer has the model that its policy was before it learned, or the reference of
    its own, loaded as TRL loads one that stays. An adapter learns beside it, and needs none. The
    run's own random draws stay as they were.

    Raises:
        Refusal: the model's files are others than at the start.
    """
    entry = trainer.entry
    still_it = trainer.load_reference is None and not trainer.state.global_step
    with own_draws(trainer.accelerator.device):
        if trainer.within_policy or trainer.ref_model is not None or still_it:
            yield
            return
        trainer.ref_model = trainer.loaded or load(trainer)
        try:
            yield
        finally:
            needed = entry and len(entry.missing(trainer.rows))
            trainer.loaded = trainer.ref_model if needed else None
            trainer.ref_model = None
            if not needed:  # a backbone that shares prefixes has a cycle
                clear_device_cache(garbage_collection=True)


def load(trainer: ReferenceCanWait) -> PreTrainedModel:
    """The reference as the trainer loaded its policy."""
    args, name = trainer.args, get_config_model_id(trainer.began_with)
    if reference.digest_of_weights(trainer.began_with) != trainer.began_as:
        trainer.save_alone()
        was = "the run began with" if trainer.load_reference else "the policy began as"
        raise Refusal(
            f"the reference {name} is not what {was}: its files have changed or gone "
            "since. Put them back, and the same command goes on; or start anew with --restart"
        )
    given: Any = args.model_init_kwargs or {}
    init = {"trust_remote_code": args.trust_remote_code, **given}
    with loading.whole():
        by_name = partial(create_model_from_path, name, **init)
        model = (trainer.load_reference or by_name)()
    if args.disable_dropout:
        stock.no_dropout(model)
    rope.forget_longer_batches(model)
    add_fused_lm_head(model)
    if isinstance(trainer.data_collator, SharedPrefixCollator):
        backbone.share_prefixes(model)
    return model.to(trainer.accelerator.device).eval()


def have_held_out_scored(trainer: ReferenceCanWait) -> None:
    """Have the reference score the held-out pairs, if that has waited until they are asked for."""
    dataset, args = trainer.eval_dataset, trainer.args
    waits = isinstance(dataset, Dataset) and schema.REFERENCE_LOGPS[0] not in dataset.column_names
    if trainer.precompute_ref_logps and waits:
        batch = args.precompute_ref_batch_size or args.per_device_eval_batch_size
        with with_reference(trainer):
            trainer.eval_dataset = trainer._precompute_ref_logps(dataset, "eval", batch)
