"""What launch.py and the run's processes share: how a run is asked to stop, and says that it has.

Nothing heavy is imported: the launcher answers at once.
"""

import json
import platform
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start me again
# Files in a folder of launch.py's: that the run is asked to stop, that it has, and, one a machine,
# that a process of it has said why it ends, and that memory ran out. accelerate and torchrun, which
# lie between, start late and pass on no exit code.
ASKED, LEFT, REFUSED, FULL = "asked", "left", "refused", "full"


def _refused(told_in: Path | str) -> Path:
    return Path(told_in, f"{REFUSED}-{platform.node()}")


def has_refused(told_in: Path | str | None) -> bool:
    """Whether a process of the launch has said why it ends; on this machine, as each has a log of
    its own. `told_in` is the launch's folder, if it has one."""
    return told_in is not None and _refused(told_in).exists()


def _full(told_in: Path | str) -> Path:
    return Path(told_in, f"{FULL}-{platform.node()}")


def tell_full(told_in: Path | str | None, **found: Any) -> None:
    """Say to the launcher that memory ran out, with what was found then."""
    if told_in is not None:
        with suppress(OSError):  # the launcher has gone, and its folder
            _full(told_in).write_text(json.dumps(found))


def was_full(told_in: Path | str) -> dict[str, Any] | None:
    """What was found when memory ran out on this machine; None where it did not."""
    with suppress(OSError, ValueError):
        return json.loads(_full(told_in).read_text())
    return None


def first_to_end(told_in: Path | None) -> bool:
    """Whether this process is the first of its launch, on this machine, to say why it ends. The
    others end for the same reason, or for its end."""
    if told_in is None:
        return True
    try:
        _refused(told_in).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # the launcher has gone, and its folder
        return True
    return True
