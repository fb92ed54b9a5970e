"""Train a policy with DPO as a recipe says. One straight line:

    recipe → data → policy + reference → DPOTrainer → evaluation → report

    make train                                   # the embedded default, on any machine
    make train RECIPE=qwen-ultrafeedback CONFIG=zero2 GPUS=8 ARGS="--beta 0.05"

which launches, with the accelerate config of the machine,

    accelerate launch --config_file accelerate_configs/cpu.yaml scripts/train.py \\
        --config recipes/smollm2-sentiment.yaml

Flags after the recipe win over it. `--help` lists them all: TRL's, and at the end our own.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import datetime
import gc
import json
import math
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from datasets import IterableDataset
from rich.console import Console
from rich.table import Table
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import TrainerState
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from dpo.core import files
from dpo.core.environment import check_ranks, launched
from dpo.core.machine import commit, device_name, peak_memory_gb, versions
from dpo.core.terminal import guarded, visible
from dpo.data import dataset, fits, quarantine, schema
from dpo.data.quarantine import Linted
from dpo.data.sources.load import Rows, load_rows
from dpo.evaluation import measure
from dpo.models import adapters, config_check
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import Recipe, parse
from dpo.recipe.validate import check_values
from dpo.reports import run_report
from dpo.reports.results import headline
from dpo.runs import checkpoints, metrics, output_folder, tracking
from dpo.runs.shared_folders import check_shared
from dpo.training import held_out_scores, publish, resume
from dpo.training.build import make_trainer
from dpo.training.monitoring import alerts
from dpo.training.monitoring.wandb_run import Describe, add_report
from dpo.training.preempt import Leave, run_to_the_end
from dpo.training.preflight.checks import Gates
from dpo.training.stock import Declared


def sharding(trainer: Declared) -> str:
    plugin = trainer.accelerator.state.deepspeed_plugin
    return f", ZeRO-{plugin.zero_stage}" if plugin else ", FSDP" * trainer.is_fsdp_enabled


def shares(trainer: Declared) -> str:
    """The parameters of policy and reference that this process holds under ZeRO-3."""

    def held(model: Any) -> str:
        parameters = trainer.accelerator.unwrap_model(model).parameters()
        # A new adapter is sharded when training starts.
        sharded = [p for p in parameters if hasattr(p, "ds_tensor")]
        held = sum(p.ds_tensor.numel() for p in sharded)
        return f"{held / sum(p.ds_numel for p in sharded):.0%}"

    text = f"each process holds {held(trainer.model)} of the policy"
    return text + (f" and {held(trainer.ref_model)} of the reference" if trainer.ref_model else "")


def describe(recipe: Recipe, trainer: Declared, tracked: str | None) -> None:
    """Say what the run is about to do."""
    args, model = recipe.training, trainer.accelerator.unwrap_model(trainer.model)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    streams = isinstance(trainer.train_dataset, IterableDataset)
    pairs, batch = 0 if streams else len(trainer.train_dataset), recipe.global_batch
    steps = fits.steps_of(recipe, pairs)
    epochs = "" if streams else f" = {steps / math.ceil(pairs / batch):.2f} epochs"
    kind = f"LoRA r={model.active_peft_config.r}" if is_peft_model(model) else "full fine-tuning"
    held_out = len(trainer.eval_dataset) if trainer.eval_dataset is not None else 0
    lines = {
        "recipe": f"{recipe.name} ({recipe.path})",
        "model": f"{recipe.model.model_name_or_path}, {parameters / 1e6:.1f}M parameters, "
        f"{recipe.model.dtype}, {kind}",
        "data": f"{'a stream of' if streams else pairs} pairs to train on, {held_out} held out",
        "batch": f"{args.per_device_train_batch_size} pairs a device × "
        f"{args.gradient_accumulation_steps} accumulated × {args.world_size} processes "
        f"= {batch} pairs"
        + "; what a step learns depends on this division"
        * trainer.composition_matters,
        "steps": f"{steps}{epochs}; β {args.beta:g}, learning rate {args.learning_rate:g}",
        "sharing": trainer.sharing,
        "device": device_name() + sharding(trainer),
        "output": args.output_dir,
        "W&B": tracked or "off",
    }
    if args.sync_ref_model:
        lines["reference"] = f"follows the policy every {args.ref_model_sync_steps} steps"
        lines["reference"] += ", in this run never" * (steps < args.ref_model_sync_steps)
    if trainer.live:
        lines["kept"] = f"no log-probabilities of the reference, which stays live: {trainer.live}"
    if is_deepspeed_zero3_enabled():
        lines["sharded"] = shares(trainer)
    trainer.accelerator.print("\n" + "\n".join(f"{k:>8}  {v}" for k, v in lines.items()) + "\n")


def read_data(recipe: Recipe, rows: tuple[list[Rows], list[Rows]], folder: Path):
    """Lint and tokenise the rows, set the bad ones aside, and say so.

    Returns the tokenizer and the pairs of each split.

    Raises:
        Refusal: the rows are no preferences, or too many of them are wrong.
    """
    state, tokenizer = PartialState(), load_tokenizer(recipe)
    data = dataset.prepare(recipe, rows, tokenizer)
    if state.is_main_process:
        print(*quarantine.said(data, quarantine.set_aside(data, folder)), sep="\n")
    state.wait_for_everyone()
    quarantine.check_share(data, recipe.run.quarantine_limit, folder)
    return tokenizer, data


def train(
    recipe: Recipe,
    folder: Path,
    tokenizer,
    data: dict[str, Linted],
    tracked: str | None,
    leave: Leave,
):
    """Train, or continue, or find that training had ended; save the policy, or a checkpoint if the
    run is asked to leave.

    Returns the tokenised held-out pairs (None without evaluation), the trainer's state, which
    holds all that was logged, and the seconds that it took, loading and the reference included.
    """
    held_out = data["held-out"].pairs if "held-out" in data else None
    trainer = make_trainer(recipe, tokenizer, data["train"].pairs, held_out)
    describe(recipe, trainer, tracked)
    done = folder / output_folder.TRAINED
    trainer.add_callback(Gates(trainer, recipe))
    trainer.add_callback(leave)
    trainer.add_callback(Describe(trainer, recipe, data))
    if done.exists():
        trainer.accelerator.print(f"Trained already: {folder} holds the policy; evaluating it")
        trainer.state = TrainerState.load_from_json(str(done))
        tracking.open_again(trainer)
    else:
        given, others = recipe.training.resume_from_checkpoint, recipe.run.other_processes
        checkpoint = resume.to_go_on_from(trainer, folder, given, others)
        if checkpoint:
            trainer.accelerator.print(f"Continuing from {checkpoint}")
            trainer.add_callback(resume.TakeUp(trainer, checkpoint))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if leave.left:
            step = trainer.state.global_step
            trainer.accelerator.print(
                f"Asked to leave at step {step} of {trainer.state.max_steps}: saved in "
                f"{folder}/checkpoint-{step}; the same command goes on from there"
            )
        else:
            with files.written_to(folder / "model.safetensors"):
                trainer.save_model(_internal_call=True)  # not published before it counts as done
            if recipe.training.save_strategy == "no" and trainer.is_world_process_zero():
                # No checkpoint is there to score again from: the policy counts as done.
                files.write_whole(done, json.dumps(asdict(trainer.state), indent=1))
            scored = held_out_scores.score(trainer)
        if trainer.is_world_process_zero() and not leave.left:
            for weights in folder.glob("*.safetensors"):
                files.follow_umask(weights)
            if scored:
                held_out_scores.keep(folder, scored, schema.digest_of(trainer.eval_dataset))
            files.write_whole(done, json.dumps(asdict(trainer.state), indent=1))
    if recipe.training.push_to_hub and not leave.left:
        publish.publish_or_say(trainer)
    seconds = time.monotonic() - trainer.started
    # Nothing that outlives the trainer may hold its policy and its optimizer's states. DeepSpeed's
    # engine asks for its rank as it goes.
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()  # no process waits for another from here on
    return trainer.eval_dataset, trainer.state, seconds


def show(results: dict, written: list[Path], policies: list[Path]) -> None:
    table = Table(title=results["recipe"], title_justify="left", show_header=False)
    for row in run_report.tiles(results):
        table.add_row(*row)
    Console().print(table)
    for note in run_report.data_notes(results):
        print(f"Data: {visible(note)}")
    print(f"Policy: {', '.join(map(str, policies))}\nReport: {', '.join(map(str, written))}")
    print(f"Next: make evaluate RUN={policies[0]}")


@partial(guarded, alone=False)
@record  # torchrun ends with the error of the process that failed first
def main() -> None:
    launch = launched()
    leave = Leave(launch).listen()
    check_ranks()
    recipe = parse(sys.argv[1:], launch)
    check_values(recipe)
    checkpoints.check_given(recipe)
    config_check.check_model(recipe)
    config_check.check(recipe)
    rows = load_rows(recipe)
    state = PartialState()
    folder = Path(recipe.training.output_dir)
    if state.is_main_process:
        lock = output_folder.claim(recipe)  # noqa: F841  held as long as the process lives
        checkpoints.sweep(folder)
    state.wait_for_everyone()
    cache = [Path(recipe.run.reference_cache)] * recipe.training.precompute_ref_log_probs
    check_shared([folder, *cache], launch.machine)
    if output_folder.finished(folder):
        print(f"Trained and evaluated already: open {folder}/report.html; --restart trains anew")
        return
    tokenizer, data = read_data(recipe, rows, folder)
    tracked = tracking.configure(recipe, folder)
    held_out, trainer_state, seconds = train(recipe, folder, tokenizer, data, tracked, leave)
    if leave.left or leave.asked:
        tracking.finish({})
        leave.end(agreed=leave.left)
    if not state.is_main_process:
        return
    gc.collect()  # policy, reference and optimizer of the training are no longer needed
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    unset_hf_deepspeed_config()  # or ZeRO-3 would shard the models that are loaded next
    started = time.monotonic()
    results = {
        "recipe": recipe.name,
        "model": recipe.model.model_name_or_path,
        "data": {
            "name": ", ".join(dict.fromkeys(source.name for source in rows[0])),
            "rows": {split: linted.rows for split, linted in data.items()},
            "set_aside": {split: linted.set_aside for split, linted in data.items()},
            "left_out": {split: linted.left_out for split, linted in data.items()},
            "lengths": {split: linted.lengths() for split, linted in data.items()},
            "notes": data["train"].notes,
        },
        "global_batch": recipe.global_batch,
        "steps": trainer_state.global_step,
        "beta": recipe.training.beta,
        "loss_type": recipe.training.loss_type,
        "curves": run_report.curves(metrics.read(folder) or trainer_state.log_history),
        "alerts": alerts.alerts_of(trainer_state),
        "settings": output_folder.settings(recipe),
        "versions": versions(),
        "commit": commit(),
        "machine": device_name(),
        "finished": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    policies = [folder]
    if recipe.model.use_peft and recipe.run.save_merged:
        trusted = recipe.training.trust_remote_code
        init = recipe.init | {"dtype": recipe.model.dtype, "trust_remote_code": trusted}
        policies.append(adapters.merge(folder, tokenizer, **init))
    scored = (
        held_out_scores.kept(folder, schema.digest_of(held_out)) if held_out is not None else None
    )
    policy, device = str(policies[-1]), str(state.device)
    results |= measure.after_training(recipe, policy, held_out, device, scored)
    results["seconds"] = {"train": seconds, "evaluate": time.monotonic() - started}
    results["peak_memory_gb"] = peak_memory_gb()
    results["completions"] = metrics.completions(folder)
    written = run_report.write(results, folder)
    add_report(folder, recipe.name)
    tracking.finish(headline(results))
    show(results, written, policies)


if __name__ == "__main__":
    run_to_the_end(main)
