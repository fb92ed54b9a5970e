"""make plan, in this process: what one test has had counted is there for the next."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import plan
from dpo.core.terminal import guarded


def told(*words: str) -> subprocess.CompletedProcess:
    """What plan.py says, and its exit code; not of a CPU, on which a plan goes by what its process
    has imported."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    given = patch.object(sys, "argv", ["plan.py", *words])
    with given, patch.dict(os.environ), redirect_stdout(out), redirect_stderr(err):
        try:
            guarded(plan.answer)()
            plan.main()
        except SystemExit as stop:
            code = stop.code
    said = f"{code}\n" if isinstance(code, str) else ""
    result = (int(bool(code)), out.getvalue(), err.getvalue() + said)
    return subprocess.CompletedProcess(words, *result)
