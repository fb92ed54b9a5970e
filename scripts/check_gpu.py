"""Everything that only a GPU can show, in a quarter of an hour and one command.

    make check-gpu                                   # on one GPU
    make check-gpu DEVICE=cpu ARGS="--small"         # its parts, tried on a CPU
    make check-gpu ARGS="--only parity zero2"
    make check-gpu ARGS="--only plan"                # plans beside what training takes

Prefix sharing against the plain path on the GPU's kernels; the embedded default through the
launcher, killed and gone on from; ZeRO with one process; QLoRA; the speed beside stock TRL's; what
make plan says of memory and time beside what they are. Nothing is loaded from outside. Each part is
a process of its own with a time limit: of one that crashes a failed row is left, and the next goes
on.

Writes check-gpu.json, check-gpu.md and a log of each part to outputs/check-gpu, which the next
start empties. Ends with 1 if a row failed.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
from pathlib import Path

from dpo.core.terminal import at_once, guarded, parser_of

MODEL, DATA = Path("models/SmolLM2-135M-Instruct"), "recipes/data/sentiment"
# What is done, and how many seconds each may take.
PARTS = {"machine": 60, "parity": 150, "default": 270, "speed": 120, "single": 90, "zero2": 90}
PARTS |= {"zero3": 90, "qlora": 90, "plan": 330, "zero3_offload": 180}  # which compiles


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", type=Path, default=MODEL, help="a chat model's folder")
    parser.add_argument("--data", default=DATA, help="preferences with a known reward")
    parser.add_argument("--small", action="store_true", help="leave out what takes long on a CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=14.5, help="for all of it (default: 14.5)")
    parser.add_argument("--output", type=Path, default=Path("outputs/check-gpu"), help="folder")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)

from dpo.core.quiet import defer_peft

defer_peft()  # each part is a process of its own, and most of them only launch what needs it

# isort: split
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import numpy as np
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpo.core.files import read_lines
from dpo.core.machine import commit, cpu_name, versions
from dpo.core.refusal import Refusal
from dpo.runs.launch import visible_gpus
from dpo.speed import gpu_checks, gpu_runs
from dpo.speed.gpu_checks import JSON, TABLE, Job, Row, judged, skipped

LEAST = 15  # seconds: with less left a part is not begun
SLOWER = 10  # times longer a part may take on a CPU


def machine(job: Job) -> Iterator[Row]:
    """Whether the GPU computes at all, and as fast as its kind does."""
    name = "a product of matrices"
    if job.device == "cpu":
        yield skipped(name, f"{cpu_name()}: judged on a GPU only")
        return
    from dpo.speed.workload import peak_of

    flops = peak_of(job.device)
    says = f"{torch.cuda.get_device_name()}, {flops / 1e12:.3g} TFLOP/s in bfloat16"
    yield judged(name, flops > 0, says, tflops=flops / 1e12)


def speed(job: Job) -> Iterator[Row]:
    """Stock TRL beside everything, as make bench times them; the second one's peak memory."""
    from dpo.speed import variants
    from dpo.speed.workload import LENGTHS

    asked = variants.Job("Qwen3-0.6B", job.device, 4, 20, str(LENGTHS), turns=1)
    if job.small:
        asked = variants.Job(str(job.model), job.device, 2, 1, "9,5,6", turns=1)
    label, found = f"speed, {Path(asked.model).name}", {}
    for name in (variants.BASELINE, "+ reference scored once: everything"):
        (variant,) = [variant for variant in variants.VARIANTS if variant.name == name]
        got = found[name] = variants.work_elsewhere(variant, asked)
        if "seconds" not in got:
            yield skipped(label, f"{name}: out of memory")
            return
        got["pairs"] = len(asked.timed) / sum(got["seconds"])
    stock, ours = found.values()
    ratio = ours["pairs"] / stock["pairs"]
    says = f"{ours['pairs']:.3g} pairs a second, stock TRL {stock['pairs']:.3g}: {ratio:.2f} ×"
    figures = {"pairs": ours["pairs"], "stock_pairs": stock["pairs"], "ratio": ratio}
    row = judged(label, ratio >= 1, says, "1 × or more", **figures)
    yield row if job.device == "cuda" else skipped(row.name, f"{says}: judged on a GPU only")
    if asked.model in variants.SHAPES:
        from dpo.speed import gpu_plan

        batches = np.concatenate([asked.warm_up, asked.timed]).reshape(-1, asked.pairs, 3)
        planned = gpu_plan.peak_of(f"Qwen/{asked.model}", batches, job)
        row = gpu_checks.memory(f"{label}: memory", job, ours["peak_allocated_gb"], planned / 1e9)
        yield row


def parity(job: Job) -> Iterator[Row]:
    """Shared prefixes against the plain path."""
    from dpo.speed import gpu_parity

    yield from gpu_parity.parity(job)


def plan(job: Job) -> Iterator[Row]:
    """What make plan says of memory and time, beside what they are."""
    from dpo.speed import gpu_plan

    yield from gpu_plan.plan(job)


