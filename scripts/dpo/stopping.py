"""A run that is asked to leave saves a checkpoint first; the same command goes on from there.

A scheduler warns before it takes its machines back. The warning is SIGUSR1, since torchrun answers
SIGTERM by ending its processes. launch.py blocks the signal for all that it starts: it stays
pending in every process, however early it comes, until a step has ended.
"""

from __future__ import annotations

import signal

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

ASKED = signal.SIGUSR1


class SaveAndLeave(TrainerCallback):
    """Saves and stops at the end of the first step by which any process has been asked to leave.

    The processes tell each other at every step: where one alone stopped, the others would wait for
    it. `left` says afterwards whether training was stopped before its end.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.left = accelerator, False

    def on_step_end(self, args, state, control, **kwargs):
        asked = torch.tensor(float(ASKED in signal.sigpending()), device=self.accelerator.device)
        asked = self.accelerator.reduce(asked, reduction="sum").item() > 0
        if asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.left = True
