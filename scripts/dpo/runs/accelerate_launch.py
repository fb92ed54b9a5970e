"""`accelerate launch`, but for the trace of the launch where a process has said why it ends.

torchrun's report stays for a process that could not say anything: killed, or out of memory.
"""

import gc
import logging
import signal
import subprocess
import sys
from pathlib import Path

from dpo.core.environment import launched
from dpo.core.signals import has_refused, tell_full


def main() -> None:
    """Run `accelerate` with this process's arguments.

    Raises:
        Refusal: with 1 if a process of the run has said why it ends.
    """
    gc.disable()  # imports leave hardly any cycles, and a fifth of their time goes in the search
    from accelerate.commands.accelerate_cli import main as accelerate
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gc.enable()

    told_in = launched().told_in
    if "--quiet" in sys.argv:  # with it accelerate does not tell how its only process has ended
        sys.argv.remove("--quiet")
    for handler in logging.getLogger("torch.distributed").handlers:
        handler.addFilter(lambda record: not has_refused(told_in))
    try:
        accelerate()
    except subprocess.CalledProcessError as error:
        tell_if_killed(told_in, [error.returncode])
        sys.exit(1)
    except ChildFailedError as error:
        # Of a process that was killed another may say more than it knows: that it does not answer.
        # SIGTERM is how torchrun itself ends those that are left.
        codes = [failure.exitcode for failure in error.failures.values()]
        tell_if_killed(told_in, codes)
        if not has_refused(told_in) or any(code < 0 and code != -signal.SIGTERM for code in codes):
            raise
        sys.exit(1)


def tell_if_killed(told_in: Path | None, codes: list[int]) -> None:
    """Tell launch.py where a process was killed and none said why it ends: the system does so where
    memory runs out."""
    if -signal.SIGKILL in codes and not has_refused(told_in):
        tell_full(told_in, killed=True)


if __name__ == "__main__":
    main()
