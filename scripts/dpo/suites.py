"""The benchmarks that the field reports, through lm-eval: an optional extra."""

from __future__ import annotations

import importlib.util
from typing import Any

from dpo.contestants import Contestant
from dpo.recipe import choices


def check(tasks: list[str], folder: str | None) -> None:
    """See that there are such benchmarks, before anything is generated.

    Args:
        folder: of task files of one's own, as lm-eval reads them.

    Raises:
        SystemExit: lm-eval is not installed, or knows no such task.
    """
    if not importlib.util.find_spec("lm_eval"):
        raise SystemExit(
            "SUITE needs lm-eval: `make evaluate SUITE=...` installs it, or "
            "pip install --requirement requirements-suite.txt"
        )
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=folder).all_tasks
    for task in tasks:
        if task not in known:
            raise SystemExit(f"SUITE: lm-eval has no task {task!r}: {choices(task, [*known])}")


def run(
    who: Contestant, tasks: list[str], device: str, folder: str | None, limit: int | None
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Each task's metrics of a model, with lm-eval's standard errors: task, metric, (value, error).

    The chat template is applied where the model has one, since that is how it is used.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = who.tokenizer()
    model = HFLM(pretrained=who.load(device), tokenizer=tokenizer, batch_size=8)
    with who.autocast(device):
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=TaskManager(include_path=folder),
            apply_chat_template=bool(tokenizer.chat_template),
            limit=limit,
            log_samples=False,
        )
    return {task: _metrics(values) for task, values in found["results"].items()}


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
