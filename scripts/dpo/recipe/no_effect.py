"""Keys that may be stated and would do nothing, work against what runs, batches and checkpoints are
here, or name what cannot be made. Each is refused with why."""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from dpo.core.refusal import unbroken
from dpo.recipe.convert.reasons import by_key
from dpo.recipe.parse import Recipe

# Keys that TRL or transformers take and do nothing with.
REASONS = {
    "TRL has switched it off, share_prefix has no padding": "padding_free",
    "no loss of DPO looks at it, label_smoothing is DPO's": "label_smoothing_factor",
    "nothing looks at it": "ignore_bias_buffers label_names length_column_name",
    "there are no metrics beside DPO's own": """batch_eval_metrics include_for_metrics
        prediction_loss_only eval_accumulation_steps eval_do_concat_batches
        eval_use_gather_object""",
    "pairs are evaluated while the run trains, in its numerics": "bf16_full_eval fp16_full_eval",
    "a run predicts nothing, make evaluate has the answers": "do_predict",
    "losses are means over pairs, not over tokens": "average_tokens_across_devices",
    "what must be restored always is": "restore_callback_states_from_checkpoint",
    # These would work against what runs, checkpoints and batches are here.
    "a run that is asked to stop saves in any case, and would not hear": "enable_jit_checkpoint",
    "a run that goes on would take other pairs than one that was not stopped": "ignore_data_skip",
    "the machines share their folder, and would write the same files at once": "save_on_each_node",
    "pairs would be trained on in an order of chance": "dataloader_in_order",
    "losses, gradients and weights are looked at in any case": "debug",
    "CONFIG= says how a run is sharded": "deepspeed fsdp fsdp_config",
}
UNWANTED = {key: f"{reason}: leave it out" for key, reason in by_key(REASONS).items()}
# Here they would win, unseen, over the keys of their own, which are checked.
OF_THEIR_OWN = {"dtype", "torch_dtype", "attn_implementation", "revision", "trust_remote_code"}
# Other files than those that are checked, hashed and evaluated.
ELSEWHERE = {"subfolder", "variant", "gguf_file", "quantization_config", "config"}


def optimizer(args: TrainingArguments, **changed: Any) -> tuple[type, dict[str, Any]] | None:
    """Class and arguments of the optimizer, with other values for some of `args`; None if they hang
    on the model.

    Raises:
        ImportError, ValueError: it is not installed, or not so built.
    """
    stated = copy.copy(args)
    vars(stated).update(changed)
    try:
        return Trainer.get_optimizer_cls_and_kwargs(stated)
    except ValueError:
        if args.optim.startswith(("galore", "apollo", "lomo", "adalomo")):
            return None
        raise


def without_effect(recipe: Recipe) -> Iterator[tuple[str, str, bool, str]]:
    """Keys that mean something only beside another: the key, the other, whether the key has an
    effect as things are, and what the other is where it has."""
    args, mixed = recipe.training, bool(recipe.mixture.datasets)
    evaluates, schedule = args.eval_strategy != "no", args.lr_scheduler_type
    for what in ("eval", "save", "logging"):
        other = f"{what}_strategy"
        yield f"{what}_steps", other, getattr(args, other) == "steps", "steps"
    for key in ("eval_delay", "do_eval", "metric_for_best_model", "dataset_test_split"):
        yield key, "eval_strategy", evaluates, "steps or epoch"
    named = args.metric_for_best_model is not None
    yield "greater_is_better", "metric_for_best_model", named, "stated"
    whole = recipe.mixture.test_split_size is None
    yield "dataset_test_split", "test_split_size", whole, "left out"
    yield "split_seed", "test_split_size", not whole, "stated"
    for key in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        yield key, "gradient_checkpointing", bool(args.activation_checkpointing), "true"
    for key in ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"):
        yield key, "report_to", "trackio" in (args.report_to or ()), "trackio"
    for key in ("model_id", "private_repo", "revision", "always_push", "strategy"):
        # A flag that says false is meant to leave them without one.
        sent = args.push_to_hub or "push_to_hub" in recipe.flags
        yield f"hub_{key}", "push_to_hub", sent, "true"
    own = recipe.run.ref_model_name_or_path is not None
    yield "ref_model_revision", "ref_model_name_or_path", own, "stated"
    # Beside each other steps win, as is well known; not so where the recipe states the steps.
    lost = "num_train_epochs" in recipe.flags and "max_steps" not in recipe.flags
    yield "num_train_epochs", "max_steps", args.max_steps < 1 or not lost, "-1 (or left out)"
    warm = schedule not in ("constant", "greedy", "reduce_lr_on_plateau")
    yield "warmup_steps", "lr_scheduler_type", warm, "one with a warmup (constant_with_warmup)"
    shaped = schedule not in ("constant", "constant_with_warmup")
    yield "lr_scheduler_kwargs", "lr_scheduler_type", shaped, "one that takes them"
    built = optimizer(args)
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        takes = built != optimizer(args, **{key: recipe.defaults[key]})
        yield key, "optim", takes or built is None, "a kind of Adam"
    given = (args.optim_args or "").split(",")
    fewer = (",".join(given[:at] + given[at + 1 :]) for at in range(len(given)))
    takes = all(built != optimizer(args, optim_args=part) for part in fewer)
    yield "optim_args", "optim", takes or built is None, "one that takes all of them"
    low_rank = args.optim.startswith(("galore", "apollo"))
    yield "optim_target_modules", "optim", low_rank, "a kind of GaLore or APOLLO"
    yield "liger_kernel_config", "use_liger_kernel", args.use_liger_kernel, "true"
    workers = args.dataloader_num_workers > 0 or "dataloader_num_workers" not in recipe.stated
    yield "dataloader_persistent_workers", "dataloader_num_workers", workers, "1 or more"
    alpha = args.f_divergence_type == "alpha_divergence"
    yield "f_alpha_divergence_coef", "f_divergence_type", alpha, "alpha_divergence"
    yield "discopop_tau", "loss_type", "discopop" in args.loss_type, "discopop"
    for key in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
        yield key, "sync_ref_model", args.sync_ref_model, "true"
    scored = args.precompute_ref_log_probs
    yield "precompute_ref_batch_size", "precompute_ref_log_probs", scored, "true"
    for key in ("bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant"):
        yield key, "load_in_4bit", recipe.model.load_in_4bit, "true"
    # TRL sets all dropout of the policy to 0, an adapter's too.
    kept = not args.disable_dropout or not recipe.model.lora_dropout
    yield "lora_dropout", "disable_dropout", kept, "false, which keeps the model's own as well"
    for key in ("dataset_name", "dataset_config", "dataset_streaming", "dataset_train_split"):
        yield key, "datasets", not mixed, "left out: a mixture states them for each of its own"
    yield "streaming", "datasets", mixed, "stated: beside dataset_name it is dataset_streaming"


