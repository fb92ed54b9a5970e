"""What makes training faster than stock TRL, one step added at a time: each a real trainer in a
process of its own, so that peak memory is its own, and all on the same pairs, by turns."""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from dpo.core.environment import finding_us
from dpo.core.machine import device_name, peak_memory_gb
from dpo.core.refusal import Refusal, last_line
from dpo.data.schema import IDS
from dpo.models.flops import useful_flops
from dpo.prefix_sharing import attention
from dpo.prefix_sharing.head import head_on_completions
from dpo.runs.launch import KEPT_MEMORY, visible_gpus
from dpo.speed import workload
from dpo.speed.shapes import SHAPES, check_there
from dpo.speed.table import show, write
from dpo.speed.workload import LENGTHS, MAX_LENGTH, config_of, typical_lengths
from dpo.training.trainer import FastDPOTrainer

LORA_FROM = 4e9  # parameters: full fine-tuning of more does not fit one GPU


@dataclass
class Variant:
    """One row: what is switched on beside TRL's DPOTrainer."""

    name: str
    checkpointing: bool = False
    head: bool = False
    share: bool = False
    kept_memory: bool = False
    cached: bool = False
    flash: bool = True
    only_on: str | None = None


FAST = {"head": True, "share": True, "kept_memory": True}
VARIANTS = [
    Variant("TRL's defaults: activation checkpointing", checkpointing=True),
    Variant("stock TRL: no activation checkpointing"),
    Variant("+ head on completion tokens only", head=True),
    Variant("+ prompts once, no padding", head=True, share=True),
    Variant("+ freed memory kept, in huge pages", **FAST, only_on="cpu"),
    Variant("+ reference scored once: everything", **FAST, cached=True),
    Variant("reference live, activation checkpointing", True, **FAST),
    Variant("everything, activation checkpointing", True, **FAST, cached=True),
    Variant(
        "everything, SDPA for FlashAttention", **FAST, cached=True, flash=False, only_on="cuda"
    ),
]
BASELINE = VARIANTS[1].name
OUT_OF_MEMORY = {"out_of_memory": True}


@dataclass
class Job:
    """What every variant of one table has in common."""

    model: str
    device: str
    pairs: int
    steps: int
    lengths: str
    turns: int
    turn: int = 0

    @property
    def warm_up(self) -> np.ndarray:
        """Memory is touched for the first time, and a GPU chooses its kernels."""
        batches = 1 if self.device == "cpu" else 3
        return typical_lengths(self.lengths, batches * self.pairs, self.pairs)

    @property
    def timed(self) -> np.ndarray:
        """The rows of this turn, of those that all turns have together."""
        rows = typical_lengths(self.lengths, self.pairs * self.steps * self.turns, self.pairs)
        return np.split(rows, self.turns)[self.turn]


class Stock(DPOTrainer):
    """The rows are tokens already, which FastDPOTrainer sees by itself."""

    def _prepare_dataset(self, dataset, *args):
        return dataset


