"""What models are trained on: how much memory a GPU has and how fast it multiplies; or a CPU."""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from dpo.core.refusal import Refusal

CPU = "cpu"
ON_CPU = ("cpu", "ddp")  # configs that a CPU is planned for: of what shards there is no plan


@dataclasses.dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        memory: bytes that PyTorch can reach, its CUDA context included.
        flops: FLOPs a second of dense matrix products in half precision; None where not known.
        half: the dtype of these: `bfloat16`, or `float16` on cards that compute nothing else fast.
    """

    name: str
    memory: float
    flops: float | None = None
    half: str = "bfloat16"

    @property
    def on_cpu(self) -> bool:
        """Whether it is no GPU: the machine's processor, of which memory is that of a process."""
        return self.name == CPU


# GiB as PyTorch's out-of-memory errors call them the "total capacity", the lowest seen: a little
# less than nvidia-smi's (an H100 has 81,559 MiB = 79.65 GiB there), more than the vendor's GB.
# TFLOPs a second of bfloat16 that are added up in float32, without sparsity: data sheets of NVIDIA
# give the double, "with sparsity"; those of GeForce and RTX cards are of the white papers of Ampere
# (GA102), Ada and Blackwell, and the MI300X's of AMD's data sheet.
CARDS = {
    name: Card(name, gib * 2**30, tflops * 1e12)
    for name, gib, tflops in (
        ("B200", 178.35, 2250),  # HGX B200: 36 PFLOPs of eight with sparsity
        ("H200", 139.72, 989),
        ("H200-NVL", 139.72, 835),
        ("GH200-96GB", 94.5, 989),
        ("H100-80GB", 79.14, 989),  # SXM
        ("H100-PCIe", 79.14, 756),
        ("H100-NVL", 93.0, 835),
        ("A100-80GB", 79.14, 312),
        ("A100-40GB", 39.38, 312),
        ("L40S", 44.39, 362),
        ("L40", 44.39, 181.05),
        ("A40", 44.34, 149.7),
        ("L4", 22.03, 121),
        ("A30", 23.5, 165),
        ("A10", 22.05, 125),
        ("A10G", 22.05, 70),
        ("RTX-PRO-6000", 94.96, 503.8),
        ("RTX-6000-Ada", 47.4, 364.2),
        ("RTX-A6000", 47.4, 154.8),
        ("RTX-5090", 31.36, 209.5),
        ("RTX-4090", 23.52, 165.2),
        ("RTX-4080", 15.61, 97.5),  # GiB of an RTX A4000, of which nvidia-smi tells as many MiB
        ("RTX-3090-Ti", 23.52, 80),  # GiB of an RTX 4090, likewise
        ("RTX-3090", 23.56, 71),
        ("MI300X", 191.69, 1307),
    )
}
CARDS |= {  # before Ampere: no bfloat16 on tensor cores
    "V100-32GB": Card("V100-32GB", 31.73 * 2**30, 125e12, "float16"),
    "V100-16GB": Card("V100-16GB", 15.77 * 2**30, 125e12, "float16"),
    "T4": Card("T4", 14.56 * 2**30, 65e12, "float16"),
}
LARGE = 60e9  # bytes: cards above it are built into servers
# In a driver's name: a slower or larger relative of the card without it, or a part of the card.
OTHERS = {"ti", "super", "d", "laptop", "max", "mig"}


def words(name: str) -> frozenset[str]:
    found = frozenset(re.split(r"[^a-z0-9]+", name.lower())) - {""}
    if {"gh200", "480gb"} <= found:  # its driver calls it by the memory of its processor
        found = found - {"480gb"} | {"96gb"}
    return found


def named(name: str) -> list[str]:
    """The cards that a name may mean: a driver's, or enough of ours to tell (4090, h100 pcie)."""
    given = words(name)
    if exact := [card for card in CARDS if words(card) == given]:
        return exact
    shortened = [card for card in CARDS if given and given <= words(card)]
    if shortened := [card for card in shortened if not OTHERS & (words(card) - given)]:
        return shortened
    found = [card for card in CARDS if words(card) <= given and not OTHERS & (given - words(card))]
    most = max((len(words(card)) for card in found), default=0)
    return [card for card in found if len(words(card)) == most]


