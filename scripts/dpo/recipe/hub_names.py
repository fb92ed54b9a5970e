"""Names of the hub: whether one is meant, and whether the hub knows it."""

import re
from pathlib import Path
from typing import Any

from dpo.core.refusal import Refusal, first_line

ABROAD = re.compile(r"^[A-Za-z]:|://|\\")  # a drive, a server, folders as Windows has them
HUB_TIMEOUT = 10  # seconds: load_dataset's own retries would be silent for minutes


def looks_local(name: str, endings: tuple[str, ...] = ()) -> bool:
    """Whether a name can only mean a file, by its ending, or a folder: hub names are `name` or
    `owner/name`."""
    begins = name.startswith((".", "/", "~", "models/", "outputs/", "recipes/"))
    ends = name.endswith(endings) or " " in name
    return begins or ends or name.count("/") > 1 or bool(ABROAD.search(name))


def why_not(error: BaseException) -> str:
    """Why the hub gives something not, in words: what a socket says is for no user."""
    said = first_line(error)
    return "it is not to be reached from here" if "Errno" in said else said


def check_reachable(name: str, repo_type: str) -> list[str] | None:
    """Ask the hub for `name` once, unless it is a folder here or the hub is switched off.

    Returns the names of its files, if the hub was asked.

    Raises:
        Refusal: no answer within HUB_TIMEOUT, or the hub knows no such repository.
    """
    from huggingface_hub import HfApi, constants  # late: what a name looks like is told without

    if Path(name).is_dir() or constants.HF_HUB_OFFLINE:
        return None
    try:
        found: Any = HfApi().repo_info(name, repo_type=repo_type, timeout=HUB_TIMEOUT)
        return [file.rfilename for file in found.siblings or ()]
    # Whatever goes wrong in this one call (no network, no such name, no access), the run cannot
    # load it, and the reader needs the same two facts.
    except Exception as error:
        raise Refusal(
            f"cannot get the {repo_type} {name!r} from {constants.ENDPOINT}: {why_not(error)}. "
            "If it should be there, use what an earlier run has cached with HF_HUB_OFFLINE=1, a "
            "mirror with HF_ENDPOINT, or local folders with --model_name_or_path and --dataset_name"
        ) from error
