"""From a recipe to TRL's DPOTrainer: the one way in which every run here is trained."""

from __future__ import annotations

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


def hold_global_batch(recipe: Recipe) -> int:
    """Keep the recipe's global batch on any number of processes; return it in pairs.

    As written, per-device batch × accumulation is the batch of one optimizer step. Several
    processes share it: they accumulate less, and where that is not enough take fewer pairs at a
    time, so that what is learned stays the same.

    Raises:
        SystemExit: the processes do not divide the global batch.
    """
    args = recipe.training
    processes, largest = args.world_size, args.per_device_train_batch_size
    batch = largest * args.gradient_accumulation_steps
    if batch % processes:
        divisors = [str(n) for n in range(1, batch + 1) if batch % n == 0]
        raise SystemExit(
            f"{recipe.path}: {processes} processes cannot share a global batch of {batch} pairs "
            f"evenly: run on {', '.join(divisors)}, or change per_device_train_batch_size × "
            "gradient_accumulation_steps"
        )
    share = batch // processes
    micro = max(n for n in range(1, min(largest, share) + 1) if share % n == 0)
    args.per_device_train_batch_size = micro
    args.gradient_accumulation_steps = share // micro
    return batch


def make_trainer(recipe: Recipe, train: Dataset, held_out: Dataset | None) -> DPOTrainer:
    """TRL's DPOTrainer with the recipe's model, reference and adapter.

    Policy and reference are loaded alike: same weights, same dtype, same attention.
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
    trainer.remove_callback(ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(StepLines)
    return trainer
