"""Runs that are killed, or fail, again and again: each goes on by itself, and ends as an
undisturbed one.

A fault befalls a run at one of its file operations, which an audit hook counts, or some
milliseconds after one: so that kills fall into writing, renaming and deleting checkpoints, into
the cache, and between them into the steps. The processes come from a fork server that has imported
train.py: what takes seconds is then done once.
"""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dpo.core.signals import EXIT_CODE
from dpo.runs import checkpoints, metrics, output_folder
from support.commands import TIMES, once, run_flags, running
from support.launched import FORKS, be_train, fork, free_port
from support.place import ROOT

FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}
BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def befall(fault: str) -> None:
    """What happens to a process."""
    if fault == "full disk":  # for files of more than 0.5 MB: the optimizer's, not the weights'
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    else:
        os.kill(os.getpid(), signal.Signals[fault])


def run_in_fork(flags, folder: Path, log: Path, environment, fault, counted) -> None:
    """Run train.py as a process of its own.

    Args:
        fault: what befalls it, at the file operation of which number or the first on which path,
            how many seconds later; None for nothing.
        counted: is given the number of file operations.
    """
    befallen = False

    def hook(event: str, args: tuple) -> None:
        nonlocal befallen
        if event in FILE_OPERATIONS and str(args[0]).startswith(str(folder.parent)):
            counted.value += 1
            now = (counted.value, str(args[0]).removeprefix(f"{folder}/"))
            if fault and fault[1] in now and not befallen:
                befallen = True
                if fault[2]:
                    threading.Timer(fault[2], befall, fault[:1]).start()
                else:
                    befall(fault[0])

    sys.addaudithook(hook)
    be_train(environment, "", flags, log, log)


def drawn(processes: int) -> random.Random:
    """Other faults every time. SEED=, as it is printed, draws the same again."""
    seed = os.environ.get("SEED", time.time_ns())
    print(f"\nfaults drawn with SEED={seed}")
    return random.Random(f"{seed} {processes}")


class Runs:
    """Runs of one recipe by a number of processes, in a folder each."""

    def __init__(self, model: Path, data: Path, home: Path, processes: int, *more: str):
        self.home, self.processes, self.survived = home, processes, 0
        self.flags = [
            *run_flags(model, data, home / "run"),
            *("--report_to=none", "--disable_tqdm=true", "--max_steps=9", "--logging_steps=2"),
            *("--eval_steps=3", "--save_steps=1", "--save_total_limit=2", "--reward_prompts=1"),
            *more,
        ]

    def start(self, name: str, fault: tuple | None = None, rank: int = 0) -> list:
        """Start a run, one of whose processes will have a fault."""
        folder = self.home / name / "run"
        folder.parent.mkdir(exist_ok=True)
        flags = [flag.replace(f"{self.home}/", f"{self.home}/{name}/") for flag in self.flags]
        flags = [*flags, f"--output_dir={folder}", f"--reference_cache={self.home / name}/cache"]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
        if self.processes > 1:
            environment |= {"WORLD_SIZE": str(self.processes), "MASTER_ADDR": "127.0.0.1"}
            environment |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
            environment |= {"TORCHELASTIC_RUN_ID": "none"}  # as if torchrun had started them
        started = []
        for this in range(self.processes):
            own = {"RANK": str(this), "LOCAL_RANK": str(this)} if self.processes > 1 else {}
            counted = FORKS.Value("i", 0)
            process = fork(
                *(run_in_fork, flags, folder, self.home / name / f"log-{this}"),
                *(environment | own, fault if rank == this else None, counted),
            )
            process.counted = counted
            started.append(process)
        return started

    def end(self, processes: list) -> set[int]:
        """Wait for a run, and return how its processes ended. When one has failed, the others do by
        themselves, or as torchrun would have them."""
        deadline, failed = time.monotonic() + 300, set()
        while any(process.is_alive() for process in processes):
            assert time.monotonic() < deadline, "the run hangs"
            codes = {process.exitcode for process in processes}
            if codes - {None, 0, EXIT_CODE} and not failed:
                failed = codes
                for process in processes:
                    process.kill()
            time.sleep(0.01)
        return failed or {process.exitcode for process in processes}

    def outcome(self, name: str) -> tuple[bytes, list, list, dict]:
        """Weights, everything that was logged, what the policy said, and what evaluation found."""
        folder = self.home / name / "run"
        report = json.loads((folder / "report.json").read_text())
        logged = [
            {key: value for key, value in entry.items() if key not in TIMES}
            for entry in metrics.read(folder)
        ]
        found = {key: report[key] for key in ("judge", "answers", "pairs", "curves")}
        weights = (folder / "model.safetensors").read_bytes()
        return weights, logged, metrics.completions(folder), found

    def finish_undisturbed(self) -> None:
        """Keeps what a run without a fault ends with, and how many file operations it takes."""
        processes = self.start("undisturbed")
        assert self.end(processes) == {0}
        self.expected = self.outcome("undisturbed")
        self.operations = [process.counted.value for process in processes]