def work(variant: Variant, job: Job) -> dict:
    """Train one variant in this process: seconds of each timed step, and peak memory in GB."""
    lengths = np.concatenate([job.warm_up, job.timed])
    config = config_of(job.model)
    draw = np.random.default_rng(0)
    drawn = ((draw.integers(2, config.vocab_size, n).tolist() for n in row) for row in lengths)
    rows = [dict(zip(IDS, ids, strict=True)) for ids in drawn]
    torch.manual_seed(0)
    with torch.device(job.device):
        if job.model in SHAPES:
            large = workload.random_model(config).num_parameters() > LORA_FROM
            dtype = torch.bfloat16 if large else torch.float32
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            model.config._commit_hash = "random"  # what reference.py files them under
        else:
            large, model = False, AutoModelForCausalLM.from_pretrained(job.model, dtype="float32")
    live = not variant.cached and not large  # with LoRA the reference is the policy without it
    watch = workload.Stopwatch()
    if not variant.flash:
        attention.uses_flash = lambda device, half: False
    if variant.head:
        head_on_completions(torch.device(job.device))
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "model": model,
            "ref_model": copy.deepcopy(model) if live else None,
            "train_dataset": Dataset.from_list(rows),
            "processing_class": workload.any_tokenizer(),
            "peft_config": LoraConfig(r=64, target_modules="all-linear") if large else None,
            "callbacks": [watch],
            "args": DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=job.pairs,
                max_steps=len(rows) // job.pairs,
                max_length=MAX_LENGTH,
                gradient_checkpointing=variant.checkpointing,
                precompute_ref_log_probs=variant.cached,
                train_sampling_strategy="sequential",
                bf16=job.device == "cuda",
                use_cpu=job.device == "cpu",
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
        }
        if variant.share:
            trainer = FastDPOTrainer(share_prefix=True, reference_cache=folder, **arguments)
        else:
            trainer = Stock(**arguments)
        trainer.train()
    found = {"seconds": watch.seconds[-job.steps :], "peak_memory_gb": peak_memory_gb()}
    if job.device == "cuda":  # which holds more than it gives out
        found["peak_allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def work_elsewhere(variant: Variant, job: Job) -> dict:
    """`work` in a process of its own; `{"out_of_memory": True}` if it did not fit."""
    asked = json.dumps([asdict(variant), asdict(job)])
    command = [sys.executable, "-m", "dpo.speed.variants", asked]
    kept = KEPT_MEMORY if variant.kept_memory else {}
    kept = {"CUDA_VISIBLE_DEVICES": visible_gpus(1)[0]} if job.device == "cuda" else kept
    environment = finding_us(os.environ | kept)
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode == 0:
        return json.loads(result.stdout.splitlines()[-1])
    if result.returncode == -9 or "OutOfMemoryError" in result.stderr:
        return OUT_OF_MEMORY
    raise Refusal(f"{variant.name}: {last_line(result.stderr)}")


def measure(job: Job, peak: float) -> list[dict]:
    """The rows of one table. In each turn every variant trains, on pairs of that turn."""
    variants = [variant for variant in VARIANTS if variant.only_on in (None, job.device)]
    found: dict[str, list[dict]] = {variant.name: [] for variant in variants}
    turns = [replace(job, turn=number) for number in range(job.turns)]
    with tqdm(total=job.turns * len(variants), unit="run") as bar:
        for turn in turns:
            for variant in variants if turn.turn % 2 == 0 else variants[::-1]:
                bar.set_description(f"{job.model}, {job.pairs} pairs: {variant.name}")
                if OUT_OF_MEMORY not in found[variant.name]:
                    found[variant.name].append(work_elsewhere(variant, turn))
                bar.update()
    fit = {name: got for name, got in found.items() if OUT_OF_MEMORY not in got}
    seconds = {name: sum(sum(each["seconds"]) for each in got) for name, got in fit.items()}
    lengths = np.concatenate([turn.timed for turn in turns])
    model, rows = workload.random_model(config_of(job.model)), []
    for variant in variants:
        got = fit.get(variant.name, [])
        row = {
            "name": variant.name,
            "model": job.model,
            "pairs_per_micro_batch": job.pairs,
            "lengths": Path(job.lengths).stem,
            "stock_tokens_per_token": workload.repeats_and_padding(lengths, job.pairs),
            **dict.fromkeys(("pairs_per_second", "tokens_per_second", "mfu", "ratio_to_stock")),
            "peak_memory_gb": max((each["peak_memory_gb"] for each in got), default=None),
        }
        if spent := seconds.get(variant.name):
            row["pairs_per_second"] = len(lengths) / spent
            row["tokens_per_second"] = int(lengths.sum()) / spent
            row["mfu"] = useful_flops(model, lengths) / spent / peak
            if BASELINE in fit:
                row["ratio_to_stock"] = seconds[BASELINE] / spent
        rows.append(row)
    return rows


def compare(args: argparse.Namespace) -> list[Path]:
    """Measure the tables that the arguments of bench.py ask for, show each, and write them all.

    Returns the files written.

    Raises:
        Refusal: there is no such model.
    """
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device == "cpu"
    PartialState(cpu=on_cpu)
    results = {
        "machine": device_name(),
        "dtype": "float32" if on_cpu else "bfloat16 autocast",
        "torch": torch.__version__,
        "matmul_peak_tflops": workload.peak_of(device) / 1e12,
        "dealing": workload.dealing(),
        "rows": [],
    }
    steps = args.steps or (1 if on_cpu else 10)
    for model in args.model or (["SmolLM2-135M"] if on_cpu else SHAPES):
        check_there(model)
        for pairs in args.pairs or ([4] if on_cpu else [4, 8]):
            job = Job(model, device, pairs, steps, args.lengths or str(LENGTHS), args.rounds)
            results["rows"] += (rows := measure(job, results["matmul_peak_tflops"] * 1e12))
            show(rows)
            written = write(results, args.output)  # after each table: the next may take an hour
    return written


if __name__ == "__main__":  # of `work_elsewhere`
    variant, job = json.loads(sys.argv[1])
    print(json.dumps(work(Variant(**variant), Job(**job))))
