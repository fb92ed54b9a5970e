"""Every pair weighs the same: in a step, in an evaluation and in what is logged, whatever the
micro-batch, the number of processes, and how many pairs are left for the last batch."""

from __future__ import annotations

import math

import numpy as np
from datasets import IterableDataset
from torch.utils.data import DataLoader

from dpo.training.batching import EvenBatches, innermost, layout

COUNTED = "pairs counted"  # among TRL's metrics: of each batch, to weigh the others by


class WeighsPairs:
    """The part of FastDPOTrainer (trainer.py) that deals pairs evenly and weighs them alike; above
    TRL's in its bases."""

    def __init__(self, *args, **kwargs):
        self.step_layout = np.ones((1, 1), dtype=int)  # pairs of each micro-batch and process
        self.to_come: list[np.ndarray] = []  # the same of the micro-batches that are still to come
        self.eval_losses: list[float] = []  # of every pair of an evaluation, that of its batch
        super().__init__(*args, **kwargs)

    # Called once a step, with all of its micro-batches.
    def get_batch_samples(self, *args):
        with self._data_workers_explained():
            batches, items = super().get_batch_samples(*args)
        pairs = self.pairs_per_step
        if self._lays_out and self.accelerator.gradient_state.end_of_dataloader:
            pairs = len(self.train_dataset) % pairs or pairs
        self.step_layout = layout(pairs, self.args.train_batch_size, self.args.world_size)
        self.to_come = [*self.step_layout]
        return batches, items

    # TRL's metrics are means over batches, of which the last may be small.
    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        counts = metrics.pop(COUNTED, [])
        for name, values in metrics.items():
            if len(values) == len(counts):
                metrics[name] = [float(np.average(values, weights=counts))]
        super().log(logs, *args, **kwargs)

    # transformers weighs the processes' batches alike, and counts what fills the last ones up.
    def evaluation_loop(self, dataloader: DataLoader, *args, metric_key_prefix="eval", **kwargs):
        batches, self.eval_losses = innermost(dataloader), []
        self.to_come = [*batches.sizes()] if isinstance(batches, EvenBatches) else []
        how = {"metric_key_prefix": metric_key_prefix, **kwargs}
        found = super().evaluation_loop(dataloader, *args, **how)
        if self.eval_losses:
            found.metrics[f"{metric_key_prefix}_loss"] = float(np.float32(self.eval_losses).mean())
        return found

    def get_eval_dataloader(self, *args) -> DataLoader:
        loader, batch = super().get_eval_dataloader(*args), self.args.eval_batch_size
        if self.args.world_size > 1 and not isinstance(loader.dataset, IterableDataset):
            self._deal_evenly(loader, batch, batch * self.args.world_size)
        return loader

    def _deal_evenly(self, loader: DataLoader, micro_batch: int, batch: int) -> None:
        shard, processes = loader.batch_sampler, self.args.world_size
        shard.batch_sampler = EvenBatches(innermost(loader).sampler, micro_batch, batch, processes)
        shard.batch_size = None  # it may differ from one to the next

    @property
    def _lays_out(self) -> bool:
        """Whether the rows of a step are known: not those of a stream."""
        streams = isinstance(self.train_dataset, IterableDataset)
        return not streams and not self.args.dataloader_drop_last

    @property
    def pairs_per_step(self) -> int:
        return math.prod(self._micro_batches)

    @property
    def _micro_batches(self) -> list[int]:
        args = self.args
        return [args.train_batch_size, args.gradient_accumulation_steps, args.world_size]
