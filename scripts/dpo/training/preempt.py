"""On SIGTERM, SIGUSR1 or Ctrl-C the run saves a checkpoint and exits with code 75; the same command
resumes from there.

Schedulers, service managers and people send these. While it trains, a run completes its step,
saves and exits; before and after that there is nothing to save, and it exits at once. A launcher
that sees EXIT_CODE starts it again.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from dpo.core.environment import Launch
from dpo.core.signals import ASKED, EXIT_CODE, LEFT, SIGNALS
from dpo.core.terminal import end
from dpo.runs import tracking


def run_to_the_end(main: Callable[[], None]) -> NoReturn:
    """Run an entry point, and end this process before Python shuts down.

    DeepSpeed holds on to gloo's threads. One that gives back a tensor while Python shuts down
    aborts its process, and torchrun then ends the others, which may still be evaluating.
    """
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr, flush=True)
        if code:
            tracking.finish({}, code)  # what W&B has not written yet
    end(code)


class Leave(TrainerCallback):
    """Saves and stops at the end of the first step by which any process has been asked to stop.

    The processes tell each other at every step: where one alone stopped, the others would wait for
    it. Outside of training, and on a second Ctrl-C, a process that is asked ends at once.

    Attributes:
        asked: whether this process was asked.
        left: whether training was stopped before its end, the same in all processes.
    """

    def __init__(self, launch: Launch):
        self.told_in = launch.told_in
        self.asked = self.left = self._training = self._interrupted = False

    def listen(self) -> Self:
        """Hear the signals, also those that launch.py had held back until now."""
        for number in SIGNALS:
            signal.signal(number, self._hear)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if self.told_in and Path(self.told_in, ASKED).exists():
            self.end(agreed=False)
        return self

    def _hear(self, number: int, frame) -> None:
        self.asked = True
        if not self._training or (self._interrupted and number == signal.SIGINT):
            self.end(agreed=False)
        self._interrupted |= number == signal.SIGINT

    def end(self, agreed: bool) -> NoReturn:
        """End this process since it was asked to stop. Where all have `agreed`, the others end as
        well: torchrun then need not report a failure and end them."""
        if self.told_in:  # where the launcher looks whether the run has left
            Path(self.told_in, LEFT).touch()
        end(0 if agreed and self.told_in else EXIT_CODE)

    def on_train_begin(self, args, state, control, **kwargs):
        self._training = True

    def on_step_end(self, args, state, control, **kwargs):
        asked: Any = reduce(torch.tensor(float(self.asked), device=args.device), "sum")
        if asked.item() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.left = True

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False
