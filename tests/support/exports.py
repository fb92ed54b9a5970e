"""Exports as make export writes them."""

import json
from pathlib import Path

from support.launched import made

ADDED = "<|added|>"  # a token of the run's own model


def exported(run, *given: str) -> tuple[Path, dict, str]:
    result = made("export", f"RUN={run}", *given)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = Path(result.stdout.split("Written: ")[1].split()[0])
    return folder, json.loads((folder / "export.json").read_text()), result.stdout


def left(run: Path) -> list[str]:
    return [path.name for path in run.glob("exports/*")]
