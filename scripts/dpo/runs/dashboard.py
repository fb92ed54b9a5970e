"""Runs, going on or ended, followed from their files into the tables of a local page.

Nothing is asked of a run: what is shown is metrics.jsonl and completions.jsonl. So killed runs, old
ones and those copied from another machine are shown too, and no page can disturb a training.
"""

import datetime
import itertools
from pathlib import Path
from typing import Any

import yaml

from dpo.core import files
from dpo.runs import output_folder

PROJECT = "dpo-recipes"
NO_CURVES = {"step", "epoch", "seconds"}
Entry = dict[str, Any]


class Followed:
    """The runs under a folder, as trackio's tables hold them."""

    def __init__(self, root: Path, tables):
        """`tables` is trackio's SQLiteStorage."""
        self.root, self.tables = root, tables
        self.seen: dict[Path, list[tuple[int, ...]]] = {}
        self.held: dict[Path, list[Entry]] = {}
        tables.init_db(PROJECT)

    def catch_up(self) -> None:
        """Take in what was written since the last time."""
        folders = {path.parent for path in self.root.rglob(output_folder.METRICS)}
        for folder in sorted(folders | self.held.keys()):
            paths = [folder / name for name in (output_folder.METRICS, output_folder.COMPLETIONS)]
            found = [path.stat() for path in paths if path.is_file()]
            state = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
            if state != self.seen.get(folder):
                self.take_in(folder)
                self.seen[folder] = state

    def take_in(self, folder: Path) -> None:
        name = str(folder.relative_to(self.root)) if folder != self.root else folder.name
        held, now = self.held.get(folder, []), entries(folder)
        if now[: len(held)] != held:  # gone on from a checkpoint, or begun anew
            self.tables.delete_run(PROJECT, name)
            held = []
        if new := now[len(held) :]:
            self.tables.bulk_log(
                PROJECT,
                name,
                [curves(entry) for entry in new],
                steps=[entry["step"] for entry in new],
                timestamps=times(folder, now)[len(held) :],
                config=config(folder),
            )
        self.held[folder] = now


def entries(folder: Path) -> list[Entry]:
    """The logged steps of a run, and after those of an evaluation what the policy said at it."""
    logged = files.read_lines(folder / output_folder.METRICS)
    said = files.read_lines(folder / output_folder.COMPLETIONS)
    tables = [
        {"step": step, "completions": {"_type": "trackio.table", "_value": [*rows]}}
        for step, rows in itertools.groupby(said, lambda row: row["step"])
    ]
    return sorted([*logged, *tables], key=lambda entry: entry["step"])


def curves(entry: Entry) -> Entry:
    """An entry under the names that W&B shows: `train/loss`, `eval/loss`."""
    if "completions" in entry:
        return {"completions": entry["completions"]}
    return {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in entry.items()
        if name not in NO_CURVES and value is not None
    }


def times(folder: Path, now: list[Entry]) -> list[str]:
    """When each entry was logged: the file was written to at the last of them."""
    seconds = [*itertools.accumulate((e.get("seconds", 0.0) for e in now), max)]
    path = folder / output_folder.METRICS
    began = path.stat().st_mtime - seconds[-1] if now else 0.0
    at = (datetime.datetime.fromtimestamp(began + s, datetime.UTC) for s in seconds)
    return [time.isoformat() for time in at]


def config(folder: Path) -> Entry:
    """What the run states. The page groups runs by any of it: `recipe`, `beta`."""
    path = folder / output_folder.SETTINGS
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
