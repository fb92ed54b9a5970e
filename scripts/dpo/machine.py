"""The machine of a run: its name, and how much of its memory was used."""

from __future__ import annotations

import platform
import re
import resource
import sys
from pathlib import Path

import torch
from accelerate import PartialState


def cpu_name() -> str:
    """The processor's own name where Linux tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.machine()


def device_name() -> str:
    state = PartialState()
    if state.device.type == "cuda":
        return f"{state.num_processes} × {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"CPU ({cpu_name()}), {state.num_processes} × {threads} threads"


def peak_memory_gb() -> float:
    """The most memory that this process held: of the GPU if it has one, else of the machine."""
    if torch.cuda.is_available() and PartialState().device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 1e9
    kilobyte = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 1e9
