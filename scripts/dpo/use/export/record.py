"""export.json, which lies in every export: what it is, of which run, and what it was checked by."""

from pathlib import Path
from typing import Any

from dpo.core.hashing import digest_of
from dpo.core.machine import now, versions
from dpo.core.refusal import Refusal
from dpo.models import adapters, model_files
from dpo.reports import results
from dpo.reports.model_card import card
from dpo.runs.output_folder import REPORT
from dpo.use.run import Used

EXPORTS, RECORD = "exports", "export.json"  # of a run; in each of them
BITS = {"int8": 8, "nf4": 4}  # of a weight in a linear layer that is quantised


def of(run: Used, kind: str, dtype: str) -> dict[str, Any]:
    """What an export is; `kind` is full, adapter, merged or gguf."""
    lora, model = adapters.config_of(str(run.folder)), run.recipe.model
    return {
        "run": str(run.folder),
        "run_ended": results.read(run.folder / REPORT)["finished"],
        "recipe": run.recipe.name,
        "kind": kind,
        "dtype": dtype,
        "bits": BITS.get(dtype),
        "base": lora.base_model_name_or_path if lora else None,
        "base_was_quantised": model.load_in_4bit or model.load_in_8bit,
        "finished": now(),
        "versions": versions(),
    }


def read(folder: Path) -> dict[str, Any]:
    """What the export in a folder says of itself; empty where there is none."""
    path = folder / RECORD
    return model_files.read_json(path) if path.is_file() else {}


def run_of(folder: Path) -> Path | None:
    """The run that the export in a folder is of: the one that it lies in, or else the one that it
    names; None where neither is still the one that was exported."""
    about, home = read(folder), folder.absolute().parent
    for run in [home.parent] * (home.name == EXPORTS) + [Path(about["run"])]:
        ended = results.read(run / REPORT).get("finished")
        if ended and ended == about.get("run_ended"):
            return run
    return None


def checked(folder: Path) -> list[Path]:
    """The files of an export but for its card, as they were checked.

    Raises:
        Refusal: one of them is gone, or is another by now.
    """
    files = {folder / name: digest for name, digest in read(folder)["files"].items()}
    files.pop(folder / card.CARD)
    for path, digest in files.items():
        if not path.is_file() or digest_of(path) != digest:
            raise Refusal(f"{path} is not what was checked when it was exported: export it again")
    return [*files]
