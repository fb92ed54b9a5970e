"""Many runs of one recipe: which ones, and one after another or side by side on the GPUs."""

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
from typing import Any

from tqdm import tqdm

from dpo.core.environment import Launch
from dpo.core.refusal import Refusal, last_line
from dpo.core.signals import EXIT_CODE, SIGNALS
from dpo.core.terminal import visible
from dpo.recipe.arguments import decides
from dpo.recipe.flags import overridden
from dpo.recipe.known import arguments, choices
from dpo.recipe.parse import FOLDER, Recipe, parse
from dpo.runs import keeping, output_folder

BAR = re.compile(r"[^\r\n]*?\d+%\|[^|\r\n]*\|[^\[\r\n]*\[[^\]\r\n]*\]")  # of tqdm; redrawn at exit
DONE, FAILED, LEFT, WAITS = "done", "failed", "left", "waits"


@dataclass
class Run:
    """One point of a sweep: what it sets, its recipe with that, and what became of it.

    `values` holds what its flags are parsed as.
    """

    point: dict[str, str]
    values: dict[str, Any]
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
        return last_line_of(self.log)


def last_line_of(log: Path) -> str:
    """What was written last to a log, bars left out."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return last_line(BAR.sub("", text))


def points(sweep: str) -> list[dict[str, str]]:
    """The grid of `key=value,value key=value`, the last key changing fastest.

    Raises:
        Refusal: it is not written so.
    """
    grid: dict[str, list[str]] = {}
    for part in sweep.split():
        key, equals, values = part.partition("=")
        if not equals or "" in values.split(","):
            raise Refusal(f'SWEEP: {part!r} is not key=value,value: SWEEP="beta=0.05,0.1"')
        if key in grid:
            raise Refusal(f"SWEEP: {key} stands twice: name it once, with all its values")
        if len({*values.split(",")}) < len(values.split(",")):
            raise Refusal(f"SWEEP: {part}: a value stands twice: name each once")
        if key == "config" or not decides(key):
            raise Refusal(
                f"SWEEP: {key} does not change what is learned: what all runs share goes in ARGS"
            )
        if key not in arguments():
            raise Refusal(f"SWEEP: unknown argument {key!r}: {choices(key, [*arguments()])}")
        grid[key] = values.split(",")
    if not grid:
        raise Refusal('nothing to sweep: SWEEP="beta=0.05,0.1,0.5 learning_rate=1e-6,5e-7"')
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def not_sent(recipe: Recipe) -> list[str]:
    """The flag of runs that are one of several, or made again: each would go to the hub in the
    place of the model that its recipe publishes."""
    return ["--push_to_hub=false"] * recipe.training.push_to_hub


def plain(value: Any) -> str:
    """A value in one spelling, so that 1e-6 and 0.000001 are one point, in one folder."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def resolved(
    recipe: str, sweep: str, into: Path, arguments: list[str], launch: Launch | None = None
) -> list[Run]:
    """The runs of a sweep, each parsed and checked as train.py does it, before any starts.

    Raises:
        Refusal: a point is no run that can start.
    """
    from dpo.recipe.validate import check_values  # late: a misspelt point is answered at once

    runs: dict[Path, Run] = {}
    config = ["--config", str(FOLDER / f"{recipe}.yaml")]
    for point in points(sweep):
        flags = overridden(arguments, [f"--{key}={value}" for key, value in point.items()])
        try:
            parsed = parse([*config, *flags], launch)
            stated = parsed.defaults | parsed.stated
            values = {key: stated[key] for key in point}
            name = ",".join(f"{key}={plain(value)}" for key, value in values.items())
            folder = into / re.sub(r"[^\w.=,+-]", "_", name)
            own = [f"--output_dir={folder}", *not_sent(parsed)]
            parsed = parse([*config, *overridden(flags, own)], launch)
            check_values(parsed)
        except Refusal as stop:
            said = str(stop.code).removeprefix("ARGS: ")
            if not any(key in said for key in point):
                raise
            raise Refusal(f"SWEEP: {said}") from stop
        runs.setdefault(folder, Run(point, values, parsed, folder))
    return [*runs.values()]


