"""`accelerate launch`, but for the trace of the launch where a process has said why it ends.

torchrun's report stays for a process that could not say anything: killed, or out of memory.
"""

import gc
import logging
import signal
import sys

from dpo.core.environment import launched
from dpo.core.signals import has_refused


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
    for handler in logging.getLogger("torch.distributed").handlers:
        handler.addFilter(lambda record: not has_refused(told_in))
    try:
        accelerate()
    except ChildFailedError as error:
        # Of a process that was killed another may say more than it knows: that it does not answer.
        # SIGTERM is how torchrun itself ends those that are left.
        codes = [failure.exitcode for failure in error.failures.values()]
        if not has_refused(told_in) or any(code < 0 and code != -signal.SIGTERM for code in codes):
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()
