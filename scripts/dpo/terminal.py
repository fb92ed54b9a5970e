"""What leaves a program by its terminal: no secret, and no text that steers the terminal."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from dpo import secrets

# Control characters but tab and newline, and those that turn the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text of data, models and file names as text: an escape sequence shows as `\\x1b[31m`."""
    return STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def mask_output() -> None:
    """Mask secrets in all that this process writes to stdout and stderr.

    The streams themselves are changed: a logger or progress bar may hold one already. W&B does the
    same when it is imported, and keeps what goes through; ours comes first if it is put on later.
    """
    for stream in (sys.stdout, sys.stderr):
        write = stream.write
        if not hasattr(write, "masks"):

            def masked(text: str, write: Callable[[str], int] = write) -> int:
                write(secrets.mask(text))
                return len(text)

            masked.masks = True
            stream.write = masked


def guarded(main: Callable[[], None]) -> Callable[[], None]:
    """An entry point of which no secret leaves by arguments, output, error or error file.

    The line of a SystemExit shows what data and file names say as text.
    """

    @functools.wraps(main)
    def run() -> None:
        mask_output()
        try:
            sys.argv[1:] = secrets.take_out(sys.argv[1:])
            main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                stop.code = visible(secrets.mask(stop.code)).replace("\n", r"\n")
            raise
        except Exception:
            # torchrun shows what torch's `record` has written there, in another process.
            errors = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
            if os.path.isfile(errors):
                Path(errors).write_text(secrets.mask(Path(errors).read_text()))
            raise

    return run
