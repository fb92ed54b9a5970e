"""metrics.jsonl: every logged step in the output folder, so that no tracker has the only copy."""

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dpo.core.files import read_lines, write_lines, write_whole
from dpo.runs.output_folder import ALERTS, COMPLETIONS, METRICS

COLUMNS = ["step", "prompt", "decoding", "reference", "policy"]  # of completions


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, oldest first: `step`, `epoch`, `seconds` since training began
    (of all its parts, if it was resumed), and what TRL logs, None where it is not finite."""
    return read_lines(folder / METRICS)


def completions(folder: Path) -> list[dict[str, Any]]:
    """What the policy said at each evaluation, a row for each prompt; none where nothing was kept.

    Of each row: `step`, `prompt`, `decoding`, and the answers of `reference` and `policy`."""
    return read_lines(folder / COMPLETIONS)


def keep_alerts(folder: str, alerts: list[dict[str, Any]]) -> None:
    """Write what the monitors have told so far, for who watches a run that goes on. Where a run
    goes on from a checkpoint, those past it are gone."""
    path = Path(folder, ALERTS)
    if alerts or path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, alerts)


def line(entry: dict[str, Any]) -> str:
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


class WriteMetrics(TrainerCallback):
    """Appends a line at every log, in the first process. A resumed run takes away the lines past
    its checkpoint and goes on. The summary at the end of training is of one process's part of a
    run, and is no step's: it is left out."""

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.path = Path(args.output_dir, METRICS)
        kept = [entry for entry in read(self.path.parent) if entry["step"] <= state.global_step]
        kept = kept if state.global_step else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(map(line, kept)))
        self.began = time.monotonic() - (kept[-1]["seconds"] if kept else 0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "train_loss" in logs:
            return
        entry = {"step": state.global_step, **logs, "seconds": time.monotonic() - self.began}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line(entry))
