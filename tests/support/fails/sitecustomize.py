"""For the tests, on Python's path: a training process runs out of memory as it scores the
reference, or is killed as it starts, as FAILS says. Python imports this module when it starts."""

import os
import signal
import sys

if sys.orig_argv[1:2] and sys.orig_argv[1].endswith("train.py"):
    if os.environ.get("FAILS") == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("FAILS") == "full":
        import dpo  # noqa: F401  first, that no library speaks

        # isort: split
        import torch
        from trl import DPOTrainer

        def ask(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB.")

        DPOTrainer.compute_ref_log_probs = ask
