"""A comparison as a report on W&B's server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dpo.core.refusal import Refusal
from dpo.reports.comparison import export, table
from dpo.runs import tracking

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report

    from dpo.reports.comparison.collect import Compared

PANELS = (
    *("eval/loss", "eval/rewards/accuracies", "eval/rewards/margins"),
    *("eval/rewards/chosen", "eval/rewards/rejected", "train/loss"),
    *("eval/drift_nats_per_token", "eval/drift_tokens"),
)


def check() -> None:
    """See that there is somebody to write a report as.

    Raises:
        Refusal: W&B has no key, or does not answer.
    """
    if not tracking.has_key():
        raise Refusal("a W&B report needs a login: wandb login. Without one, leave --wandb out")
    if not tracking.reachable(tracking.base_url()):
        raise Refusal(f"{tracking.base_url()} gives no answer: leave --wandb out, or try later")


def of(runs: list[Compared], title: str, **where: str) -> Report:
    """The report: the table, and the curves of the runs, which W&B knows by their output folders.

    Args:
        where: `project`, and `entity` if it is not the login's own.
    """
    from wandb_workspaces.reports import v2

    folders = json.dumps([str(run.settings["output_dir"]) for run in runs])
    runset = v2.Runset(**where, name=title, filters=f"Config('output_dir') in {folders}")
    said = export.markdown(runs, table.table(runs), title)
    panels = [v2.LinePlot(title=name, x="Step", y=[name]) for name in PANELS]
    blocks = [v2.MarkdownBlock(text=said), v2.PanelGrid(runsets=[runset], panels=panels)]
    return v2.Report(**where, title=title[:128], blocks=blocks)


def report(runs: list[Compared], title: str) -> str:
    """Write the report, and return its address."""
    made = of(runs, title, project=tracking.project())
    made.save()
    return made.url
