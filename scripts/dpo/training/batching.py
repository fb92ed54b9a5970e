"""Which pairs go into which micro-batch. The optimizer steps see the same pairs as ever.

A step waits for its slowest process, and a process that was dealt the long pairs is slow. So the
pairs of one global batch are dealt out by length: longest first, to each micro-batch in turn and
back again (snake order). Every micro-batch keeps its number of pairs, so the mean over pairs, and
with it the objective, is the same.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import IterableDataset
from torch.utils.data import BatchSampler, DataLoader, Sampler

from dpo.training.stock import Declared

# These take their mean over the tokens of a micro-batch, or sort within it: for them it matters
# which pairs come together.
COMPOSITION_MATTERS = {"sft", "aot", "aot_unpaired"}


def innermost(loader: DataLoader) -> Any:
    """The batch sampler that still goes by row numbers, beneath those by which accelerate gives
    each process its batches."""
    batches: Any = loader.batch_sampler
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return batches


def deal(pairs: list[int], lengths: np.ndarray, micro_batch: int) -> list[int]:
    """Reorder `pairs` so that each run of `micro_batch` of them has about the same length in sum.

    Args:
        pairs: row numbers of one global batch, a multiple of `micro_batch`.
        lengths: tokens of every row of the data set, shape (rows,).
    """
    hands: list[list[int]] = [[] for _ in range(len(pairs) // micro_batch)]
    longest_first = sorted(pairs, key=lambda row: -lengths[row])
    for turn in range(micro_batch):
        dealt = longest_first[turn * len(hands) : (turn + 1) * len(hands)]
        for hand, row in zip(hands, dealt[:: -1 if turn % 2 else 1], strict=True):
            hand.append(row)
    return [row for hand in hands for row in hand]


def layout(pairs: int, micro_batch: int, processes: int) -> np.ndarray:
    """How many of the pairs of one step each micro-batch of each process has, shape (micro-batches,
    processes): as many micro-batches as are needed, alike but for one pair.

    An incomplete last batch may have fewer pairs than there are places; those with 0 compute a
    pair all the same, for the sake of the others that wait for them, and it counts nothing.
    """
    if processes == 1:  # as torch's BatchSampler cuts them
        return np.minimum(pairs - np.arange(0, pairs, micro_batch), micro_batch)[:, None]
    places = math.ceil(pairs / (micro_batch * processes)) * processes
    return (pairs // places + (np.arange(places) < pairs % places)).reshape(-1, processes)


class EvenBatches(BatchSampler):
    """Micro-batches of all processes in turn, as accelerate deals them out. It would fill up an
    incomplete last global batch with the first pairs of the epoch, which would count twice; here
    that one is cut by `layout`."""

    def __init__(self, order: Sampler[int], micro_batch: int, batch: int, processes: int):
        super().__init__(order, micro_batch, drop_last=False)
        self.batch, self.processes = batch, processes

    def sizes(self) -> np.ndarray:
        """Pairs of each process in each of its micro-batches, shape (micro-batches, processes)."""
        steps, left = divmod(len(self.sampler), self.batch)
        whole = np.tile(layout(self.batch, self.batch_size, self.processes), (steps, 1))
        last = [layout(left, self.batch_size, self.processes)] if left else []
        return np.concatenate([whole, *last])

    def __len__(self) -> int:
        return self.sizes().size

    def __iter__(self) -> Iterator[list[int]]:
        rows, at = list(self.sampler), 0
        for size in self.sizes().flatten().tolist():
            yield rows[at : at + size] or rows[:1]
            at += size


class DealtSampler(Sampler[int]):
    """The order of another sampler, with each global batch dealt out by length.

    An incomplete last global batch stays as it is.
    """

    def __init__(self, order: Any, lengths: np.ndarray, micro_batch: int, batch: int):
        self.order, self.lengths = order, lengths
        self.micro_batch, self.batch = micro_batch, batch

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.order, "set_epoch"):  # the order of the rows themselves has no epochs
            self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rows = list(self.order)
        for start in range(0, len(rows), self.batch):
            pairs = rows[start : start + self.batch]
            whole = len(pairs) == self.batch
            yield from deal(pairs, self.lengths, self.micro_batch) if whole else pairs


COUNTED = "pairs counted"  # among TRL's metrics: of each batch, to weigh the others by


class WeighsPairs(Declared):
    """The part of FastDPOTrainer (trainer.py) that deals pairs evenly and weighs them alike; above
    TRL's in its bases."""

    def __init__(self, *args, **kwargs):
        self.step_layout = np.ones((1, 1), dtype=int)  # pairs of each micro-batch and process
        self.to_come: list[np.ndarray] = []  # the same of the micro-batches that are still to come
        self.eval_losses: list[float] = []  # of every pair of an evaluation, that of its batch
        super().__init__(*args, **kwargs)

    # Called once a step, with all of its micro-batches.
    def get_batch_samples(self, *args):
        self.throughput.begin()
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
        if "loss" in logs:
            logs |= self.throughput.since()
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

    # accelerate would fill up the last batches with pairs that count twice.
    def get_eval_dataloader(self, *args) -> DataLoader:
        loader, batch = super().get_eval_dataloader(*args), self.args.eval_batch_size
        if self.args.world_size > 1 and not isinstance(loader.dataset, IterableDataset):
            self._deal_evenly(loader, batch, batch * self.args.world_size)
        return loader

    def _deal_evenly(self, loader: DataLoader, micro_batch: int, batch: int) -> None:
        shard: Any = loader.batch_sampler
        processes = self.args.world_size
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
