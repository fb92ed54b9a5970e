"""SHA-256 of large files, hashed side by side and once: weights of 140 GB take minutes.

What was found is kept for this user in the cache of `datasets`, by path, inode, size and times. As
in git, a file is not believed that was changed within the last moments before it was read: it may
be changed again within the same tick of the clock, and nothing would show it.
"""

import contextlib
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dpo.core.files import write_whole

LARGE = 10_000_000  # bytes; what is smaller is hashed sooner than it is looked up
SETTLED = 2_000_000_000  # ns since the last change; the clock of some file systems ticks in seconds


def kept_in() -> Path:
    import datasets.config  # late: the hash of one file needs no libraries

    return Path(datasets.config.HF_DATASETS_CACHE) / "digests.json"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file as it lies on the disk now, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_all(paths: list[Path], under: Path) -> str:
    """The SHA-256 of files, their names in the folder `under` and what they hold, in hex."""
    digest = hashlib.sha256()
    for path, of_file in zip(paths, digests_of(paths), strict=True):
        digest.update(f"{path.relative_to(under)} {of_file}\n".encode())
    return digest.hexdigest()


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def name_of(about: Any, **how: Any) -> str:
    """A name for what a value of JSON decides: 24 hex digits of its SHA-256."""
    return hashlib.sha256(json.dumps(about, **how).encode()).hexdigest()[:24]


def digests_of(paths: list[Path]) -> list[str]:
    """The SHA-256 of each file, in hex; of large ones that have not changed since, as it is kept.

    A cache that cannot be read or written costs time and nothing else.
    """
    kept: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(kept_in().read_text(encoding="utf-8"))
    states = [_state(path) for path in paths]
    begun = time.time_ns()

    def found(path: Path, state: list[int]) -> str:
        known = kept.get(str(path.resolve()))
        return known[1] if known and known[0] == state else digest_of(path)

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        digests = [*pool.map(found, paths, states)]
    new = {
        str(path.resolve()): [state, digest]
        for path, state, digest in zip(paths, states, digests, strict=True)
        if state[2] >= LARGE and begun - max(state[3:]) > SETTLED and _state(path) == state
    }
    if any(kept.get(key) != value for key, value in new.items()):
        there = {key: value for key, value in kept.items() if Path(key).exists()}
        with contextlib.suppress(OSError):
            kept_in().parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept_in(), json.dumps(there | new, indent=1).encode())
    return digests
