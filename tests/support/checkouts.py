"""A published suite's checkout, broken."""

from collections.abc import Callable
from pathlib import Path


def change_file(path: Path, change: Callable[[str], str | bytes] | None) -> None:
    """Write what `change` makes of a file's text; without it the file goes."""
    if change is None:
        path.unlink()
        return
    made = change(path.read_text())
    path.write_bytes(made if isinstance(made, bytes) else made.encode())
