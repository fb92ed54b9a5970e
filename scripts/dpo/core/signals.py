"""What launch.py and the run's processes share: how a run is asked to leave, and says that it has.

Nothing heavy is imported: the launcher answers at once.
"""

import os
import platform
import signal
from pathlib import Path

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start me again
# Names a folder of launch.py's, in which a file says that the run is asked to leave, and another
# that it has: accelerate and torchrun, which lie between, start late and pass on no exit code.
TOLD_IN, ASKED, LEFT = "DPO_TOLD_IN", "asked", "left"
REFUSED = "refused"  # and one a machine, that a process of it has said why it ends
CONFIG = "DPO_CONFIG"  # names the launch config that launch.py took


def _refused(folder: str) -> Path:
    return Path(folder, f"{REFUSED}-{platform.node()}")


def has_refused(folder: str | None = None) -> bool:
    """Whether a process of the launch in this folder, or of this process's own, has said why it
    ends; on this machine, as each has a log of its own."""
    folder = folder or os.environ.get(TOLD_IN)
    return folder is not None and _refused(folder).exists()


def first_to_end() -> bool:
    """Whether this process is the first of its launch, on this machine, to say why it ends. The
    others end for the same reason, or for its end."""
    if TOLD_IN not in os.environ:
        return True
    try:
        _refused(os.environ[TOLD_IN]).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # the launcher has gone, and its folder
        return True
    return True