def number(name: str, given: str, what: str, example: str, most: float = math.inf) -> float:
    """A figure that is asked for, as `name`=`given`.

    Args:
        what: it is, in words.
        most: that it may be.

    Raises:
        Refusal: it is no number, not above 0, not finite, or too large.
    """
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf or found > most:
        above = "above 0" if most == math.inf else f"above 0 and at most {most:g}"
        raise Refusal(f"{name}={given} is no {what}: give a number {above}, as {name}={example}")
    return found


def card(GPU: str = "", MEMORY: str = "") -> Card:
    """The card that is asked for.

    Args:
        GPU: one of CARDS, a driver's name, or enough of one to tell; or cpu, no card but a
            machine, this one if MEMORY names no other.
        MEMORY: GB (1e9 bytes) that it has; without GPU, a card of which no speed is known.

    Raises:
        Refusal: no such card is known, or several are; MEMORY is no number of GB.
    """
    found = None
    if GPU.lower() == CPU:
        found = Card(CPU, memory_here())
        MEMORY = MEMORY or f"{found.memory / 1e9:f}"
    elif GPU:
        near = named(GPU)
        if len(near) != 1:
            which = f"one of: {', '.join(near or CARDS)}"
            what = "may be several cards" if near else "is not known"
            raise Refusal(f"GPU={GPU} {what}: {which} (or MEMORY=80, its GB, without GPU=)")
        found = CARDS[near[0]]
    if not MEMORY:
        if found is None:
            raise Refusal("no card is named: give GPU=H100-80GB, or MEMORY=80, its GB")
        return found
    memory = gigabytes("MEMORY", MEMORY)
    return dataclasses.replace(found or Card(f"{MEMORY} GB", memory), memory=memory)


def gigabytes(name: str, given: str) -> float:
    """Bytes of so many GB (1e9 bytes).

    Raises:
        Refusal: it is no number above 0.
    """
    return number(name, given, "number of GB", "80") * 1e9


def machine_of(card: Card, gpus: int) -> float:
    """Bytes of memory that a machine with so many of a card is taken to have, if nobody says more:
    as servers of eight A100 or H100 do with 2 TB, and else as a workstation."""
    whole = CARDS.get(card.name, card)  # of which MEMORY= may leave a part
    return 256e9 * gpus if whole.memory > LARGE else 128e9


def memory_here() -> float:
    """Bytes of this machine's memory, or as many of it as the control groups leave that this
    process is in: a container's, or a job's of SLURM."""
    return min([float(psutil.virtual_memory().total), *limits()])


def limits(root: Path = Path("/")) -> Iterator[float]:
    """Bytes that each group of this process may have, from its own to the outermost that is seen,
    in either version of control groups; none where there is no limit."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups = ("", "unified"), "memory.max"
            if controllers:
                groups = ("memory",) * ("memory" in controllers.split(",")), "memory.limit_in_bytes"
            own = PurePosixPath("x" + path)  # within a container it may be the machine's, unseen
            for folder, part in itertools.product(groups[0], (own, *own.parents)):
                file = Path(root, "sys/fs/cgroup", folder, *part.parts[1:], groups[1])
                with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
                    yield float(file.read_text())


def here() -> Card | None:
    """The first GPU of this machine, with its own memory; None where there is none.

    Asks the driver, and so makes a CUDA context (0.5 GB) in this process until it ends.
    """
    import torch  # seconds: a plan for another machine need not wait

    if not torch.cuda.is_available():
        return None
    return of_driver(
        torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
    )


def of_driver(name: str, memory: float) -> Card:
    """The card that a driver calls so, with the memory that it tells."""
    near = named(name)
    found = CARDS[near[0]] if len(near) == 1 else Card(name, memory)
    return dataclasses.replace(found, memory=memory)
