"""Variables by which launchers tell a process which of several it is. Left over in an environment,
they have it wait for others that nobody starts, or train in another way than it says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from dpo.core.refusal import Refusal

LAUNCHER = "TORCHELASTIC_RUN_ID"  # torchrun sets it, which `accelerate launch` starts several with
NAMES = re.compile(
    "((LOCAL|GROUP|ROLE|CROSS|NODE)_)?(RANK|WORLD_SIZE)|CROSS_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)"
    "|TORCHELASTIC_.*|(OMPI|MV2)_COMM_WORLD_.*|PMI_.*|PMIX_.*|MPI_LOCAL(RANKID|NRANKS)"
    "|(ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_(?!USE_CPU$).*"
)


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without them."""
    return {name: value for name, value in environment.items() if not NAMES.fullmatch(name)}


def forget() -> None:
    """Take them out of this process's environment: it is alone, whatever they say."""
    for name in {*os.environ} - {*without(os.environ)}:
        del os.environ[name]


def check() -> None:
    """Refuse to be one of several processes that nobody started.

    Raises:
        Refusal: the environment says so, and no torchrun is there.
    """
    found = {name: value for name, value in os.environ.items() if NAMES.fullmatch(name)}
    stated = sorted(f"{name}={value}" for name, value in found.items() if name.endswith("SIZE"))
    if LAUNCHER not in found and any(not each.endswith("=1") for each in stated):
        raise Refusal(
            f"{', '.join(stated)} in the environment, and no launcher has started this process: it "
            "would wait for others for ever. Start with make train or scripts/launch.py, which set "
            f"these themselves, or unset {' '.join(sorted(found))}"
        )