def begun(run: Run) -> bool:
    """Whether what lies in the run's folder is this run, with the same settings."""
    if not (run.folder / output_folder.SETTINGS).is_file():
        return False
    stated = {"recipe": run.recipe.name, **output_folder.settings(run.recipe)}
    return output_folder.settings_of(run.folder) == stated


def finished(run: Run) -> bool:
    """Whether the run has been made, with the same settings, and is not asked for again."""
    made = output_folder.finished(run.folder) and begun(run)
    return made and not run.recipe.run.restart


def start(run: Run, how: list[str], gpus: str | None, arguments: list[str]) -> None:
    """Launch a run on these GPUs, as CUDA_VISIBLE_DEVICES names them; None for those there are."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "scripts/launch.py", "--recipe", run.recipe.name, *how, "--"]
    own = [f"--{key}={value}" for key, value in run.point.items()]
    if "push_to_hub" in run.recipe.flags and not run.recipe.training.push_to_hub:
        own += ["--push_to_hub=false"]
    command += overridden(arguments, [*own, f"--output_dir={run.folder}"])
    environment = dict(os.environ)
    environment.setdefault("WANDB_RUN_GROUP", run.folder.parent.name)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    # The launcher inherits the signals blocked, so that none ends it before it listens.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    run.process = started(command, run.log, environment)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    run.seconds = -time.monotonic()


def started(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """A process whose output is added to a log, in a group of its own, so that the terminal's
    Ctrl-C comes by us, and once."""
    with log.open("a", encoding="utf-8") as file:
        given: Any = {"stdout": file, "stderr": subprocess.STDOUT, "process_group": 0}
        return subprocess.Popen(command, env=environment, **given)


@contextlib.contextmanager
def heard() -> Iterator[deque[int]]:
    """The signals that ask this process to leave, as they come. They no longer end it."""
    came: deque[int] = deque()
    with contextlib.ExitStack() as stack:
        for each in SIGNALS:
            before = signal.signal(each, lambda number, _: came.append(number))
            stack.callback(signal.signal, each, before)
        yield came


def carry_out(
    runs: list[Run], how: list[str], places: list[str | None], arguments: list[str]
) -> bool:
    """Run them all, one in each place at a time; what fails does not end the others.

    Until one trains, it is alone: the others then find the reference scored. Returns whether the
    sweep was asked to stop: then the runs that went on have saved, and the same command goes on
    from there.

    Args:
        how: flags for launch.py.
        places: the GPUs of each run that goes on at a time; `[None]` for one at a time.
        arguments: flags for train.py, the same for all.

    Raises:
        Refusal: another process is at one of them, as of a sweep that was killed.
    """
    for run in runs:
        if output_folder.going_on(run.folder):
            raise Refusal(f"{run.folder}: another process trains it: wait for its end, or stop it")
    waiting = deque(run for run in runs if not finished(run))
    free, going, asked = deque(places), {}, False
    bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="Sweep", unit="run")
    with heard() as came, bar:
        for run in runs:
            if run not in waiting:
                run.state = DONE
                kept = keeping.keep(run.folder, run.recipe.run.keep)
                bar.write(f"{run.name}: trained and evaluated already. {kept}")
        while going or (waiting and not asked):
            while came:
                asked, number = True, came.popleft()
                for run, _ in going.values():
                    run.process.send_signal(number)
            alone = not any(
                (run.folder / output_folder.METRICS).exists() for run, _ in going.values()
            )
            while waiting and free and not asked and not (going and alone):
                run = waiting.popleft()
                going[run.name] = (run, free.popleft())
                start(run, how, going[run.name][1], arguments)
                bar.write(f"{run.name}: started, {run.log}")
            for run, place in list(going.values()):
                code = run.process.poll()
                if code is None:
                    continue
                del going[run.name]
                free.append(place)
                run.seconds += time.monotonic()
                run.state = DONE if code == 0 else LEFT if code == EXIT_CODE else FAILED
                why = f": {visible(run.last_line())}" if run.state == FAILED else ""
                bar.write(f"{run.name}: {run.state} after {run.seconds:.0f} s{why}")
                bar.update()
            time.sleep(0.3)
    return asked
