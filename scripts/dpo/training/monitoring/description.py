"""What a run is about to do, as it says in the terminal."""

import math

from accelerate.utils import is_peft_model
from datasets import IterableDataset
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from dpo.core.machine import device_name
from dpo.data import fits
from dpo.recipe.parse import Recipe
from dpo.training.trainer import FastDPOTrainer


def shares(trainer: FastDPOTrainer) -> str:
    """The parameters of policy and reference that this process holds under ZeRO-3."""

    def held(model: PreTrainedModel) -> str:
        parameters = trainer.accelerator.unwrap_model(model).parameters()
        # A new adapter is sharded when training starts.
        sharded = [p for p in parameters if hasattr(p, "ds_tensor")]
        held = sum(p.ds_tensor.numel() for p in sharded)
        return f"{held / sum(p.ds_numel for p in sharded):.0%}"

    text = f"each process holds {held(trainer.model)} of the policy"
    return text + (f" and {held(trainer.ref_model)} of the reference" if trainer.ref_model else "")


def describe(recipe: Recipe, trainer: FastDPOTrainer, tracked: str | None) -> None:
    """Say it, and where W&B has the run, if it is `tracked`."""
    args, model = recipe.training, trainer.accelerator.unwrap_model(trainer.model)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    streams = isinstance(trainer.train_dataset, IterableDataset)
    pairs, batch = 0 if streams else len(trainer.train_dataset), recipe.global_batch
    steps = fits.steps_of(recipe, pairs)
    epochs = "" if streams else f" = {steps / math.ceil(pairs / batch):.2f} epochs"
    kind = f"LoRA r={model.active_peft_config.r}" if is_peft_model(model) else "full fine-tuning"
    held_out = len(trainer.eval_dataset) if trainer.eval_dataset is not None else 0
    plugin = trainer.accelerator.state.deepspeed_plugin
    sharding = f", ZeRO-{plugin.zero_stage}" if plugin else ", FSDP" * trainer.is_fsdp_enabled
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
        "device": device_name() + sharding,
        "output": args.output_dir,
        "W&B": tracked or "off",
    }
    if recipe.run.ref_model_name_or_path is not None:
        start = "not the policy's start: no loss begins at its constant"
        lines["reference"] = f"{recipe.reference[0]}, {start}"
    if args.sync_ref_model:
        moves = f"follows the policy every {args.ref_model_sync_steps} steps"
        moves += ", in this run never" * (steps < args.ref_model_sync_steps)
        lines["reference"] = "; ".join([*filter(None, [lines.get("reference")]), moves])
    if trainer.live:
        lines["kept"] = f"no log-probabilities of the reference, which stays live: {trainer.live}"
    if is_deepspeed_zero3_enabled():
        lines["sharded"] = shares(trainer)
    trainer.accelerator.print("\n" + "\n".join(f"{k:>8}  {v}" for k, v in lines.items()) + "\n")
