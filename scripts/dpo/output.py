"""A run's output folder: whose it is, how far it got, files written whole."""

from __future__ import annotations

import datetime
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from dpo.recipe import Recipe

SETTINGS = "recipe.yaml"
REPORT = "report.json"
TRAINED = "trainer_state.json"  # beside the policy: training went to its end
QUARANTINE = "quarantine.jsonl"
DATA_PAGE = "data.html"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: a reader finds the old file or the new one, never half."""
    data = content.encode() if isinstance(content, str) else content
    beside = {"dir": path.parent, "prefix": f".{path.name}-", "delete": False}
    with tempfile.NamedTemporaryFile(**beside) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    follow_umask(Path(file.name))
    os.replace(file.name, path)


def follow_umask(path: Path) -> None:
    """Give a file the mode it would have had from open(): temporary files and safetensors are
    readable by their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def finished(folder: Path) -> bool:
    """Whether the run in `folder` went to its end: the report is what a run writes last."""
    return (folder / REPORT).is_file()


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The keys that two runs state differently, for a message: `beta (0.1, now 0.05)`."""
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return ", ".join(f"{key} ({before.get(key)}, now {now.get(key)})" for key in keys)


def settings(recipe: Recipe) -> dict[str, Any]:
    """What the run's folder remembers of the recipe: everything stated, but how to restart."""
    return {key: value for key, value in recipe.chosen.items() if key != "restart"}


def claim(recipe: Recipe) -> Path:
    """Make the output folder this recipe's own, and write the resolved recipe into it.

    With `restart`, an earlier run that is there is moved aside first.

    Raises:
        SystemExit: the folder cannot be written, or holds the run of another recipe, a run with
            other settings, or files of no run.
    """
    folder = Path(recipe.training.output_dir)
    if recipe.run.restart and (folder / SETTINGS).is_file():
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        aside = folder.with_name(f"{folder.name}.{stamp}")
        folder.rename(aside)
        print(f"Moved the earlier run aside: {aside}")
    ours = {"recipe": recipe.name, **settings(recipe)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS).is_file():
            theirs = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
            # A run that failed before it made anything worth keeping may be set right.
            if theirs != ours and (finished(folder) or [*folder.glob("**/*.safetensors")]):
                raise SystemExit(
                    f"{folder} holds a run with other settings: {differences(theirs, ours)}. "
                    "Give another --output_dir, or --restart to move that run aside"
                )
        elif {path.name for path in folder.iterdir()} - {QUARANTINE, DATA_PAGE}:
            raise SystemExit(
                f"{folder} holds files that are no run of this repository: give another "
                "--output_dir, or move them"
            )
        if not finished(folder):
            text = yaml.safe_dump(ours, sort_keys=False, allow_unicode=True)
            write_whole(folder / SETTINGS, text)
    except OSError as error:
        raise SystemExit(f"cannot write the output folder {folder}: {error.strerror}") from error
    return folder
