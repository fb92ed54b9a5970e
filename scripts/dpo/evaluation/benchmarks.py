"""The benchmarks that the field reports, through lm-eval: an optional extra."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

from dpo.core import files as files_
from dpo.core.refusal import Refusal
from dpo.evaluation.contestants import Contestant
from dpo.models import chat_template
from dpo.recipe.hub_names import one_line
from dpo.recipe.parse import choices

KEPT = Path("cache/suites")


def check(tasks: list[str], folder: str | None) -> None:
    """See that there are such benchmarks, before anything is generated.

    Args:
        folder: of task files of one's own, as lm-eval reads them.

    Raises:
        Refusal: lm-eval is not installed, or knows no such task.
    """
    if not importlib.util.find_spec("lm_eval"):
        raise Refusal(
            "SUITE needs lm-eval: `make evaluate SUITE=...` installs it, or "
            "pip install --requirement requirements-suite.txt"
        )
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=folder).all_tasks
    for task in tasks:
        if task not in known:
            raise Refusal(f"SUITE: lm-eval has no task {task!r}: {choices(task, [*known])}")


def import_evaluate() -> None:
    """Import the package `evaluate`, which tasks ask for by name: scripts/evaluate.py lies before
    it on the path."""
    path, scripts = [*sys.path], Path(__file__).parents[2]
    sys.path[:] = [place for place in path if Path(place).resolve() != scripts]
    try:
        importlib.import_module("evaluate")
    finally:
        sys.path[:] = path


def run(
    who: Contestant, tasks: list[str], device: str, folder: str | None, limit: int | None
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Each task's metrics of a model, with lm-eval's standard errors: task, metric, (value, error).

    The chat template is applied where the model has one, since that is how it is used. What a task
    came to is kept by all that decides it: the same reference is asked once for all runs.

    Raises:
        Refusal: a task's data, or a package that it asks for, is not there.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    import_evaluate()
    tokenizer, manager = who.tokenizer(), TaskManager(include_path=folder)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
    own = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    about = [who.digest(), tokenizer.chat_template, who.dtype, limit, own]
    about += [chat_template.end_tokens(None, tokenizer), importlib.metadata.version("lm_eval")]
    model, found = None, {}
    with who.autocast(device):
        kind = device.split(":")[0]
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        about.append(half and str(half))
        for task in tasks:
            name = hashlib.sha256(json.dumps([*about, task]).encode()).hexdigest()[:24]
            path = KEPT / f"{name}.json"
            if not path.is_file():
                if model is None:
                    loaded = who.load(device)
                    chat_template.remember_end_tokens(loaded, tokenizer, list)
                    # Unless it is told, it switches off the autocast that it finds.
                    how = {"batch_size": 8, "mixed_precision_dtype": half}
                    model = HFLM(pretrained=loaded, tokenizer=tokenizer, **how)
                try:
                    results = lm_eval.simple_evaluate(
                        model=model,
                        tasks=[task],
                        task_manager=manager,
                        apply_chat_template=bool(tokenizer.chat_template),
                        limit=limit,
                        log_samples=False,
                    )["results"]
                except (ImportError, OSError) as error:  # a package of its own, or its data
                    raise Refusal(f"SUITE={task} cannot be run: {one_line(error)}") from error
                metrics = {name: _metrics(values) for name, values in results.items()}
                path.parent.mkdir(parents=True, exist_ok=True)
                files_.write_json(path, metrics)
            else:
                print(f"{task} of {who.name}: found, not run again")
            found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def beside(
    policy: Contestant,
    against: Contestant,
    tasks: list[str],
    device: str,
    folder: str | None,
    limit: int | None,
) -> dict[str, dict[str, dict]] | None:
    """Task, metric, and the values of both models with their standard errors; None without
    tasks."""
    if not tasks:
        return None
    mine, other = (run(who, tasks, device, folder, limit) for who in (policy, against))
    return {
        task: {
            metric: {
                **{"policy": value, "stderr_policy": error},
                **{"against": other[task][metric][0], "stderr_against": other[task][metric][1]},
            }
            for metric, (value, error) in metrics.items()
        }
        for task, metrics in mine.items()
    }


def _metrics(values: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    metrics = {}
    for key, value in values.items():
        name, _, which = key.partition(",")
        if isinstance(value, int | float) and which and not name.endswith("_stderr"):
            error = values.get(f"{name}_stderr,{which}")
            metrics[name if which == "none" else f"{name} ({which})"] = (
                float(value),
                float(error) if isinstance(error, int | float) else None,
            )
    return metrics
