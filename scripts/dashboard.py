"""Runs in a page of this machine, live and without an account: `make dashboard` runs this.

    make dashboard              # all runs under outputs/
    make dashboard PORT=8000

The page is trackio's. It is fed from the files that every run writes, so that it shows runs that
go on, were killed, have ended or were copied here, and is kept nowhere: a temporary folder holds
its tables as long as it is open. Only this machine reaches it.
"""

import contextlib
import io
import os
import signal
import tempfile
import time
from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.core.terminal import guarded, parser_of
from dpo.reports.results import headline, upgraded
from dpo.runs.dashboard import ORDER, PROJECT, Followed

EVERY = 2  # seconds between two looks at the files


def serve(port: int | None):
    """Start the page, on this machine alone. Returns its server and its address.

    Raises:
        Refusal: the port is taken.
    """
    import trackio  # it reads the environment as it is imported

    how = {"open_browser": False, "block_thread": False, "share": False, "host": "127.0.0.1"}
    said = io.StringIO()  # among it a token that lets one delete runs
    try:
        with contextlib.redirect_stdout(said):
            server, url, *_ = trackio.show(PROJECT, server_port=port, **how)
    except OSError as error:
        raise Refusal(f"port {port} is taken: give another with PORT=") from error
    return server, f"{url.rstrip('/')}/?project={PROJECT}&smoothing=0"


def results(found: dict) -> dict[str, float]:
    """What a report or an evaluation came to, each number once: intervals stand in the reports."""
    numbers = headline(upgraded(found))
    return {k: v for k, v in numbers.items() if not k.endswith(("_low", "_high"))}


@guarded
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", default="outputs", type=Path, help="a folder of runs (outputs)")
    parser.add_argument("--port", help="the first that is free from 7860 on")
    args = parser.parse_args()
    if args.port and not (args.port.isdecimal() and 0 < int(args.port) < 2**16):
        raise Refusal(f"PORT={args.port}: give a number from 1 to 65535")
    if not args.runs.is_dir():
        raise Refusal(f"RUNS={args.runs}: no folder of runs is there: make train makes one")
    for asked in (signal.SIGINT, signal.SIGTERM):  # also where a shell has it ignore Ctrl-C
        signal.signal(asked, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="dashboard-") as kept:
        os.environ |= {"TRACKIO_DIR": kept, "HF_HUB_OFFLINE": "1"}
        os.environ["TRACKIO_PLOT_ORDER"] = ",".join(ORDER)
        from trackio.sqlite_storage import SQLiteStorage

        runs = Followed(args.runs, SQLiteStorage, results)
        runs.catch_up()
        server, url = serve(int(args.port) if args.port else None)
        print(f"{len(runs.held)} runs of {args.runs}: {url} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(EVERY)
                with contextlib.suppress(FileNotFoundError):  # a run was just moved aside
                    runs.catch_up()
        server.close()
    print("Closed; the runs are as they were")


if __name__ == "__main__":
    main()
