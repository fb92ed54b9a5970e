"""What `make evaluate` has found of a run, in the run's own W&B run."""

import os
from pathlib import Path

from tqdm.auto import tqdm

from dpo.core import files
from dpo.core.hashing import digest_of
from dpo.core.refusal import first_line
from dpo.reports import published, results
from dpo.runs import output_folder, tracking
from dpo.runs.tracking import again, names, server

FOUND = ("evaluation.html", "answers.jsonl")  # beside the results
TOLD = "wandb-told"  # in the folder of an evaluation: which one W&B has


def untold(run: Path) -> list[Path]:
    """The folders of a run's evaluations that its W&B run lacks; none if it has no W&B run."""
    if not (run / output_folder.WANDB_ID).is_file() or output_folder.going_on(run):
        return []
    found = sorted(folder for folder in run.glob("evaluations/*") if _results(folder))
    return [folder for folder in found if not _told(folder)]


def tell(run: Path) -> str | None:
    """Tell the W&B run of a run what it lacks of its evaluations: each result as a number of the
    summary, `evaluate/<name of the evaluation>/win_rate` and so on, and the page as an artifact.

    Returns why it was not told, None if all that there was has been taken.
    """
    lacks = untold(run)
    if not lacks:
        return None
    if server.off() or os.environ.get("WANDB_MODE", "online") != "online":
        return "WANDB_MODE or WANDB_DISABLED keeps it here"
    if trouble := server.trouble():
        return trouble
    if again.parts(run):
        return "the run itself waits"
    if not (again.path_of(run) or [*run.glob("wandb/*/*.wandb.synced")]):
        return "W&B was not sent the run itself"
    try:
        server.within(server.PATIENCE, lambda: again.open_online(run))
    except (RuntimeError, TimeoutError) as error:
        tracking.abandon()
        return first_line(error)

    def add(wandb) -> None:
        for folder in lacks:
            path, found = _results(folder)[0]
            said = {f"evaluate/{folder.name}/{name}": value for name, value in found.items()}
            wandb.run.summary.update(said)
            name = names.artifact(f"evaluation-{wandb.run.id}-{folder.name}")
            artifact = wandb.Artifact(name, type="evaluation")
            for each in (path, *(folder / name for name in FOUND)):
                if each.is_file():
                    artifact.add_file(str(each))
            wandb.run.log_artifact(artifact)

    if not tracking.to_wandb(add) or not tracking.finish({}):
        return server.patience.said
    for folder in lacks:
        files.write_whole(folder / TOLD, digest_of(_results(folder)[0][0]))
    return None


def say(run: Path) -> None:
    """Tell it, and say in the terminal where that is not so."""
    if (lacks := untold(run)) and (why := tell(run)):
        tqdm.write(f"W&B does not have {len(lacks)} of its evaluations ({why}): make sync later")


def _results(folder: Path) -> list[tuple[Path, dict[str, float]]]:
    """What lies in the folder of an evaluation: its file, and its numbers by name. Of a published
    suite, whole: of a part no number is told."""
    path = folder / "evaluation.json"
    if path.is_file():
        return [(path, results.headline(results.read(path)))]
    suites = [each for each in published.read(folder) if published.whole(each)]
    return [(folder / f"{each['suite']}.json", published.headline(each)) for each in suites]


def _told(folder: Path) -> bool:
    path = folder / TOLD
    version = path.read_text(encoding="utf-8") if path.is_file() else None
    return version == digest_of(_results(folder)[0][0])
