"""Launching a run: on what, as how many processes, and how it is asked to stop.

All is checked that can be without loading anything: names, flags, the number of GPUs, and whether
the run has ended already. Of several GPUs a run gets as many as it has processes, the first of
those that are visible.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from dpo.core.environment import CONFIG, TOLD_IN, finding_us, without_ranks
from dpo.core.refusal import Refusal
from dpo.core.signals import ASKED, EXIT_CODE, LEFT, SIGNALS, has_refused, was_full
from dpo.recipe.arguments import KEEP, RunArguments
from dpo.recipe.flags import overridden
from dpo.recipe.known import parser
from dpo.recipe.parse import FOLDER as RECIPES
from dpo.recipe.parse import choices, look, names
from dpo.runs import keeping
from dpo.runs.output_folder import REPORT, SETTINGS, settings_of, with_split_seed

CONFIGS = Path("accelerate_configs")
ONE_PROCESS = ("cpu", "single_gpu")
SCRIPTS = ("scripts/train.py", "scripts/pairs.py")  # that are launched as several processes
# On a CPU every step frees gigabytes of activations and asks for them again. glibc would return
# them to the system in between, and each page would be faulted in anew; other libraries of C
# ignore this.
KEPT_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000"
}


def gpus_here() -> int:
    """How many GPUs can be seen: none where CUDA has no driver to load, nor ROCm a device."""
    if not Path("/dev/kfd").exists():
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return 0
    import torch  # late: it takes a second, and a wrong name is answered without it

    return torch.cuda.device_count()


def visible_gpus(count: int) -> list[str]:
    """The names of the first `count` GPUs that are visible, as CUDA_VISIBLE_DEVICES has them:
    numbers, or what a scheduler put there, such as the UUID of a part of a GPU."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return named[:count] if named != [""] else [*map(str, range(count))]


def number_of(gpus: str) -> int | None:
    """GPUS= as a number, None where nothing is given.

    Raises:
        Refusal: it is none.
    """
    if gpus and not (gpus.isdecimal() and int(gpus) > 0):
        raise Refusal(f"GPUS={gpus} is not a number of GPUs: give 1 or more")
    return int(gpus) if gpus else None


