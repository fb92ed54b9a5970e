"""Going on from a checkpoint as if there had been no interruption.

transformers restores weights, optimizer, schedule, random draws and the place in the data. What it
forgets is the part of the log that was not written yet: losses and metrics since the last logged
step, and the tokens seen so far; and with `sync_ref_model` the reference, which has moved.
"""

import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import TRAINER_STATE_NAME

from dpo.core import files, machine
from dpo.core.refusal import Refusal
from dpo.data import schema
from dpo.recipe.parse import Recipe
from dpo.runs import checkpoints, output_folder, tracking
from dpo.training import held_out_scores
from dpo.training.preempt import Leave
from dpo.training.stock import Declared

# In a checkpoint, where the reference moves. Apart from the policy's weights: vLLM and SGLang load
# all that lies beside a configuration.
REFERENCE = "reference/weights.safetensors"


def to_go_on_from(
    trainer: Declared, folder: Path, given: str | None, other_processes: bool
) -> Path | None:
    """The checkpoint that a run goes on from: the newest in its `folder` that is as it was written,
    or the one `given`, of another run only until there is one; None if there is none. All processes
    get the first one's answer.

    Raises:
        Refusal: the run does not fit it, or the one given is no checkpoint or is broken.
    """
    answer: list[Any] = [None, None]
    if trainer.is_world_process_zero():
        try:
            if not given or Path(given).resolve().parent != folder.resolve():
                answer[0] = checkpoints.newest(folder)
            begins = given is not None and answer[0] is None
            if begins:
                answer[0] = Path(given)
                checkpoints.checked(answer[0])
            if answer[0]:
                checkpoints.check_fits(answer[0], trainer.about, other_processes, begins)
                if trainer.args.sync_ref_model and not (answer[0] / REFERENCE).is_file():
                    raise Refusal(
                        f"{answer[0]} was written without {REFERENCE}, the reference as it had "
                        "moved by then (sync_ref_model): train anew with --restart"
                    )
                if trainer.args.load_best_model_at_end:
                    best_before(answer[0])
        except ValueError as wrong:
            answer[1] = (
                f"--resume_from_checkpoint {given} cannot be gone on from: {wrong}. Give another "
                "checkpoint; without the flag the newest whole one of the output folder is taken, "
                "or the run begins anew"
            )
        except Refusal as refusal:
            answer[1] = refusal.code
    broadcast_object_list(answer)
    if answer[1]:
        raise Refusal(answer[1])
    return answer[0]


def best_before(checkpoint: Path) -> str | None:
    """The best checkpoint of a run until this one was written, which `load_best_model_at_end` ends
    with: beside it, for a run may have been moved since, or of the run that this one went on from.

    Raises:
        Refusal: it is not there any more.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if not state.best_model_checkpoint:
        return None
    stated = Path(state.best_model_checkpoint)
    for path in (checkpoint.parent / stated.name, stated):
        if (path / TRAINER_STATE_NAME).is_file():
            then = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME)).log_history
            # Else another run lies there by now.
            if json.dumps(then) == json.dumps(state.log_history[: len(then)]):
                return str(path)
    raise Refusal(
        f"{checkpoint} cannot be gone on from: {stated}, the best checkpoint so far, is not there, "
        f"nor in {checkpoint.parent}: put it back, or leave load_best_model_at_end out"
    )


def check_best(state: TrainerState) -> None:
    """See that the best checkpoint, which transformers has ended with, was there.

    Raises:
        Refusal: it was not, and the last weights are in its place.
    """
    best = state.best_model_checkpoint
    if best and not Path(best).is_dir():
        raise Refusal(
            f"load_best_model_at_end: {best}, the best checkpoint, is gone: put it back, and the "
            "same command ends the run"
        )


def bring_along(run: Path, folder: Path) -> None:
    """Copy what another run has logged, which this one goes on with in its own `folder`; what lies
    past the checkpoint is taken away where it is read."""
    for name in (output_folder.METRICS, output_folder.COMPLETIONS, output_folder.DRIFT):
        if (run / name).is_file() and not (folder / name).exists():
            files.write_whole(folder / name, (run / name).read_bytes())


def unlogged(trainer: Declared) -> dict[str, Any]:
    """What a trainer will log with the next steps, and has not yet. Called by all processes."""
    losses = trainer.accelerator.gather(trainer._tr_loss.reshape(1)).tolist()
    return {
        "losses": losses,  # since the last logged step, summed, by process
        "last_logged_step": trainer._globalstep_last_logged,
        "metrics": {name: [*values] for name, values in trainer._metrics["train"].items()},
        "tokens": trainer._total_train_tokens,
    }


def moving(trainer: Declared) -> dict[str, torch.nn.Parameter]:
    """The weights of a reference that follows the policy; each process has the same order."""
    return dict(trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters())


def gathered(parameter: torch.nn.Parameter, written: bool = False):
    """The whole of a parameter that ZeRO-3 shards, within; what the first process has `written`
    into it then goes to the others."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if written else None)


