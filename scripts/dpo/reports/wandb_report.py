"""A comparison as a report on W&B's server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dpo.core.refusal import Refusal, first_line
from dpo.reports.comparison import export, table
from dpo.runs import output_folder
from dpo.runs.tracking import again, server

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
        Refusal: W&B has no key, does not take it, or does not answer.
    """
    if not server.key():
        raise Refusal("a W&B report needs a login: wandb login. Without one, leave --wandb out")
    if trouble := server.trouble():
        raise Refusal(f"{trouble}: leave --wandb out, or try later")


def ids(runs: list[Compared]) -> dict[str, str]:
    """The ids by which W&B knows the runs, by their names; none of a run it was never told of."""
    kept = {run.name: run.folder / output_folder.WANDB_ID for run in runs}
    return {name: p.read_text(encoding="utf-8") for name, p in kept.items() if p.is_file()}


def of(runs: list[Compared], title: str) -> Report:
    """The report: the table, and the curves of the runs by optimizer step. It lies in the project
    of the first of them that W&B knows."""
    from wandb_workspaces.reports import v2

    known, places = ids(runs), {}
    for run in runs:
        if run.name in known:
            places.setdefault(again.place_of(run.folder), []).append(known[run.name])
    wheres = [{"project": p} | ({"entity": e} if e else {}) for e, p in places]
    # By id: wandb-workspaces makes `==` of every `=` in a value, and a sweep's folders have some.
    runsets = [
        v2.Runset(**where, name=title, filters=f"Metric('name') in {json.dumps(of)}")
        for where, of in zip(wheres, places.values(), strict=True)
    ]
    said = export.markdown(runs, table.table(runs), title)
    for run in runs:
        said += "" if run.name in known else f"\n\nNo curves of {run.name}: W&B has no run of it."
    panels = [v2.LinePlot(title=name, x=again.STEP, y=[name]) for name in PANELS]
    blocks = [v2.MarkdownBlock(text=said), v2.PanelGrid(runsets=runsets, panels=panels)]
    return v2.Report(**wheres[0], title=title[:128], blocks=blocks)


def report(runs: list[Compared], title: str) -> str:
    """Write the report, and return its address.

    Raises:
        Refusal: W&B knows none of the runs, or does not take the report.
    """
    if not ids(runs):
        raise Refusal("W&B knows none of these runs: set report_to: wandb, or leave --wandb out")
    try:
        made = of(runs, title)
        made.save()
    except Exception as error:  # of the client, the server, or what is between them
        raise Refusal(f"no W&B report: {first_line(error)}") from error
    return made.url
