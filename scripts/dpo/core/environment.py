"""The environment of a process, read here and handed down: how it was launched.

Launchers say by variables which of several processes one is, and how they are sharded. Left over in
an environment, they have it wait for others that nobody starts, or train in another way than it
says. What a library reads by itself, such as W&B's variables and CUDA's, is read and set in the
one module that uses that library.

Nothing heavy is imported: the launcher answers at once.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo.core.refusal import Refusal

LAUNCHER = "TORCHELASTIC_RUN_ID"  # torchrun sets it, which `accelerate launch` starts several with
RANKS = re.compile(
    "((LOCAL|GROUP|ROLE|CROSS|NODE)_)?(RANK|WORLD_SIZE)|CROSS_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)"
    "|TORCHELASTIC_.*|(OMPI|MV2)_COMM_WORLD_.*|PMI_.*|PMIX_.*|MPI_LOCAL(RANKID|NRANKS)"
    "|(ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_(?!USE_CPU$).*"
)
# Between our own processes: the launch config that launch.py took; a folder of its, in which it and
# the run tell each other by files (signals.py); what the run needs by its plan, as JSON; and that
# errors show their traceback.
CONFIG, TOLD_IN, PLAN, DEBUG = "DPO_CONFIG", "DPO_TOLD_IN", "DPO_PLAN", "DPO_DEBUG"


@dataclass(frozen=True)
class Launch:
    """How this process was launched."""

    processes: int | None = None  # how many there are; None where no launcher says
    rank: int = 0  # this one's number among them
    local_rank: int = 0  # and among those of this machine
    machine: str = "?"  # the number of this one among them, for messages
    deepspeed: bool = False  # accelerate was asked to shard with it
    fsdp: bool = False  # the same of FSDP
    on_cpu: bool = False  # GPUs are not to be used, if there are any
    no_gpu: bool = False  # launch.py found none; DeepSpeed and gloo go by it
    config: str | None = None  # the name of the launch config
    told_in: Path | None = None  # the folder in which the launcher and the run tell each other
    plan: str | None = None  # what the run needs by its plan, as JSON (plan/measured/)
    errors: Path | None = None  # where torchrun looks for the error of this process
    debug: bool = False  # an error that no check foresaw shows its traceback


def launched() -> Launch:
    """How this process was launched, as its environment says now."""
    said = os.environ

    def asked(name: str) -> bool:
        return said.get(name, "").lower() == "true"

    def place(name: str) -> Path | None:
        return Path(said[name]) if said.get(name) else None

    return Launch(
        processes=int(said["WORLD_SIZE"]) if "WORLD_SIZE" in said else None,
        rank=int(said.get("RANK", "0")),
        local_rank=int(said.get("LOCAL_RANK", "0")),
        machine=said.get("GROUP_RANK", "?"),
        deepspeed=asked("ACCELERATE_USE_DEEPSPEED"),
        fsdp=asked("ACCELERATE_USE_FSDP"),
        on_cpu=asked("ACCELERATE_USE_CPU"),
        no_gpu=said.get("DS_ACCELERATOR") == "cpu",
        config=said.get(CONFIG),
        told_in=place(TOLD_IN),
        plan=said.get(PLAN),
        errors=place("TORCHELASTIC_ERROR_FILE"),
        debug=bool(said.get(DEBUG)),
    )


def finding_us(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python finds this package, beside all that it found before."""
    found = (str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH"))
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, found))}


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what says which of several processes one is."""
    return {name: value for name, value in environment.items() if not RANKS.fullmatch(name)}


def forget_ranks() -> None:
    """Take them out of this process's environment: it is alone, whatever they say."""
    for name in {*os.environ} - {*without_ranks(os.environ)}:
        del os.environ[name]


def check_ranks() -> None:
    """Refuse to be one of several processes that nobody started.

    Raises:
        Refusal: the environment says so, and no torchrun is there.
    """
    found = {name: value for name, value in os.environ.items() if RANKS.fullmatch(name)}
    stated = sorted(f"{name}={value}" for name, value in found.items() if name.endswith("SIZE"))
    if LAUNCHER not in found and any(not each.endswith("=1") for each in stated):
        raise Refusal(
            f"{', '.join(stated)} in the environment, and no launcher has started this process: it "
            "would wait for others for ever. Start with make train or scripts/launch.py, which set "
            f"these themselves, or unset {' '.join(sorted(found))}"
        )
