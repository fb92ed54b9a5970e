"""Short runs through the launcher, and what is seen to be right of them (make check-gpu)."""

import contextlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
import torch.utils.cpp_extension
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo.core.refusal import Refusal
from dpo.runs import checkpoints, metrics
from dpo.runs.launch import ONE_PROCESS
from dpo.runs.output_folder import REPORT
from dpo.speed.gpu_checks import Job, Row, judged, memory, skipped

LN2 = math.log(2)
START = {"float32": 1e-4, "bfloat16": 0.01}  # loss of step 1 from ln 2
# Losses of two shardings. In bfloat16 DeepSpeed begins from rounded weights, and an update of less
# than half of what bfloat16 tells apart shows only when some have added up: 0.034 on an H200.
ALIKE = {"float32": 1e-4, "bfloat16": 0.06}
# Of the way that the weights went in training. Sums on a GPU are not added up in one order.
RESUMED = {"cuda": 0.02, "cpu": 0.0}
STEPS, SAVED = 6, 3


def command(job: Job, config: str, folder: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "scripts/launch.py", "--recipe", "smollm2-sentiment"),
        *("--accelerate_config", config, "--gpus", "1", "--force", "--"),
        *(f"--model_name_or_path={job.model}", f"--dataset_name={job.data}"),
        *(f"--output_dir={folder}", f"--reference_cache={job.folder / 'cache'}"),
        *("--logging_steps=1", *flags),
    ]


def launched(*given) -> dict:
    """Launch a run of `command`'s arguments to its end.

    Returns its report, with the `losses` of its steps.

    Raises:
        Refusal: it ended otherwise. What it said is above, in the log.
    """
    if code := subprocess.run(command(*given)).returncode:
        raise SystemExit(code)
    folder = given[2]
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return report | {"losses": losses_of(folder)}


def losses_of(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics.read(folder) if "loss" in line]


def start(name: str, losses: list[float], kind: str) -> Row:
    """The loss of step 1 is ln 2, and all of them are finite."""
    off = abs(losses[0] - LN2)
    return judged(
        name,
        off <= START[kind] and all(map(math.isfinite, losses)),
        f"step 1 is ln 2 {losses[0] - LN2:+.1e}; losses {' '.join(f'{x:.4f}' for x in losses)}",
        f"{START[kind]:.0e}",
        losses=losses,
    )


def peak(name: str, job: Job, report: dict, low: bool = True) -> Row:
    """The peak memory of a run beside its plan's, as its report has both; `low` as `memory` takes
    it."""
    found = (report.get("measured") or {}).get("peak_gb")
    if found is None or found["planned"] is None:
        on_cpu, why = job.device == "cpu", "the run has not measured it, or has no plan"
        return skipped(name, "judged on a GPU only") if on_cpu else judged(name, False, why)
    return memory(name, job, found["measured"], found["planned"], low)


def default_run(job: Job) -> Iterator[Row]:
    """The embedded default through the launcher: to its end, then killed and gone on from."""
    settings = (
        *(f"--max_steps={STEPS}", f"--eval_steps={SAVED}", f"--save_steps={SAVED}"),
        *("--save_total_limit=2", "--reward_prompts=8"),
    )
    whole, killed = job.folder / "whole", job.folder / "killed"
    report = launched(job, job.single, whole, *settings)
    yield start(f"default run, {STEPS} steps in float32", report["losses"], "float32")
    pairs, judge = report["pairs"], report["judge"]
    before, after = (judge["reward"][side]["mean"] for side in ("against", "policy"))
    yield judged(
        "default run: gates, trial and evaluation",
        bool(pairs and judge) and (whole / "report.html").is_file(),
        f"accuracy {pairs['accuracy']['mean']:.2f} on {pairs['count']} pairs, true reward "
        f"{before:+.2f} → {after:+.2f}",
        "there, and a report",
    )
    yield peak("default run: memory", job, report)

    kill_after(command(job, job.single, killed, *settings), killed / f"checkpoint-{SAVED}")
    from_step = checkpoints.last_whole(killed)
    unfinished = not (killed / REPORT).exists()
    again = launched(job, job.single, killed, *settings)
    part, largest = apart(whole, killed, job.model)
    said = "equal to the bit" if largest == 0 else f"{part:.1e} of the way, {largest:.1e} at most"
    yield judged(
        f"killed after {from_step.name if from_step else 'nothing'}, and resumed",
        unfinished and from_step is not None and part <= RESUMED[job.device],
        f"weights of the undisturbed run: {said}; last loss {again['losses'][-1]:.4f} for "
        f"{report['losses'][-1]:.4f}",
        f"{RESUMED[job.device]:g} of the way trained",
        part=part,
        largest=largest,
    )


