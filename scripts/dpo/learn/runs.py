"""Runs of the embedded default in small: trained one after another, each measured by its own
report, which is kept and found again; and what they come to over seeds."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core import files, machine
from dpo.core.refusal import Refusal
from dpo.core.signals import EXIT_CODE
from dpo.core.stats import t_interval
from dpo.recipe.flags import names_in
from dpo.recipe.parse import FOLDER, Recipe, parse
from dpo.reports import results
from dpo.runs import checkpoints, output_folder, sweeps

RECIPE = "smollm2-sentiment"
PRECISION = ["--bf16=true"]  # 0.7 of float32's time, where the processor has it
STOPPED = "Asked to stop. What is finished is kept: the same command goes on from there"
# Of each run, how its report has them, and how they are printed.
METRICS = {
    "reward": ("true reward", "+.3f"),
    "accuracy": ("held-out accuracy", ".3f"),
    "kl": ("KL, nats a sequence", ".2f"),
    "tokens": ("answer, tokens", ".1f"),
}


def recipe_of(flags: Sequence[str]) -> Recipe:
    """RECIPE as these flags have it."""
    return parse(["--config", str(FOLDER / f"{RECIPE}.yaml"), *flags])


def run_of(into: Path, point: dict[str, Any], flags: list[str]) -> sweeps.Run:
    """The run of RECIPE that sets what `point` says, in a folder of `into` that is named by it."""
    (run,) = sweeps.resolved(RECIPE, " ".join(f"{k}={v}" for k, v in point.items()), into, flags)
    return run


def flags_of(steps: int, prompts: int) -> list[str]:
    """Flags for short runs that measure themselves once, when they end, one answer to each
    prompt."""
    own = [f"--max_steps={steps}", f"--reward_prompts={prompts}", "--reward_samples=1"]
    # Without an eval_strategy no pairs are held out; the first comes after the last step.
    own += ["--eval_strategy=steps", f"--eval_delay={steps + 1}", "--save_strategy=no"]
    return [*own, "--report_to=none"]


SETS = names_in(flags_of(1, 1))  # which a user cannot give


def train(run: sweeps.Run, flags: list[str]) -> None:
    """Train a run to its end, if it has not been.

    Raises:
        SystemExit: it was asked to stop; it goes on from there.
        Refusal: it failed.
    """
    # Of several GPUs the first: three cannot share a batch of eight.
    if sweeps.carry_out([run], ["--gpus", "1"], [None], flags) or run.state == sweeps.LEFT:
        print(STOPPED)
        sys.exit(EXIT_CODE)
    if run.state == sweeps.FAILED:
        raise Refusal(f"{run.folder}: {run.last_line()} ({run.log})")


def remove_weights(folder: Path) -> None:
    """Those of a run, and those of its checkpoints, which one that was asked to stop has too."""
    for checkpoint in checkpoints.named(folder):
        checkpoints.delete(checkpoint)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()


def report_of(folder: Path) -> dict[str, Any]:
    """What a run that has been trained has written of itself."""
    return results.read(folder / output_folder.REPORT)


def kept(path: Path, asked: dict[str, Any], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `find` finds, and the `seconds` that it took, kept in a file; from there if the same was
    asked before.

    Args:
        asked: what decides what is found, as JSON has it.

    Raises:
        Refusal: the file is not whole.
    """
    if path.is_file():
        found = read_kept(path)
        if found.pop("asked") == asked:
            return found
    found = timed(find)
    files.write_json(path, {"asked": asked, **found})
    return found


def read_kept(path: Path) -> dict[str, Any]:
    """What a file holds that was measured.

    Raises:
        Refusal: it is not whole.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or "asked" not in found:
        raise Refusal(f"{path} is not whole: remove it, and it is measured anew")
    return found


def timed(find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `find` finds, and the `seconds` that it took."""
    began = time.monotonic()
    return {**find(), "seconds": time.monotonic() - began}


def numbers(report: dict[str, Any], side: str = "policy") -> dict[str, float]:
    """METRICS of a run's report, each a mean; of `against`, its reference, reward and length
    alone."""
    answers = report["answers"]
    found = {
        "reward": report["judge"]["reward"][side]["mean"],
        "tokens": answers["mean_tokens"][side]["mean"],
    }
    if side == "policy":
        found["accuracy"] = report["pairs"]["accuracy"]["mean"]
        found["kl"] = answers["kl"]["nats_per_sequence"]["mean"]
    return found


def over_seeds(
    runs: Sequence[dict[str, float]],
    less: Sequence[dict[str, float]] | None = None,
    metrics: Iterable[str] = METRICS,
) -> dict[str, dict[str, float]]:
    """Metrics over runs that differ in their seed alone: mean and Student's 95% interval. With
    `less`, other runs of the same seeds in the same order, of the difference to them, paired."""
    found = {}
    for name in metrics:
        values = np.array([run[name] for run in runs])
        if less is not None:
            values = values - np.array([run[name] for run in less])
        found[name] = asdict(t_interval(values))
    return found


def made_by() -> dict[str, Any]:
    """Where and when something was measured."""
    return {
        "machine": machine.device_name(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "date": machine.now(),
    }


def minutes(reports: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]] = ()) -> float:
    """That runs took to train and to measure themselves, without their start, and what was measured
    of them here, one after another."""
    seconds = [sum(report["seconds"].values()) for report in reports]
    return (sum(seconds) + sum(each["seconds"] for each in measured)) / 60
