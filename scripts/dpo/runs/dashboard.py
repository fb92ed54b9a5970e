"""Runs, going on or ended, followed from their files into the tables of a local page.

Nothing is asked of a run: what is shown are the files of its folder. So killed runs, old ones and
those copied from another machine are shown too, and no page can disturb a training.
"""

import datetime
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dpo.core import files
from dpo.recipe.arguments import resolved
from dpo.recipe.known import arguments
from dpo.runs import output_folder

PROJECT = "dpo-recipes"
NO_CURVES = {"step", "epoch", "seconds"}
SYSTEM = ("pairs_per_second", "tokens_per_second", "mfu", "peak_memory_gb")
# As trackio takes it: which curves come first. What a run is judged by, then why.
ORDER = (
    *("result/true_reward", "result/win_rate", "result/preference_accuracy", "result/*"),
    *("eval/rewards/*", "eval/drift*", "eval/loss", "train/rewards/*", "train/loss"),
    *("train/grad_norm", "train/learning_rate"),
)
Entry = dict[str, Any]
Headline = Callable[[Entry], dict[str, float]]


class Followed:
    """The runs under a folder, as trackio's tables hold them."""

    def __init__(self, root: Path, tables, headline: Headline):
        """`tables` is trackio's SQLiteStorage; `headline` makes numbers with names of a report.json
        or an evaluation.json."""
        self.root, self.tables, self.headline = root, tables, headline
        self.seen: dict[Path, list[tuple[int, ...]]] = {}
        self.held: dict[Path, list[Entry]] = {}
        tables.init_db(PROJECT)

    def catch_up(self) -> None:
        """Take in what was written since the last time."""
        metrics = self.root.rglob(output_folder.METRICS)
        folders = {path.parent for path in metrics if not aside(path.relative_to(self.root))}
        for folder in sorted(folders | self.held.keys()):
            found = [path.stat() for path in shown(folder) if path.is_file()]
            state = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
            if state != self.seen.get(folder):
                self.take_in(folder)
                self.seen[folder] = state

    def take_in(self, folder: Path) -> None:
        name = str(folder.relative_to(self.root)) if folder != self.root else folder.name
        held, now = self.held.get(folder, []), entries(folder, self.headline)
        if now[: len(held)] != held:  # gone on from a checkpoint, or begun anew
            self.tables.delete_run(PROJECT, name)
            held = []
        at = [*zip(now, times(folder, now), strict=True)][len(held) :]
        self.held[folder] = now
        if logged := [(curves(entry), entry["step"], time) for entry, time in at if curves(entry)]:
            rows, steps, when = map(list, zip(*logged, strict=True))
            given = {"steps": steps, "timestamps": when, "config": config(folder)}
            self.tables.bulk_log(PROJECT, name, rows, **given)
        if rates := [(system(entry), time) for entry, time in at if system(entry)]:
            rows, when = map(list, zip(*rates, strict=True))
            self.tables.bulk_log_system(PROJECT, name, rows, timestamps=when)
        if told := [(entry["alert"], time) for entry, time in at if "alert" in entry]:
            alerts, when = map(list, zip(*told, strict=True))
            parts = [[alert[key] for alert in alerts] for key in ("kind", "says", "step")]
            titles, texts, steps = parts
            levels = ["warn"] * len(alerts)
            self.tables.bulk_alert(PROJECT, name, titles, texts, levels, steps, timestamps=when)


def aside(path: Path) -> bool:
    """Whether a path leads through a folder that --restart has moved aside."""
    return any(output_folder.MOVED_ASIDE.search(part) for part in path.parts)


def shown(folder: Path) -> list[Path]:
    """The files of a run of which something is shown."""
    of = output_folder
    own = [folder / name for name in (of.METRICS, of.COMPLETIONS, of.ALERTS, of.REPORT)]
    return own + sorted(folder.glob("evaluations/*/evaluation.json"))


def entries(folder: Path, headline: Headline) -> list[Entry]:
    """The logged steps of a run, after those of an evaluation what the policy said at it, what the
    monitors told, and last, at the last step, what it and each of its evaluations came to."""
    metrics, completions, alerts, report, *evaluations = shown(folder)
    logged, said = files.read_lines(metrics), files.read_lines(completions)
    tables = [
        {"step": step, "completions": {"_type": "trackio.table", "_value": [*rows]}}
        for step, rows in itertools.groupby(said, lambda row: row["step"])
    ]
    found = read(report)
    told = files.read_lines(alerts) or found.get("alerts", [])
    of = {"result": found} | {f"evaluated {path.parent.name}": read(path) for path in evaluations}
    last = max((entry["step"] for entry in logged), default=0)
    results = [
        {"step": last, "results": {f"{name}/{key}": value for key, value in numbers.items()}}
        for name, report in of.items()
        if (numbers := headline(report) if report else {})
    ]
    told = [{"step": alert["step"], "alert": alert} for alert in told]
    return sorted([*logged, *tables, *told, *results], key=lambda entry: entry["step"])


def read(path: Path) -> Entry:
    """A report; empty where there is none, or none that can be read: the page goes on."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def curves(entry: Entry) -> Entry:
    """An entry under the names that W&B shows: `train/loss`, `eval/loss`."""
    if "completions" in entry:
        return {"completions": entry["completions"]}
    if "alert" in entry or "results" in entry:
        return entry.get("results", {})
    return {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in entry.items()
        if name not in NO_CURVES and value is not None
    }


def system(entry: Entry) -> Entry:
    """What an entry says of the machine."""
    return {name: entry[name] for name in SYSTEM if entry.get(name) is not None}


def times(folder: Path, now: list[Entry]) -> list[str]:
    """When each entry was logged: the file was written to at the last of them."""
    seconds = [*itertools.accumulate((e.get("seconds", 0.0) for e in now), max)]
    path = folder / output_folder.METRICS
    began = path.stat().st_mtime - seconds[-1] if now else 0.0
    at = (datetime.datetime.fromtimestamp(began + s, datetime.UTC) for s in seconds)
    return [time.isoformat() for time in at]


def config(folder: Path) -> Entry:
    """What the run states, and what it leaves at its default of what runs are told apart by. The
    page groups runs by any of it: `recipe`, `beta`."""
    path = folder / output_folder.SETTINGS
    stated = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    defaults = {name: argument.default for name, argument in arguments().items()}
    known = resolved(defaults | stated)
    return {key: value for key, value in known.items() if value is not None} | stated
