"""Many runs of one recipe: which ones, and one after another or side by side on the GPUs."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tqdm import tqdm

from dpo import output
from dpo.asking import EXIT_CODE, SIGNALS
from dpo.recipe import FOLDER, Recipe, parse
from dpo.values import check_values

OURS = ("output_dir", "run_name", "restart", "resume_from_checkpoint", "config")
DONE, FAILED, LEFT, WAITS = "done", "failed", "left", "waits"


@dataclass
class Run:
    """One point of a sweep: what it sets, its recipe with that, and what became of it."""

    point: dict[str, str]
    recipe: Recipe
    folder: Path
    state: str = WAITS
    seconds: float = 0
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    def last_line(self) -> str:
        """What a run that failed said last."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = [line.split("\r")[-1].strip() for line in text.splitlines()]
        return next((line for line in reversed(lines) if line), "it said nothing")


def points(sweep: str) -> list[dict[str, str]]:
    """The grid of `key=value,value key=value`, the last key changing fastest.

    Raises:
        SystemExit: it is not written so.
    """
    grid: dict[str, list[str]] = {}
    for part in sweep.split():
        key, equals, values = part.partition("=")
        if not equals or "" in values.split(","):
            raise SystemExit(f'SWEEP: {part!r} is not key=value,value: SWEEP="beta=0.05,0.1"')
        if key in grid:
            raise SystemExit(f"SWEEP: {key} stands twice: name it once, with all its values")
        if key in OURS:
            raise SystemExit(f"SWEEP: {key} is set by the sweep itself")
        grid[key] = [*dict.fromkeys(map(plain, values.split(",")))]
    if not grid:
        raise SystemExit('nothing to sweep: SWEEP="beta=0.05,0.1,0.5 learning_rate=1e-6,5e-7"')
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def plain(value: str) -> str:
    """A value in one spelling, so that 1e-6 and 0.000001 are one point."""
    with contextlib.suppress(ValueError):
        return f"{float(value):g}"
    return value


def resolved(recipe: str, sweep: str, into: Path, arguments: list[str]) -> list[Run]:
    """The runs of a sweep, each parsed and checked as train.py does it, before any starts.

    Raises:
        SystemExit: a point is no run that can start.
    """
    runs = []
    for point in points(sweep):
        name = ",".join(f"{key}={value}" for key, value in point.items())
        folder = into / re.sub(r"[^\w.=,+-]", "_", name)
        flags = [f"--{key}={value}" for key, value in point.items()]
        flags += [*arguments, f"--output_dir={folder}"]
        parsed = parse(["--config", str(FOLDER / f"{recipe}.yaml"), *flags])
        check_values(parsed)
        runs.append(Run(point, parsed, folder))
    return runs


def finished(run: Run) -> bool:
    """Whether the run has been made, with the same settings."""
    settings = run.folder / output.SETTINGS
    if not output.finished(run.folder) or not settings.is_file():
        return False
    stated = {"recipe": run.recipe.name, **output.settings(run.recipe)}
    return yaml.safe_load(settings.read_text(encoding="utf-8")) == stated


def start(run: Run, config: str, gpus: list[str], arguments: list[str]) -> None:
    """Launch a run on the GPUs of these numbers, none on a CPU."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "scripts/launch.py", "--recipe", run.recipe.name]
    command += ["--config", config] if config else []
    command += ["--gpus", str(len(gpus))] if gpus else []
    command += ["--", *(f"--{key}={value}" for key, value in run.point.items()), *arguments]
    command += [f"--output_dir={run.folder}"]
    environment = dict(os.environ)
    environment.setdefault("WANDB_RUN_GROUP", run.folder.parent.name)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    with run.log.open("w", encoding="utf-8") as log:
        run.process = subprocess.Popen(  # its own group: the terminal's Ctrl-C comes by us
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
    run.seconds = -time.monotonic()


def trains(run: Run) -> bool:
    """Whether a run has scored the reference, so that others find it."""
    return run.process is not None and (
        (run.folder / output.METRICS).exists() or run.process.poll() is not None
    )


@contextlib.contextmanager
def handing_on(runs: list[Run]) -> Iterator[list[int]]:
    """Give the runs that go on the signals that this process gets. Yields those it got."""
    got: list[int] = []

    def hand_on(number: int, frame) -> None:
        got.append(number)
        for run in runs:
            if run.process and run.process.poll() is None:
                run.process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def carry_out(runs: list[Run], config: str, slots: list[list[str]], arguments: list[str]) -> bool:
    """Run them all, one in each slot at a time; what fails does not end the others.

    The first starts alone, until it trains: the others then find the reference scored. Returns
    whether the sweep was asked to leave: then the runs that went on have saved, and the same
    command goes on from there.

    Args:
        slots: the GPUs of each run that goes on at a time; `[[]]` for one on the CPU.
    """
    waiting = deque(run for run in runs if not finished(run))
    for run in runs:
        if run not in waiting:
            run.state = DONE
    free, going = deque(slots), {}
    first = waiting[0] if waiting else None
    bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="Sweep", unit="run")
    with handing_on(runs) as asked, bar:
        while going or (waiting and not asked):
            while waiting and free and not asked and (not going or trains(first)):
                run = waiting.popleft()
                going[run.name] = (run, free.popleft())
                start(run, config, going[run.name][1], arguments)
                bar.write(f"{run.name}: started, {run.log}")
            for run, slot in list(going.values()):
                code = run.process.poll()
                if code is None:
                    continue
                del going[run.name]
                free.append(slot)
                run.seconds += time.monotonic()
                run.state = DONE if code == 0 else LEFT if code == EXIT_CODE else FAILED
                why = f": {run.last_line()}" if run.state == FAILED else ""
                bar.write(f"{run.name}: {run.state} after {run.seconds:.0f} s{why}")
                bar.update()
            time.sleep(0.3)
    return bool(asked)