@torch.no_grad()
def save_reference(trainer: Declared, folder: Path) -> None:
    """Write the reference as it is now, whole, whatever shards it. Called by all processes."""
    weights = {}
    for name, parameter in moving(trainer).items():
        with gathered(parameter):
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if trainer.is_world_process_zero():
                weights[name] = whole.detach().cpu().clone()
    if trainer.is_world_process_zero():
        (folder / REFERENCE).parent.mkdir(exist_ok=True)
        save_file(weights, folder / REFERENCE)


@torch.no_grad()
def load_reference(trainer: Declared, folder: Path) -> None:
    """Give the reference the weights that it had moved to. Called by all processes."""
    with safe_open(folder / REFERENCE, framework="pt") as file:
        for name, parameter in moving(trainer).items():
            with gathered(parameter, written=True):
                weight = file.get_tensor(name)
                if isinstance(parameter, DTensor):
                    weight = weight.to(parameter.device)
                    weight = distribute_tensor(weight, parameter.device_mesh, parameter.placements)
                if not hasattr(parameter, "ds_id") or trainer.is_world_process_zero():
                    parameter.copy_(weight)


class Settled(TrainerCallback):
    """Knows, while a step is computed, what the trainer had not logged when it began: a run that
    fails within the step saves itself as it was then. Of a single process only: of several, the
    others would wait for the one that failed."""

    def __init__(self, trainer: Declared):
        self.trainer, self.unlogged = trainer, None

    def on_step_begin(self, args, state, control, **kwargs):
        if args.world_size == 1:
            self.unlogged = unlogged(self.trainer)

    # From here to the end of the step, weights are neither those before it nor those after.
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.unlogged = None


class TakeUp(TrainerCallback):
    """Gives a trainer that goes on from a checkpoint what the interrupted one had not logged, and
    the reference as it had moved."""

    def __init__(self, trainer: Declared, checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint
        self.manifest = checkpoints.read(checkpoint)

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, left = self.trainer, self.manifest["unlogged"]
        if args.load_best_model_at_end:
            state.best_model_checkpoint = best_before(self.checkpoint)
        if trainer.args.sync_ref_model:
            load_reference(trainer, self.checkpoint)
        losses, rank = left["losses"], trainer.accelerator.process_index
        same = len(losses) == trainer.accelerator.num_processes
        trainer._tr_loss += losses[rank] if same else sum(losses) / len(losses)
        trainer._globalstep_last_logged = left["last_logged_step"]
        trainer._metrics["train"].update(left["metrics"])
        trainer._total_train_tokens = left["tokens"]
        trainer.started = time.monotonic() - self.manifest["seconds"]


def to_the_end(
    trainer: Declared, recipe: Recipe, leave: Leave
) -> tuple[Dataset | None, TrainerState, float]:
    """Train, or go on, or find that training had ended; save the policy, or a checkpoint if the
    run is asked to stop.

    Returns the tokenised held-out pairs (None without evaluation), the trainer's state, which
    holds all that was logged, and the seconds that it took, loading and the reference included.
    """
    folder = Path(recipe.training.output_dir)
    done = folder / output_folder.TRAINED
    if done.exists():
        trainer.accelerator.print(f"Trained already: {folder} holds the policy; evaluating it")
        trainer.state = TrainerState.load_from_json(str(done))
        tracking.open_again(trainer)
    else:
        given, others = recipe.training.resume_from_checkpoint, recipe.run.other_processes
        checkpoint = to_go_on_from(trainer, folder, given, others)
        if checkpoint:
            trainer.accelerator.print(f"Continuing from {checkpoint}")
            if trainer.is_world_process_zero():
                bring_along(checkpoint.parent, folder)
            trainer.add_callback(TakeUp(trainer, checkpoint))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if said := trainer.keep_scores():
            trainer.accelerator.print(said)
        if leave.left:
            step = trainer.state.global_step
            trainer.accelerator.print(
                f"Asked to stop at step {step} of {trainer.state.max_steps}: saved in "
                f"{folder}/checkpoint-{step}; the same command goes on from there"
            )
        else:
            if trainer.args.load_best_model_at_end:
                check_best(trainer.state)
            with files.written_to(folder / "model.safetensors"):
                trainer.save_model()
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
    seconds = time.monotonic() - trainer.started
    # Nothing that outlives the trainer may hold its policy and its optimizer's states. DeepSpeed's
    # engine asks for its rank as it goes.
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()  # no process waits for another from here on
    return trainer.eval_dataset, trainer.state, seconds


def make_room() -> None:
    """Give back what training held, for the models that are loaded next."""
    clear_device_cache(garbage_collection=True)
    machine.give_back()
    unset_hf_deepspeed_config()  # or ZeRO-3 would shard them
