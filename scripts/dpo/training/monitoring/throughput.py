"""How fast a run trains, at every log."""

import time

import numpy as np
import torch
from accelerate.utils import is_peft_model
from transformers import TrainerCallback

from dpo.core.machine import peak_memory_gb
from dpo.models import flops
from dpo.training.stock import Declared

WARM = 2  # steps of a process that are slower: kernels are chosen, memory is asked for
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # rows of a matrix that keeps the device busy


class Throughput(TrainerCallback):
    """Takes the time of every optimizer step, from its first batch on; evaluations and checkpoints
    are between steps and do not count. `pairs` are seen through `saw`.

    Attributes:
        steady: steps, seconds and pairs of all processes, since this one was warm.
    """

    def __init__(self, trainer: Declared):
        self.trainer = trainer
        self.began = 0.0
        self.seconds, self.lengths = 0.0, []
        self.steps, self.pairs, self.steady = 0, 0, (0, 0.0, 0)

    def begin(self) -> None:
        """Called before a step waits for its batches."""
        self.began = time.perf_counter()

    def saw(self, pairs: list[list[float]]) -> None:
        """Take in a micro-batch of all processes, as `probes.per_pair` has it."""
        self.lengths += [[pair[7], *pair[2:4]] for pair in pairs]
        self.pairs += len(pairs)

    def on_step_end(self, args, state, control, **kwargs):
        # Monitors have waited for the device: they looked at the weights.
        seconds = time.perf_counter() - self.began
        self.seconds += seconds
        self.steps += 1
        if self.steps > WARM:
            steps, before, pairs = self.steady
            self.steady = steps + 1, before + seconds, pairs + self.pairs
        self.pairs = 0

    def since(self) -> dict[str, float]:
        """The mean rates since they were last asked for, of all processes together: tokens with
        each prompt counted once, `mfu` as the useful share (`useful_flops`) of what matrix products
        reach; and the most memory that this process has held, in GB. Empty before the first step.
        """
        if not self.lengths or not self.seconds:
            return {}
        lengths, seconds = np.array(self.lengths), self.seconds
        self.seconds, self.lengths = 0.0, []
        found = {
            "pairs_per_second": len(lengths) / seconds,
            "tokens_per_second": float(lengths.sum()) / seconds,
        }
        accelerator = self.trainer.accelerator
        model = accelerator.unwrap_model(self.trainer.model)
        model = model.get_base_model() if is_peft_model(model) else model
        device = accelerator.device.type
        if device in PEAK_SIZE and flops.counts_all(model):
            half = accelerator.mixed_precision != "no" or model.dtype.itemsize < 4
            dtype = torch.bfloat16 if half else torch.float32
            peak = flops.matmul_peak(device, dtype, PEAK_SIZE[device]) * accelerator.num_processes
            found["mfu"] = flops.useful_flops(model, lengths) / seconds / peak
        return found | {"peak_memory_gb": peak_memory_gb()}
