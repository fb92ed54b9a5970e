"""Commands as a user gives them, each in a process of its own."""

import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

from dpo.recipe.flags import name_of
from dpo.runs import checkpoints
from support.place import ROOT

# In metrics.jsonl, what the clock says; all else is the same in every run of a recipe on the same
# machine.
TIMES = {"seconds", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
TIMES |= {"train_runtime", "train_tokens_per_second"}
TIMES |= {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_gb"}  # of training


def run_flags(model: Path, data: Path, folder: Path) -> list[str]:
    return [
        *(f"--model_name_or_path={model}", f"--dataset_name={data}", f"--output_dir={folder}"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=2", "--max_steps=4"),
        *("--logging_steps=1", "--eval_steps=2", "--save_steps=2", "--save_total_limit=9"),
        *("--reward_prompts=4", "--learning_rate=0.001"),
        f"--reference_cache={folder.parent / 'cache'}",
    ]


def once(arguments: list[str]) -> list[str]:
    """Arguments of which each flag stands once, as it is given last: those of a test win over those
    that all tests share."""
    groups: dict[str, list[str]] = {}
    name = ""
    for argument in map(str, arguments):
        if argument.startswith("--"):
            name = name_of(argument) or "--"
            groups.pop(name, None)
        groups.setdefault(name, []).append(argument)
    return [argument for group in groups.values() for argument in group]


def run(*command: str, **changes: str | None) -> subprocess.CompletedProcess:
    """Run a command from the top of the repository, this Python's programs first on the path.

    `changes` are environment variables; None takes one away.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **changes}
    return subprocess.run(
        once(command),
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=600,
    )


HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "matplotlib", "wandb"}


def at_once(script: str, *arguments: str, cwd: Path = ROOT) -> tuple[str, int]:
    """Run a script that answers before it imports anything heavy.

    Returns what it says and its exit code.
    """
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines(keepends=True)
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    assert "argparse" in imported and not imported & HEAVY
    said = [line for line in lines if not line.startswith("import time:")]
    return done.stdout + "".join(said), done.returncode


def launch(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess:
    return run(sys.executable, "scripts/launch.py", *arguments, **changes)


def make(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess:
    given = [argument.partition("ARGS=") for argument in arguments]
    given = [f"ARGS={shlex.join(once(shlex.split(v)))}" if key else word for word, key, v in given]
    return run("make", f"VENV={sys.prefix}", *given, CUDA_VISIBLE_DEVICES="", **changes)


@contextmanager
def running(folder: Path, checkpoint: str, *arguments: str, **changes: str):
    """A run that has just written a checkpoint, or a later one where this process was slow to see
    it; its output goes to `folder`/../log."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder.parent / "log").open("w") as log:
        process = psutil.Popen(
            [sys.executable, "scripts/launch.py", *once(arguments)],
            cwd=ROOT,
            env={**os.environ, "PATH": path, **changes},
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        deadline, step = time.monotonic() + 300, checkpoints.step_of(Path(checkpoint))
        while not (whole := checkpoints.last_whole(folder)) or checkpoints.step_of(whole) < step:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        yield process
    finally:
        if process.is_running():
            for child in (*process.children(recursive=True), process):
                child.kill()
