"""The machine of a run: its name, its software, and how much of its memory was used."""

import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from dpo.core.secrets import mask

PACKAGES = ("torch", "trl", "transformers", "datasets", "peft", "accelerate", "deepspeed")
PACKAGES += ("vaderSentiment",)  # the true reward


def versions(*more: str) -> dict[str, str]:
    """Of the packages that decide what is computed and measured, and of more, as far as they are
    installed."""
    found = {}
    for name in (*PACKAGES, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def now() -> str:
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"


def commit() -> str | None:
    """The commit of this repository that runs, and whether files differ from it; None where it is
    no git checkout."""

    try:
        return _git("rev-parse", "--short=12", "HEAD").strip() + ", changed" * bool(
            _git("status", "--porcelain", "--untracked-files=no")
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def changes() -> str:
    """How the files of this repository differ from the commit, with secrets masked; empty where
    they do not, or it is no git checkout."""
    try:
        return mask(_git("diff", "HEAD"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*words: str) -> str:
    how: Any = {"capture_output": True, "text": True, "errors": "replace", "check": True}
    return subprocess.run(["git", *words], cwd=Path(__file__).parents[3], **how).stdout


def cpu_name() -> str:
    """The processor's own name where Linux tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.machine()


def measuring_device() -> str:
    """The one device that models are measured on: `cuda`, or `cpu`, on which accelerate, and with
    it a recipe for GPUs, then is."""
    if torch.cuda.is_available():
        return "cuda"
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return "cpu"


def device_name() -> str:
    state = PartialState()
    if state.device.type == "cuda":
        return f"{state.num_processes} × {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"CPU ({cpu_name()}), {state.num_processes} × {threads} threads"


def give_back() -> None:
    """Return to the system the memory that glibc keeps of what was freed, which is all of it
    (launch.KEPT_MEMORY); other libraries of C have no such function, and keep less."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_gb() -> float:
    """The most memory that this process held: of the GPU if it has one, else of the machine."""
    if torch.cuda.is_available() and PartialState().device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 1e9
    kilobyte = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 1e9