# By the names in PARTS.
DONE_BY: dict[str, Callable[[Job], Iterator[Row]]] = {
    "machine": machine,
    "parity": parity,
    "default": gpu_runs.default_run,
    "speed": speed,
    "single": gpu_runs.unsharded,
    "zero2": partial(gpu_runs.sharded, config="zero2"),
    "zero3": partial(gpu_runs.sharded, config="zero3"),
    "qlora": gpu_runs.qlora,
    "plan": plan,
    "zero3_offload": partial(gpu_runs.sharded, config="zero3_offload"),
}


def name_of(device: str) -> str:
    """Name, memory and driver, without touching the GPU: its memory is for the parts."""
    if device == "cpu":
        return f"CPU ({cpu_name()})"
    asked = ["nvidia-smi", f"--id={os.environ['CUDA_VISIBLE_DEVICES']}", "--format=csv,noheader"]
    asked += ["--query-gpu=name,memory.total,driver_version"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        said = "a GPU that nvidia-smi does not name, ?, ?"
    name, total, driver = said.rsplit(", ", 2)
    return f"{name}, {total}, driver {driver}, CUDA {torch.version.cuda}"


def model_with_weights(model: Path, folder: Path) -> Path:
    """The model; where its folder holds no weights, one of its shape with random ones. They are
    half a GB, and a machine that nothing reaches may have the rest only."""
    if [*model.glob("*.safetensors")]:
        return model
    made = folder / "model"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(model)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(made)
    AutoTokenizer.from_pretrained(model).save_pretrained(made)
    return made


def emptied(folder: Path) -> Path:
    """The folder without what an earlier check left there.

    Raises:
        Refusal: something else lies there.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / JSON).exists():
        raise Refusal(f"{folder} holds other things than a check: give another --output")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def done(name: str, words: list[str], folder: Path, seconds: float, whole: bool) -> list[Row]:
    """The rows of a part, run in a process of its own, with a failed one if it ends otherwise than
    it should.

    Args:
        seconds: that it may take; `whole` says whether they are all that it may ever have.
    """
    log, found = folder / f"{name}.log", folder / f"{name}.jsonl"
    began = time.monotonic()
    with log.open("w") as file:
        process = psutil.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except psutil.TimeoutExpired:
            code = None
        finally:
            gpu_runs.kill(process)
    rows = [Row(**row) for row in read_lines(found)]
    spent = time.monotonic() - began - sum(row.seconds for row in rows)
    outcome, why = "failed", f"took more than {seconds:.0f} s: see {log}"
    if code is None and not whole:
        outcome, why = "not run", "cut short: the time was over"
    elif code:
        lines = log.read_text(errors="replace").splitlines()
        said = [text.strip() for text in lines if re.search(r"[A-Za-z]{3}", text)]
        why = f"{said[-1][:200] if said else 'ended without a word'}: see {log}"
    return rows if code == 0 else [*rows, Row(name, outcome, why, "", spent)]


def check(job: Job, names: list[str], minutes: float) -> list[Row]:
    """All rows, each told as soon as it is known and written with those before it."""
    began, rows = time.monotonic(), []
    results = {"machine": name_of(job.device), "device": job.device, "model": str(job.model)}
    results |= {"commit": commit(), "date": datetime.date.today().isoformat()}
    packages = versions("bitsandbytes", "triton")
    results["versions"] = {"Python": platform.python_version()} | packages
    given = [f"--device={job.device}", f"--model={job.model}", f"--data={job.data}"]
    given += [f"--output={job.folder}", *(["--small"] if job.small else [])]
    for name in names:
        left = 60 * minutes - (time.monotonic() - began)
        limit = PARTS[name] * (1 if job.device == "cuda" else SLOWER)
        if left < LEAST:
            new = [Row(name, "not run", "the time was over")]
        else:
            print(f"{name}, at most {min(left, limit):.0f} s …", flush=True)
            words = [sys.executable, __file__, f"--part={name}", *given]
            new = done(name, words, job.folder, min(left, limit), left >= limit)
        print(*map(gpu_checks.line, new), sep="\n", flush=True)
        rows += new
        spent = (time.monotonic() - began) / 60
        found = results | {"minutes": spent, "rows": [asdict(row) for row in rows]}
        gpu_checks.write(found, job.folder)
    return rows


def part(name: str, job: Job) -> None:
    """One part, in this process: its rows go to a file as they come."""
    began = time.monotonic()
    for row in DONE_BY[name](job):
        row.seconds, began = time.monotonic() - began, time.monotonic()
        gpu_checks.append(row, job.folder / f"{name}.jsonl")


@guarded
def main() -> None:
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise Refusal("no GPU is here: DEVICE=cpu tries the parts of the check on the CPU")
    job = Job(args.device, args.model, args.data, args.output, args.small)
    if args.part:
        return part(args.part, job)
    # What the parts start inherits it: one GPU, however many there are, or none; nothing is sent.
    os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus(1)[0] if args.device == "cuda" else ""
    emptied(job.folder)
    job.model = model_with_weights(job.model, job.folder)
    rows = check(job, args.only or [*PARTS], args.minutes)
    failed = sum(row.outcome == "failed" for row in rows)
    rest = "On a GPU: put the table into docs/gpu.md, between its marks"
    rest = f"What failed has its log in {job.folder}" if failed else rest
    print(
        f"\n{gpu_checks.counted(rows)}. Written: {job.folder / TABLE}, {job.folder / JSON}. {rest}"
    )
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
