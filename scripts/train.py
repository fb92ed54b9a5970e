"""Train a policy with DPO as a recipe says. One straight line:

    recipe → data → policy + reference → preflight → DPOTrainer → evaluation → report

    make train                                   # the embedded default, on any machine
    make train RECIPE=qwen-ultrafeedback CONFIG=zero2 GPUS=8 ARGS="--beta 0.05"

which launches, with the accelerate config of the machine,

    accelerate launch --config_file accelerate_configs/cpu.yaml scripts/train.py \\
        --config recipes/smollm2-sentiment.yaml

Flags after the recipe win over it. `--help` lists them all: our own, and then TRL's.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import sys
from functools import partial
from pathlib import Path

from dpo.core.terminal import at_once, guarded
from dpo.recipe.parse import Recipe, look, parse

if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(lambda: look(sys.argv[1:]), alone=False)

import time

from accelerate import PartialState
from torch.distributed.elastic.multiprocessing.errors import record

from dpo.core.environment import check_ranks, launched
from dpo.data import dataset, schema
from dpo.data.quarantine import Linted
from dpo.data.sources.load import load_rows
from dpo.evaluation import measure
from dpo.models import adapters, config_check
from dpo.plan.arithmetic import processor
from dpo.plan.measured import beside
from dpo.plan.measured.measure import Measure
from dpo.recipe.validate import check_values
from dpo.reports import run_report
from dpo.reports.model_card import card
from dpo.reports.results import headline
from dpo.runs import checkpoints, keeping, output_folder, publish, tracking
from dpo.runs.shared_folders import check_shared
from dpo.training import held_out_scores, resume
from dpo.training.build import make_trainer
from dpo.training.monitoring import alerts
from dpo.training.monitoring.description import describe
from dpo.training.monitoring.wandb_run import Describe, add_report
from dpo.training.preempt import Leave, run_to_the_end
from dpo.training.preflight.checks import Gates
from dpo.use import push


def train(recipe: Recipe, tokenizer, data: dict[str, Linted], tracked: str | None, leave: Leave):
    """Train, and let go of all that is built here: the evaluation needs its memory."""
    held_out = data["held-out"].pairs if "held-out" in data else None
    trainer = make_trainer(recipe, tokenizer, data["train"].pairs, held_out)
    describe(recipe, trainer, tracked)
    looking_on = Describe(trainer, recipe, data), Measure(trainer)
    for callback in (Gates(trainer, recipe), leave, *looking_on):
        trainer.add_callback(callback)
    return resume.to_the_end(trainer, recipe, leave)


@partial(guarded, alone=False)
@record  # torchrun ends with the error of the process that failed first
def main() -> None:
    launch = launched()
    leave = Leave(launch).listen()
    check_ranks()

    # Recipe: whatever can be seen to be wrong is refused before anything heavy is read.
    recipe = parse(sys.argv[1:], launch)
    check_values(recipe)
    checkpoints.check_given(recipe)
    if recipe.training.push_to_hub:
        publish.check_can_send(recipe.training.hub_model_id or "", "model")
    config_check.check_model(recipe)
    config_check.check(recipe)

    # Data, and the run's folder, claimed.
    rows = load_rows(recipe)
    state, folder = PartialState(), Path(recipe.training.output_dir)
    if state.is_main_process:
        lock = output_folder.claim(recipe)  # noqa: F841  held as long as the process lives
        checkpoints.sweep(folder)
    state.wait_for_everyone()
    cache = [Path(recipe.run.reference_cache)] * recipe.training.precompute_ref_log_probs
    check_shared([folder, *cache], launch.machine)
    if output_folder.finished(folder):
        print(f"Trained and evaluated already: open {folder}/report.html; --restart trains anew")
        if state.is_main_process:
            print(keeping.keep(folder, recipe.run.keep))
        return
    tokenizer, data = dataset.read(recipe, rows, folder)
    tracked = tracking.configure(recipe, folder)
    if state.device.type == "cpu":
        processor.libraries()  # for the plan at the end: before a model is there

    # Policy and reference, preflight, DPOTrainer.
    held_out, trained, seconds = train(recipe, tokenizer, data, tracked, leave)
    if leave.left or leave.asked:
        tracking.finish({})
        leave.end(agreed=leave.left)
    if not state.is_main_process:
        return

    # Evaluation of the policy that was saved against its reference, and the report.
    resume.make_room()
    started, policies = time.monotonic(), [folder]
    if recipe.model.use_peft and recipe.run.save_merged:
        policies.append(adapters.merge(folder, tokenizer, **adapters.loaded_as(recipe)))
    scored = held_out_scores.kept(folder, schema.digest_of(held_out)) if held_out else None
    results = run_report.about(recipe, rows, data, trained, alerts.alerts_of(trained))
    policy, device = str(policies[-1]), str(state.device)
    results |= measure.after_training(recipe, policy, held_out, device, scored)
    results |= {"measured": beside.at_the_end(folder, recipe, data)}
    results |= run_report.spent(folder, train=seconds, evaluate=time.monotonic() - started)
    written = run_report.write(results, folder)
    card.write(folder, results)
    add_report(folder, recipe.name)
    tracking.finish(headline(results))
    kept = keeping.keep(folder, recipe.run.keep, ours=True)
    run_report.show(results, written, policies, kept)
    if recipe.training.push_to_hub:
        push.at_the_end(folder)


if __name__ == "__main__":
    run_to_the_end(main)