def kill_after(words: list[str], checkpoint: Path) -> None:
    """Start a run, and kill all of its processes as soon as a checkpoint of it is whole."""
    run = psutil.Popen(words)
    try:
        while not (checkpoint / checkpoints.MANIFEST).exists():
            if run.poll() is not None:
                raise Refusal(f"the run that was to be killed ended by itself: {run.poll()}")
            time.sleep(0.005)
    finally:
        kill(run)


def kill(process: psutil.Process) -> None:
    """Kill a process and all that it started, whatever groups they are in."""
    if process.is_running():
        everyone = [*process.children(recursive=True), process]
        for each in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                each.kill()
        psutil.wait_procs(everyone, timeout=30)  # so that a GPU's memory is free again


def apart(folder: Path, other: Path, begun: Path) -> tuple[float, float]:
    """How far apart two policies are: as a part of the way that the first has gone from the model
    that it began as, and the largest difference of a weight."""
    first, second = (load_file(path / "model.safetensors") for path in (folder, other))
    model = AutoModelForCausalLM.from_pretrained(begun, dtype="float32").state_dict()
    off = way = largest = 0.0
    for name, weight in first.items():
        difference = (weight - second[name]).double()
        off += float(difference.square().sum())
        way += float((weight - model[name]).double().square().sum())
        largest = max(largest, float(difference.abs().max()))
    return (off / way) ** 0.5, largest


def short_run(job: Job, config: str, name: str, *flags: str) -> dict:
    """Four steps, on a GPU in bfloat16, without evaluation: the peak is that of training."""
    settings = ("--max_steps=4", "--eval_strategy=no", "--save_strategy=no", "--report_to=none")
    half = f"--bf16={str(job.half == 'bfloat16').lower()}"
    return launched(job, config, job.folder / name, *settings, half, *flags)


def unsharded(job: Job) -> Iterator[Row]:
    """One process that shards nothing: what the sharded runs are held against."""
    report = short_run(job, job.single, "single")
    yield start(f"{job.single} in {job.half}", report["losses"], job.half)
    yield peak(f"{job.single}: memory", job, report)


def sharded(job: Job, config: str) -> Iterator[Row]:
    """A ZeRO config with one process."""
    if reason := missing(job, config):
        yield skipped(config, reason)
        return
    report = short_run(job, config, config)
    yield start(f"{config}, one process, {job.half}", report["losses"], job.half)
    name, bound = f"{config}: losses of {job.single}", ALIKE[job.half]
    if losses := losses_of(job.folder / "single"):
        off = max(abs(a - b) for a, b in zip(losses, report["losses"], strict=True))
        yield judged(name, off <= bound, f"{off:.1e} apart at most", f"{bound:g}", apart=off)
    else:
        yield skipped(name, f"there is no run of {job.single}")
    # Offloaded, as many as 1e9 numbers may be there at once, and not all of them need be.
    low = config != "zero3_offload"
    yield peak(f"{config}: memory", job, report, low)


def missing(job: Job, config: str) -> str | None:
    """What a launch config, or qlora, needs and the machine does not have."""
    package = {"qlora": "bitsandbytes"}.get(config, "deepspeed")
    if config not in ONE_PROCESS and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if config == "zero3_offload":
        if not shutil.which("c++"):
            return "DeepSpeed builds its optimizer for CPUs with a C++ compiler: there is no c++"
        if job.device == "cuda" and not torch.utils.cpp_extension.CUDA_HOME:
            return "DeepSpeed builds its optimizer with CUDA's toolkit: there is no CUDA_HOME"
    return None


def qlora(job: Job) -> Iterator[Row]:
    """An adapter on four bits, and the model that it makes of its base."""
    if reason := missing(job, "qlora"):
        yield skipped("QLoRA", reason)
        return
    adapter = ("--use_peft", "--load_in_4bit", "--dtype=bfloat16", "--learning_rate=1e-4")
    report = short_run(job, job.single, "qlora", *adapter, "--lora_target_modules=all-linear")
    yield start("QLoRA, 4 bits, bfloat16", report["losses"], "bfloat16")
    made = [*(job.folder / "qlora/merged").glob("*.safetensors")]
    yield judged("QLoRA: merged", bool(made), "written" if made else "nothing there")
    yield peak("QLoRA: memory", job, report)