def silently_undone(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Keys that are stated and would do nothing, each with why and what to do.

    A switch that is turned off on purpose, or by a flag over what the recipe states, takes with it
    what stands beside it.
    """
    parts = (recipe.training, recipe.model, recipe.script, recipe.mixture, recipe.run)
    values = {key: value for part in parts for key, value in vars(part).items()}

    def stated(key: str) -> bool:
        there, default = key in recipe.stated or key in recipe.flags, recipe.defaults.get(key)
        off = values[key] is False and default is not True
        return there and not off and values[key] not in (None, default)

    for key, words in UNWANTED.items():
        if stated(key):
            yield key, words
    if twice := OF_THEIR_OWN & {*(recipe.training.model_init_kwargs or {})}:
        yield "model_init_kwargs", f"give {' and '.join(sorted(twice))} as a key of its own"
    if other := ELSEWHERE & {*(recipe.training.model_init_kwargs or {})}:
        words = "give a folder that holds the model as it is to be, or load_in_4bit"
        yield "model_init_kwargs", f"{' and '.join(sorted(other))} is not looked at here: {words}"
    for key, other, works, needed in without_effect(recipe):
        off = other in {*recipe.stated, *recipe.flags} and values[other] in (False, "no")
        overruled = other in recipe.flags and key not in recipe.flags
        if stated(key) and not (works or off or overruled):
            yield key, f"it does nothing unless {other} is {needed}: leave it out, or give that"


def missing(tracker: str) -> str | None:
    """Why transformers cannot report to a tracker; None if it can."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda half_made: None  # MLflow's, as it goes
    try:
        get_reporting_integration_callbacks([tracker])[0]()
    except (ImportError, RuntimeError, ValueError) as error:
        return unbroken(error)
    finally:
        sys.unraisablehook = hook
    return None


def unbuildable(args: TrainingArguments) -> Iterator[tuple[str, str]]:
    """Keys of which the libraries say only when training begins that they cannot be, each with what
    they say."""

    try:
        optimizer(args)
    except (ImportError, ValueError) as error:
        yield "optim_args" if args.optim_args else "optim", unbroken(error)
    descent = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    steps = max(args.max_steps, 1000)
    how = (descent, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs)
    try:
        scheduler = get_scheduler(args.lr_scheduler_type, *how)
        for rate in getattr(scheduler, "lr_lambdas", ()):
            for step in range(0, steps, steps // 1000):  # past the warmup too
                rate(step)
    except (ArithmeticError, TypeError, ValueError) as error:
        if args.lr_scheduler_kwargs:
            yield "lr_scheduler_kwargs", unbroken(error)
        yield "lr_scheduler_type", f"it needs lr_scheduler_kwargs, a mapping: {unbroken(error)}"
    if args.use_liger_kernel and not is_liger_kernel_available():
        yield "use_liger_kernel", "pip install liger-kernel, or leave it out"
    for tracker in args.report_to or ():
        # W&B's environment is set first (tracking.py).
        if tracker != "wandb" and (why := missing(tracker)):
            yield "report_to", why
