"""What launch.py and the run's processes share: how a run is asked to leave, and says that it has.

Nothing heavy is imported: the launcher answers at once.
"""

import signal

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start me again
# Names a folder of launch.py's, in which a file says that the run is asked to leave, and another
# that it has: accelerate and torchrun, which lie between, start late and pass on no exit code.
TOLD_IN, ASKED, LEFT = "DPO_TOLD_IN", "asked", "left"
CONFIG = "DPO_CONFIG"  # names the launch config that launch.py took
