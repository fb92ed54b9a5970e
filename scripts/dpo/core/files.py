"""Files written whole or not at all, and JSON lines that a kill may have cut."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dpo.core.refusal import Refusal
from dpo.core.secrets import mask, masked

TORCH_CANNOT_WRITE = "PytorchStreamWriter|inline_container"  # its zip writer raises RuntimeError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: a reader finds the old file or the new one, never half.
    Secrets in text are masked."""
    data = mask(content).encode() if isinstance(content, str) else content
    beside = {"dir": path.parent, "prefix": f".{path.name}-", "delete": False}
    with tempfile.NamedTemporaryFile(**beside) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    follow_umask(Path(file.name))
    os.replace(file.name, path)


@contextmanager
def written_whole(path: Path) -> Iterator[Any]:
    """A text file to write line by line, which bears its name only once all of it is there."""
    beside = {"dir": path.parent, "prefix": f".{path.name}-", "delete": False}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", **beside) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    follow_umask(Path(file.name))
    os.replace(file.name, path)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of a value as JSON, secrets in its texts masked."""
    text = json.dumps(masked(value), indent=1, ensure_ascii=False)
    write_whole(path, text.encode())


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """`write_json`, one object a line; what JSON does not know, such as a time, is text."""
    how = {"ensure_ascii": False, "default": lambda value: mask(str(value))}
    lines = (json.dumps(masked(each), **how) for each in entries)
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none without the file. A line that a kill in the
    middle of a write has cut off is left out."""
    entries = []
    # Not splitlines(), to which U+2028 in an answer ends a line as well.
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        with suppress(json.JSONDecodeError):  # of an empty line too, the last
            entries.append(json.loads(line))
    return entries


def follow_umask(path: Path) -> None:
    """Give a file the mode it would have had from open(): temporary files and safetensors are
    readable by their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def written_to(
    path: Path, then: str = ", and the same command goes on from the last whole checkpoint"
) -> Iterator[None]:
    """Let a disk that is full, gone or read-only end the run with one line.

    Args:
        then: what follows once there is room.

    Raises:
        Refusal: what is written within cannot be: why, and how much room there is.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(TORCH_CANNOT_WRITE, str(error)):
            raise
        # What torch says is about its file format.
        why = "not all of it fits" if isinstance(error, RuntimeError) else str(error).strip()
        near = next(each for each in path.absolute().parents if each.exists())
        free = shutil.disk_usage(near).free / 1e9
        raise Refusal(
            f"{path} cannot be written: {why} ({free:.1f} GB are free there). Make room{then}"
        ) from error


def at_home(value: Any) -> Any:
    """A value with the home folder in the place of `~/`, however deep it stands: a shell does so
    at the beginning of a word alone, and nobody does in a file, so that a run would be written to
    a folder of the name `~`."""
    if isinstance(value, dict):
        return {key: at_home(part) for key, part in value.items()}
    if isinstance(value, list):
        return [at_home(part) for part in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(^|[=,])~(?=/)", lambda before: before[1] + os.path.expanduser("~"), value)