def threads(processes: int) -> int:
    """CPU threads for each process: the real cores, shared, or as many as this process may use."""
    cores = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):  # a scheduler may have given only some
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(cores // processes, 1)


def choose(config: str, gpus: str) -> tuple[str, int, bool]:
    """Config, number of processes, and whether they run on the CPU.

    Raises:
        Refusal: the machine cannot run what is asked for.
    """
    number = number_of(gpus)
    here = gpus_here()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [name for name in visible.split(",") if name.strip().isdigit()]
    if 0 < here < len(named):  # CUDA leaves out what it does not know, and all that comes after
        words = f"names {len(named)} GPUs, and {here} of them can be seen: name others, or unset it"
        raise Refusal(f"CUDA_VISIBLE_DEVICES={visible} {words}")
    if not here and visible not in ("", "-1"):
        print(f"CUDA_VISIBLE_DEVICES={visible}, and no GPU is there of that name: on the CPU")
    asked = number or max(here, 1)
    if not config:
        config = "cpu" if not here else "single_gpu" if asked == 1 else "zero2"
    if config in ONE_PROCESS and asked > 1 and gpus:
        raise Refusal(f"CONFIG={config} runs one process: for GPUS={gpus} choose zero2 or zero3")
    if here and asked > here and config != "cpu":
        raise Refusal(f"GPUS={gpus}, but this machine has {here}")
    if not here and config in ("single_gpu", "fsdp2"):  # accelerate knows no FSDP on a CPU
        raise Refusal(
            f"CONFIG={config} needs a GPU and none is here: choose cpu, or ddp or one of the zero "
            "configs, which run several CPU processes"
        )
    return config, 1 if config in ONE_PROCESS else asked, not here or config == "cpu"


def across(nodes: str, node_rank: str, main: str) -> tuple[int, list[str]]:
    """Number of machines, and the flags by which `accelerate launch` joins this one to the others.

    Raises:
        Refusal: what is given does not name this machine's place among them.
    """
    if not nodes.isdecimal() or int(nodes) < 1:
        raise Refusal(f"NODES={nodes} is not a number of machines: give 1 or more")
    if int(nodes) == 1:
        if node_rank not in ("", "0"):  # each machine would train alone
            raise Refusal(
                f"NODE_RANK={node_rank}, and NODES is 1: give the number of machines with NODES="
            )
        return 1, []
    if not node_rank.isdigit() or int(node_rank) >= int(nodes):
        raise Refusal(
            f"NODE_RANK={node_rank} is not this machine's number: with NODES={nodes} give 0 on the "
            f"first machine, up to {int(nodes) - 1} on the last"
        )
    host, _, port = main.rpartition(":")
    if not host or not port.isdigit():
        raise Refusal(
            f"MAIN={main} is not host:port: give an address of the first machine that all reach, "
            "and a free port on it, such as 10.0.0.1:29500"
        )
    return int(nodes), [
        *("--machine_rank", node_rank, "--main_process_ip", host, "--main_process_port", port),
        *("--deepspeed_multinode_launcher", "standard"),  # started on each machine, not by pdsh
    ]


def run(
    command: list[str],
    environment: dict[str, str],
    say_full: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Run to the end, and hand on to every process of the run that it is asked to stop.

    All inherit the signals blocked, so that they end none of them before it listens, nor those
    that only start others.

    `say_full` gets what the run found where memory ran out on this machine (signals.was_full).

    Returns the run's exit code, 1 if it has said why it ends, or EXIT_CODE if it was asked and can
    be started again.
    """
    told_in = environment.get(TOLD_IN)  # by slurm.sh, one folder for the launches of all machines
    with contextlib.nullcontext(told_in) if told_in else tempfile.TemporaryDirectory() as folder:
        asked, left = Path(folder, ASKED), Path(folder, LEFT)
        # `accelerate launch` as it was printed, without a trace of its own where a process refuses.
        quieter = [sys.executable, "-m", "dpo.runs.accelerate_launch", *command[1:]]
        run = subprocess.Popen(quieter, env=finding_us(environment | {TOLD_IN: folder}))

        def send(number: int) -> list[psutil.Process]:
            processes = psutil.Process(run.pid).children(recursive=True)
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    ours = any(part in SCRIPTS for part in process.cmdline())
                    if number == signal.SIGKILL or ours:
                        process.send_signal(number)
            return processes

        def hand_on(number: int, frame) -> None:
            if run.poll() is not None:  # and a plan is made, to say what it needed
                raise SystemExit(EXIT_CODE if left.exists() else run.returncode)
            if number == signal.SIGINT and interrupted:
                killed = send(signal.SIGKILL)
                run.kill()
                psutil.wait_procs(killed, timeout=10)  # until what they held is free
                raise SystemExit(128 + number)
            if number == signal.SIGINT:
                interrupted.append(True)
                print("\nThe run saves and ends; Ctrl-C again ends it at once", flush=True)
            asked.touch()  # for processes that are not there yet
            send(signal.SIGUSR1)

        interrupted: list[bool] = []
        for number in SIGNALS:
            signal.signal(number, hand_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = run.wait()
        if code and say_full and (found := was_full(folder)):
            say_full(found)
        if has_refused(folder):  # torchrun has asked the other processes to leave
            return 1
        return EXIT_CODE if left.exists() else code


def tell_if_finished(recipe: str, keys: dict[str, Any], flags: list[str]) -> None:
    """Leave at once if the run of these keys went to its end, and keep of it what is asked for. It
    takes the whole parser to know whether other flags ask for the same run: train.py does."""
    given = parser().parse_known_args(flags)[0].keep if flags else None
    what = given or keys.get("keep", RunArguments.keep)
    folder = Path(keys.get("output_dir", "trainer_output"))  # TRL's default
    settings, other = folder / SETTINGS, overridden(flags, ["--keep="])[:-1]
    if other or what not in KEEP or not (folder / REPORT).is_file() or not settings.is_file():
        return
    stated = {key: value for key, value in keys.items() if key != "keep"}
    if settings_of(folder) == {"recipe": recipe, **with_split_seed(stated)}:
        print(
            f"{recipe} is trained and evaluated: open {folder}/report.html\n"
            f'Again: make train RECIPE={recipe} ARGS="--restart", which moves this run aside'
        )
        print(keeping.keep(folder, what))
        raise SystemExit(0)


def check_there(recipe: str, config: str) -> None:
    """Raises Refusal if there is no recipe of that name, or no launch config."""
    for what, given, folder in (("RECIPE", recipe, RECIPES), ("CONFIG", config, CONFIGS)):
        if given not in names(folder) and (given or what == "RECIPE"):
            more = ["auto"] if what == "CONFIG" else []  # by the plan (plan/auto.py)
            near = choices(Path(given).stem, [*names(folder), *more])
            raise Refusal(f"no {what} {given!r}: {near}; see make list")


def check(recipe: str, config: str, gpus: str, nodes: str, arguments: list[str], **_: Any) -> None:
    """See that names and flags, as `plan` takes them, are right for whichever machines will train.

    Raises:
        Refusal: one is not.
    """
    check_there(recipe, config)
    number_of(gpus)
    across(nodes, "0", "the-first:29500")
    look(["--config", f"{RECIPES}/{recipe}.yaml", *arguments])


def plan(
    recipe: str,
    *,
    config: str = "",
    gpus: str = "",
    nodes: str = "1",
    node_rank: str = "",
    main: str = "",
    arguments: list[str],
) -> tuple[list[str], dict[str, str]]:
    """The command that trains a recipe here, and its environment. All that is given is as on the
    command line of launch.py.

    Raises:
        Refusal: there is no such recipe or config, or no such argument, or the machine cannot run
            what is asked for.
        SystemExit: `--help` was asked for, or the run went to its end and nothing asks for another.
    """
    check_there(recipe, config)
    path, keys, flags = look(["--config", f"{RECIPES}/{recipe}.yaml", *arguments])
    machines, joined = across(nodes, node_rank, main)
    if not (config or gpus or machines > 1):
        tell_if_finished(recipe, keys, flags)  # no need to look what the machine has
    config, processes, on_cpu = choose(config, gpus)
    if machines > 1 and config in ONE_PROCESS:
        raise Refusal(f"CONFIG={config} runs one process: for NODES={machines} choose another")
    if machines * processes == 1:  # whether more can share the batch, train.py knows
        tell_if_finished(recipe, keys, flags)

    script = ["scripts/train.py", "--config", str(path), *flags]
    return accelerated(script, config, processes, on_cpu, machines, joined)


def accelerated(
    script: list[str],
    config: str,
    processes: int,
    on_cpu: bool,
    machines: int = 1,
    joined: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """The command that runs a script of ours, with its arguments, as so many processes on each
    machine, and its environment."""
    command = ["accelerate", "launch", "--config_file", f"{CONFIGS}/{config}.yaml"]
    command += ["--num_processes", str(machines * processes), "--num_machines", str(machines)]
    command += ["--quiet", *joined]
    if machines == 1 and config not in ONE_PROCESS:
        command += ["--main_process_port", "0"]  # a free one: two runs may share the machine
    command += script
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**without_ranks(os.environ), "PATH": programs, CONFIG: config}
    # On GPUs too: an optimizer that is offloaded runs on the CPU, and torchrun would give it one.
    environment.setdefault("OMP_NUM_THREADS", str(threads(processes)))
    if on_cpu:
        environment = KEPT_MEMORY | environment | {"DS_ACCELERATOR": "cpu"}
        if config == "ddp":  # accelerate's launcher of several processes is one for GPUs
            environment["ACCELERATE_USE_CPU"] = "true"
    elif processes < gpus_here():
        # All that it sees it would use: one process would spread a model over several GPUs.
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus(processes))
    return command, environment
