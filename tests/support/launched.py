"""Runs as the launcher starts them, in forks of a server that has imported what they need: what
takes seconds is done once.

The launcher itself is asked once for each config what it tells its processes: their environment.
Tests of the launcher, and of what ends it, use commands.launch.
"""

import functools
import json
import multiprocessing
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from unittest.mock import patch

import torch
from filelock import FileLock

from support.commands import launch, make, once, run
from support.place import ROOT

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["support.preloaded"])
LIMIT = 600  # seconds: DeepSpeed may compile its optimizer
FSDP = "tests/support/fsdp_on_cpu"
# At the start of each process that is launched: it leaves its environment behind, and ends.
TOLD = """
import json, os, sys
if "scripts/train.py" in sys.orig_argv[1:3]:
    with open(f"{os.environ['TOLD']}/{os.environ.get('RANK', 0)}", "w") as file:
        json.dump(dict(os.environ), file)
    os._exit(0)
"""
# Of a launcher that has ended; without the last, the first process opens the store for all.
GONE = {"TOLD", "DPO_TOLD_IN", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_USE_AGENT_STORE"}
GONE |= {"PYTHONPATH"}


def fork(target: Callable, *arguments: object) -> multiprocessing.Process:
    """A process that does this at once, all imported."""
    # Python 3.11's fork server looks for what it imports beforehand here alone.
    with patch.dict(os.environ, PYTHONPATH=f"{ROOT}/scripts{os.pathsep}{ROOT}/tests"):
        ensure_running()
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    return process


def end(started: list[multiprocessing.Process]) -> int:
    """Wait for the processes of a run, and return the exit code of the first that fails, or 0.

    Where one fails, or all take too long, the others are killed.
    """
    failed = 0
    while going := [process for process in started if process.exitcode is None]:
        failed = failed or next(filter(None, (process.exitcode for process in started)), 0)
        if failed or not wait([process.sentinel for process in going], LIMIT):
            for process in going:
                process.kill()
                process.join()
    return failed or next(filter(None, (process.exitcode for process in started)), 0)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def be(
    script: str, arguments: list[str], environment: dict[str, str], *out: Path, first=""
) -> None:
    """In a fork: be a script in this environment, until it ends.

    Args:
        out: the files that what it prints is added to, and its errors.
        first: Python to run before, as a sitecustomize.py would.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for path, descriptor in zip(out, (1, 2), strict=True):
        with path.open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = [f"scripts/{script}.py", *arguments]
    torch.set_num_threads(1)
    exec(first, {})
    runpy.run_path(sys.argv[0], run_name="__main__")


def be_train(
    environment: dict[str, str],
    first: str,
    flags: list[str],
    *out: Path,
    recipe: str = "smollm2-sentiment",
) -> None:
    """In a fork: be train.py, told this by its launcher."""
    if environment.get("ACCELERATE_USE_FSDP"):
        first = f"import runpy; runpy.run_path('{FSDP}/sitecustomize.py')\n{first}"
    named = ["--config", f"recipes/{recipe}.yaml"]
    be("train", [*named, *once(flags)], environment, *out, first=first)


class Forked:
    """A run in a fork, as much like a Popen as runs of a sweep need."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]):
        at = command.index("--")
        named, flags = command[command.index("--recipe") + 1], command[at + 1 :]
        told = (environment, "", flags, log, log)
        self.process = fork(functools.partial(be_train, recipe=named), *told)

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


def fork_runs(told: dict[str, str]) -> None:
    """In a fork that is a script: the runs that it starts are forks too, which their launcher would
    have told this."""
    from dpo.runs import sweeps  # late: it is there

    popen = sweeps.started

    def started(command: list[str], log: Path, environment: dict[str, str]):
        if "scripts/launch.py" not in command:
            return popen(command, log, environment)
        return Forked(command, log, environment | told)

    sweeps.started = started


def forked(
    script: str, *arguments: str, first: str = "", **changes: str | None
) -> subprocess.CompletedProcess:
    """Run a script in a fork, this Python before, or instead if it ends the process; `changes` are
    environment variables, None takes one away."""
    environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
    with tempfile.TemporaryDirectory() as folder:
        out = [Path(folder, name) for name in ("output", "errors")]
        target = functools.partial(be, first=first)
        code = end([fork(target, script, [*arguments], environment, *out)])
        said = [path.read_text(errors="replace") for path in out]
    return subprocess.CompletedProcess(arguments, code, *said)


def made(*arguments: str, first: str = "", **changes: str | None) -> subprocess.CompletedProcess:
    """The script that make would run, in a fork, with the arguments that make would give it."""
    ready = ("--old-file", f"{sys.prefix}/ready")
    planned = make("--dry-run", *ready, *arguments, **changes).stdout.replace("\\\n", " ")
    (command,) = re.findall(r"^\S*/python (scripts/.*)$", planned, flags=re.MULTILINE)
    script, *given = shlex.split(command)
    return forked(Path(script).stem, *given, first=first, **changes, CUDA_VISIBLE_DEVICES="")


def launch_fsdp(processes: int, *flags: str, PYTHONPATH: str = FSDP, **changes: str):
    """launch.py refuses fsdp2 without a GPU, as accelerate cannot do what a test can."""
    shape = ("--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0")
    return run(
        *("accelerate", "launch", "--config_file", "accelerate_configs/fsdp2.yaml", *shape),
        *("--quiet", "scripts/train.py", "--config", "recipes/smollm2-sentiment.yaml", *flags),
        PYTHONPATH=PYTHONPATH,
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
        **changes,
    )


class Launched:
    """Starts runs; `kept` is a folder that all workers of pytest share."""

    def __init__(self, kept: Path):
        self.kept = kept

    def told(self, config: str, processes: int) -> list[dict[str, str]]:
        """What the launcher adds to the environment of each process of a config."""
        folder = self.kept / f"{config}-{processes}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / str(processes - 1)).exists():
                (folder / "sitecustomize.py").write_text(TOLD)
                changes = {"TOLD": str(folder), "PYTHONPATH": str(folder)}
                if config == "fsdp2":
                    result = launch_fsdp(processes, **changes)
                else:
                    result = launch(
                        "--accelerate_config", config, "--gpus", str(processes), **changes
                    )
                assert result.returncode == 0, result.stderr[-3000:]
                for rank in range(processes):
                    told = json.loads((folder / str(rank)).read_text())
                    new = {k: v for k, v in told.items() if os.environ.get(k) != v}
                    new = {k: v for k, v in new.items() if k not in GONE}
                    (folder / str(rank)).write_text(json.dumps(new))
        return [json.loads((folder / str(rank)).read_text()) for rank in range(processes)]

    def made(self, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess:
        """`made`, and the runs that the script starts are forks too, on the CPU."""
        (told,) = self.told("cpu", 1)
        first = f"from support.launched import fork_runs; fork_runs({told!r})"
        return made(*arguments, first=first, **changes)

    def __call__(
        self,
        *flags: str,
        config: str = "cpu",
        processes: int = 1,
        first: str = "",
        **changes: str | None,
    ) -> subprocess.CompletedProcess:
        """Train, and wait for the end; `changes` are environment variables, None takes one away.

        Its exit code is that of the first process that fails.
        """
        together = {"MASTER_PORT": str(free_port())} if processes > 1 else {}
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            started = []
            for told in self.told(config, processes):
                told = os.environ | told | together | changes
                told = {name: value for name, value in told.items() if value is not None}
                started.append(fork(be_train, told, first, flags, output, errors))
            failed = end(started)
            said = [path.read_text(errors="replace") for path in (output, errors)]
        return subprocess.CompletedProcess(flags, failed, *said)
