"""Short runs whose policies are measured here, at their checkpoints. What was measured is kept,
point by point; a checkpoint is removed once it is measured."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dpo.core import files
from dpo.core.refusal import Refusal
from dpo.evaluation.contestants import Contestant, policy_of
from dpo.learn import runs
from dpo.recipe.flags import names_in
from dpo.runs import checkpoints, output_folder, sweeps


def flags_of(steps: int, every: int) -> list[str]:
    """Flags for runs that keep their weights at every so many steps and measure nothing."""
    own = [f"--max_steps={steps}", f"--save_steps={every}", "--save_strategy=steps"]
    own += ["--save_total_limit=99", "--save_only_model=true"]
    return [*own, "--eval_strategy=no", "--report_to=none"]


SETS = names_in(flags_of(1, 1))  # which a user cannot give


def measured(
    run: sweeps.Run,
    flags: list[str],
    asked: dict[str, Any],
    measure: Callable[[Contestant], dict[str, Any]],
) -> list[dict[str, Any]]:
    """What `measure` finds of a run's policy at each of its checkpoints, in their order, each with
    its `step` and the `seconds` that it took. The run is trained if it has not been; the policy
    that it ends with stays.

    Args:
        asked: what decides what `measure` finds, as JSON has it.

    Raises:
        SystemExit: the run was asked to stop; it goes on from there.
        Refusal: it failed, or was measured in another way before, or what was measured is not
            whole.
    """
    path = path_of(run)
    found: dict[str, Any] = {"asked": asked, "points": []}
    if path.is_file() and sweeps.begun(run):  # and not of a folder that has been removed
        found = runs.read_kept(path)
    if found["asked"] != asked:
        why = f"points that were measured otherwise ({found['asked']}, now {asked})"
        raise Refusal(f"{path} holds {why}: give another --output, or remove it and {run.folder}")
    if not (run.folder / output_folder.TRAINED).is_file():
        for checkpoint in checkpoints.named(run.folder):
            checkpoints.delete(checkpoint)  # weights alone are nothing to go on from
    runs.train(run, flags)
    there = {point["step"] for point in found["points"]}
    for checkpoint in sorted(checkpoints.named(run.folder), key=checkpoints.step_of):
        step = checkpoints.step_of(checkpoint)
        if step not in there:
            who = policy_of(checkpoint, run.folder)
            found["points"].append({"step": step, **runs.timed(partial(measure, who))})
            files.write_json(path, found)
        checkpoints.delete(checkpoint)
    if not found["points"]:
        raise Refusal(
            f"{run.folder} holds no weights to measure: remove it, and give the same again"
        )
    return found["points"]


def path_of(run: sweeps.Run) -> Path:
    """The file beside a run's folder that holds what was measured of it."""
    return run.folder.with_name(f"{run.name}.json")