@pytest.fixture(scope="module")
def runs_of(tiny_model, tiny_data, tmp_path_factory):
    """Runs of one process, and of two."""
    known = {}

    def runs_of(processes: int, *more: str) -> Runs:
        which = (processes, *more)
        if which not in known:
            home = tmp_path_factory.mktemp(f"{processes}-processes")
            known[which] = Runs(tiny_model, tiny_data, home, processes, *more)
            known[which].finish_undisturbed()
        return known[which]

    return runs_of


MOVES = ("--sync_ref_model", "--ref_model_sync_steps=2")
KILLS = (50, 30, 10) if os.environ.get("FULL") else (15, 9, 6)


@pytest.mark.parametrize(
    ("processes", "more", "kills"), [*zip((1, 2, 1), ((), (), MOVES), KILLS, strict=True)]
)
def test_killed_runs_end_as_undisturbed_ones(processes, more, kills, runs_of):
    runs = runs_of(processes, *more)
    draw, survived, number = drawn(processes), 0, 0
    while survived < kills:
        name, number, ended = f"run{number}", number + 1, None
        while ended != {0}:
            rank = draw.randrange(processes)
            at = draw.randint(1, runs.operations[rank] // 2)
            fault = ("SIGKILL", at, draw.choice([0, draw.random() / 10]))
            ended = runs.end(runs.start(name, fault, rank))
            assert ended == {0} or -signal.SIGKILL in ended, ended
            survived += ended != {0}
        assert runs.outcome(name) == runs.expected, name
    print(f"faults survived {survived} of {survived}: {number} runs of {processes} process(es)")


def test_a_sharded_run_is_killed_with_all_that_started_it(
    launched, tiny_model, tiny_data, tmp_path
):
    """Two processes under ZeRO-2, their launchers, and a random moment after a checkpoint."""

    def flags(folder: Path) -> list[str]:
        flags = ("--report_to=none", "--eval_strategy=no", "--max_steps=9", "--save_steps=1")
        return [*run_flags(tiny_model, tiny_data, folder), *flags, "--save_total_limit=2"]

    whole, folder, draw = tmp_path / "whole", tmp_path / "run", drawn(2)
    assert launched(*flags(whole), config="zero2", processes=2).returncode == 0
    command = ("--accelerate_config", "zero2", "--gpus", "2", "--", *flags(folder))
    for step in (2, 4, 6):
        with running(folder, f"checkpoint-{step}", *command):
            time.sleep(draw.random() / 2)
    goes_on = "Continuing from"
    if (folder / output_folder.TRAINED).exists():
        done = output_folder.finished(folder)
        goes_on = "Trained and evaluated already" if done else "Trained already"
    last = launched(*flags(folder), config="zero2", processes=2)
    assert last.returncode == 0, last.stderr[-3000:]
    # The last kill may have come when no step was left, or nothing at all.
    assert goes_on in last.stdout
    weights = [path / "model.safetensors" for path in (whole, folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    print("faults survived 3 of 3: 1 run of 2 processes under ZeRO-2")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("asked", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_one_process_that_is_asked_to_leave_takes_all_along(asked, rank, runs_of):
    runs, name = runs_of(2), f"{asked}-{rank}"
    fault = (asked, f"{checkpoints.BESIDE}/checkpoint-4", 0)
    assert runs.end(runs.start(name, fault, rank)) == {EXIT_CODE}
    log = (runs.home / name / "log-0").read_text()
    assert "Asked to stop at step 5 of 9: saved in" in log
    assert checkpoints.newest(runs.home / name / "run").name == "checkpoint-5"
    assert runs.end(runs.start(name)) == {0}
    assert runs.outcome(name) == runs.expected


def test_a_full_disk_costs_no_more_than_a_step(runs_of):
    runs = runs_of(1)
    for at in (runs.operations[0] // 4, runs.operations[0] // 2):
        assert runs.end(runs.start("full", ("full disk", at, 0))) == {1}
        last = (runs.home / "full/log-0").read_text().strip().splitlines()[-1]
        assert re.search(r"checkpoint-\d cannot be written: .* GB are free there", last), last
        assert checkpoints.newest(runs.home / "full/run")
    assert runs.end(runs.start("full")) == {0}
    assert runs.outcome("full") == runs.expected


def long_run(model: Path, data: Path, folder: Path) -> list[str]:
    flags = ("--report_to=none", "--max_steps=1000", "--eval_strategy=no", "--save_total_limit=2")
    return [*run_flags(model, data, folder), *flags]


def test_ctrl_c_saves_and_a_second_one_ends_at_once(tiny_model, tiny_data, tmp_path):
    """Sent to all processes of the terminal, as it does."""
    folder = tmp_path / "run"
    command = ["--accelerate_config", "cpu", "--", *long_run(tiny_model, tiny_data, folder)]
    with running(folder, "checkpoint-2", *command) as launched:
        os.killpg(launched.pid, signal.SIGINT)
        assert launched.wait(60) == EXIT_CODE
    log = (tmp_path / "log").read_text()
    assert "The run saves and ends; Ctrl-C again ends it at once" in log
    (step,) = re.findall(r"Asked to stop at step (\d+) of 1000", log)
    assert checkpoints.newest(folder).name == f"checkpoint-{step}"

    with running(folder, f"checkpoint-{int(step) // 2 * 2 + 2}", *command) as launched:
        workers = launched.children(recursive=True)
        for worker in workers:
            worker.suspend()  # so that none has saved before the second one
        os.killpg(launched.pid, signal.SIGINT)
        time.sleep(1)
        os.killpg(launched.pid, signal.SIGINT)
        assert launched.wait(20) == 130
        for worker in workers:
            assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert f"Continuing from {folder}/checkpoint-{step}" in (tmp_path / "log").read_text()
    assert checkpoints.newest(folder)


def holds_back(process: psutil.Process) -> bool:
    """Whether SIGTERM does not end a process any more: it is blocked, or caught."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)", status, flags=re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def trains(process: psutil.Process) -> bool:
    """Whether it has started a process that is to train."""
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "scripts/train.py" in child.cmdline()[:3]:
                return True
    return False


@pytest.mark.parametrize("when", [holds_back, trains])
def test_a_run_that_is_asked_before_it_trains_ends_at_once(when, tiny_model, tiny_data, tmp_path):
    """As soon as its launcher hears, and as soon as its process is there."""
    command = [
        sys.executable,
        *("scripts/launch.py", "--accelerate_config", "cpu", "--"),
        *once(long_run(tiny_model, tiny_data, tmp_path / "r")),
    ]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PATH": BIN}) as launched:
        deadline = time.monotonic() + 120
        try:
            while not when(psutil.Process(launched.pid)):
                assert launched.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            launched.send_signal(signal.SIGTERM)
            assert launched.wait(90) == EXIT_CODE
        finally:  # or it would train a thousand steps beside the other tests
            launched.kill()
    assert not checkpoints.newest(tmp_path / "r")


def test_one_folder_takes_one_run_at_a_time(launched, tiny_model, tiny_data, tmp_path):
    folder = tmp_path / "run"
    flags = long_run(tiny_model, tiny_data, folder)
    with running(folder, "checkpoint-2", "--accelerate_config", "cpu", "--", *flags):
        for more in ([], ["--restart"]):
            second = launched(*flags, *more)
            assert second.returncode == 1
            last = second.stderr.splitlines()[-1]
            assert f"{folder} belongs to a run that is going on (process " in last
