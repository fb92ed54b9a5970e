"""From a recipe to TRL's DPOTrainer: the one way in which every run here is trained."""

from __future__ import annotations

import os

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import ProgressCallback
from trl import DPOTrainer, get_peft_config, get_quantization_config

from dpo.recipe import Recipe


class StepLines(ProgressCallback):
    """The progress bar with its ETA, and one short line a log instead of a dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        prefix = "eval_" if "eval_loss" in logs else ""
        if f"{prefix}loss" not in logs or f"{prefix}rewards/margins" not in logs:
            return
        tqdm.write(
            f"{'held-out' if prefix else 'train':>8}  step {state.global_step}/{state.max_steps}  "
            f"loss {float(logs[f'{prefix}loss']):.4f}  "
            f"margin {float(logs[f'{prefix}rewards/margins']):+.3f}  "
            f"accuracy {float(logs[f'{prefix}rewards/accuracies']):.2f}"
        )


def make_trainer(recipe: Recipe, train: Dataset, held_out: Dataset | None) -> DPOTrainer:
    """TRL's DPOTrainer with the recipe's model, reference and adapter.

    Policy and reference are loaded alike: same weights, same dtype, same attention.

    Raises:
        SystemExit: launched for DeepSpeed, and an argument keeps accelerate from using it. The
            processes would train side by side, unsharded, and say nothing.
    """
    model, args = recipe.model, recipe.training
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    trainer = DPOTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != launched:
        raise SystemExit(f"{launched} processes were launched and do not see each other")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not trainer.is_deepspeed_enabled:
        raise SystemExit("DeepSpeed was asked for and --use_cpu turns it off: leave --use_cpu out")
    trainer.remove_callback(ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(StepLines)
    return trainer
