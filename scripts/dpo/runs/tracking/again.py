"""What a W&B run lacks of what its output folder holds, told again: after a kill, an outage, or a
part of the run that was offline."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from dpo.runs import metrics, output_folder
from dpo.runs.tracking import names, server

LOSSES = ("train/loss", "eval/loss")
STEP = "train/global_step"


def named(logs: dict[str, Any]) -> dict[str, Any]:
    """Logs under the names that W&B has them by."""
    from transformers.integrations.integration_utils import rewrite_logs

    return rewrite_logs(logs)


class Told:
    """What W&B's server holds of a run: all up to an optimizer step, by the summary that it gives
    back when the run goes on. Of that step itself, the curves whose last loss it knows."""

    def __init__(self, summary: dict[str, Any]):
        self.summary, self.step = summary, summary.get(STEP, -1)

    def holds(self, step: int, logs: dict[str, Any]) -> bool:
        """Whether what was logged at this step is there already."""
        if step != self.step:
            return step < self.step
        said = named(logs)
        return any(key in said and said[key] == self.summary.get(key) for key in LOSSES)


def log_completions(wandb: Any, rows: list[dict[str, Any]]) -> None:
    """Log what the policy has said at all evaluations so far as one table: what is logged last
    under a name is what its page shows."""
    columns = metrics.COLUMNS
    table = wandb.Table(columns, [[row[name] for name in columns] for row in rows])
    wandb.log({"completions": table, STEP: rows[-1]["step"]})


def tell(wandb: Any, folder: Path, until: float = math.inf) -> Told:
    """Tell the W&B run that is open what it lacks of the steps that the run in `folder` has logged,
    up to and with the step `until`. Returns what the server held before."""
    told = Told(dict(wandb.run.summary))
    for line in metrics.read(folder):
        step = line["step"]
        logs = {k: v for k, v in line.items() if k not in ("step", "seconds") and v is not None}
        if step <= until and not told.holds(step, logs):
            wandb.log({**named(logs), STEP: step})
    rows = [row for row in metrics.completions(folder) if row["step"] <= until]
    if rows and told.summary.get("completions", {}).get("nrows") != len(rows):
        log_completions(wandb, rows)
    return told


def path_of(folder: Path) -> str | None:
    """The W&B run of an output folder, `entity/project/id`, if it was ever online."""
    path = folder / output_folder.WANDB_PATH
    return path.read_text(encoding="utf-8") if path.is_file() else None


def place_of(folder: Path) -> tuple[str | None, str]:
    """The entity, None for the login's own, and the project of the W&B run of an output folder."""
    if path := path_of(folder):
        entity, project, _ = path.split("/")
        return entity, project
    kept = folder / output_folder.WANDB_PLACE
    if kept.is_file():
        entity, _, project = kept.read_text(encoding="utf-8").partition("/")
        return entity or None, project
    return None, names.project(output_folder.settings_of(folder).get("project"))


def id_of(part: Path) -> str:
    return part.name.rpartition("-")[2]


def parts(folder: Path) -> dict[str, list[Path]]:
    """What W&B's client has kept in the output folders under `folder` and not sent, by W&B run, in
    the order in which it began. One that was killed and went on has several parts. Of a run that
    goes on there is none: what it has so far is not all. One that never opened online is no part.
    """
    found: dict[str, list[Path]] = {}
    for part in sorted(folder.glob("**/wandb/*run-*"), key=lambda part: (part.parent, began(part))):
        there = [*part.glob("*.wandb")] and not [*part.glob("*.wandb.synced")]
        known = (path_of(part.parents[1]) or "").rpartition("/")[2] == id_of(part)
        kept = part.name.startswith("offline-") or known
        if there and kept and not output_folder.going_on(part.parents[1]):
            found.setdefault(id_of(part), []).append(part)
    return found


def began(part: Path) -> str:
    return part.name.removeprefix("offline-")


def mark(folder: Path, run: str) -> None:
    """Mark the parts of a W&B run in an output folder as sent, as W&B's own program does."""
    for file in folder.glob(f"wandb/*run-*-{run}/*.wandb"):
        file.with_suffix(".wandb.synced").touch()


def open_online(folder: Path) -> None:
    """Open the W&B run of an output folder, whose training has ended, where it was online or was
    sent to."""
    import wandb

    entity, project = place_of(folder)
    run = (folder / output_folder.WANDB_ID).read_text(encoding="utf-8")
    server.patience.waited, server.patience.said = 0.0, ""  # for another run
    os.environ.pop("WANDB_MODE", None)
    os.environ["WANDB_DIR"] = str(folder)
    os.environ.setdefault("WANDB_SILENT", "true")  # the client speaks before it has its settings
    quiet = wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off", silent=True)
    wandb.init(entity=entity, project=project, id=run, resume="allow", settings=quiet)
