"""Values that no run should start with: out of range, or at odds with each other.

What TRL and transformers refuse as they parse is not repeated here. What they would refuse only
once the model is loaded, or would train with and say nothing, is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from dpo.recipe import Recipe
from dpo.start import START

ADAPTED = ("use_rslora", "use_dora")
LOSS_TYPES = (*START, "sft")
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# Built on the difference of two scores, in which the term that f-DPO cannot compute cancels.
OF_A_DIFFERENCE = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"),
)


def positive(value: float) -> bool:
    return 0 < value < math.inf


def not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def share(value: float) -> bool:
    return 0 <= value <= 1


def below_one(value: float) -> bool:
    return 0 <= value < 1


def counts(value: float) -> bool:
    return value >= 1


# Key, what is allowed, and in words. A key without a value is not looked at.
RANGES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("beta", positive, "a number above 0, such as 0.1: the larger, the nearer to the reference"),
    ("learning_rate", positive, "a number above 0, such as 5.0e-7, or 1.0e-5 with LoRA"),
    ("per_device_eval_batch_size", counts, "1 or more"),
    ("max_steps", lambda v: v == -1 or v >= 1, "1 or more, or leave it out: num_train_epochs"),
    # The marks of a chat template around a question and an answer are a dozen tokens.
    ("max_length", lambda v: v >= 16, "16 tokens or more; 1024 is TRL's default"),
    ("label_smoothing", lambda v: 0 <= v < 0.5, "0 or more, below 0.5: a share of wrong labels"),
    ("ld_alpha", share, "0 to 1, or leave it out"),
    ("loss_weights", lambda v: all(map(positive, v)), "numbers above 0, one for each loss_type"),
    ("discopop_tau", positive, "a number above 0; 0.05 is the paper's"),
    ("f_divergence_type", lambda v: v in DIVERGENCES, f"one of {', '.join(DIVERGENCES)}"),
    ("router_aux_loss_coef", not_negative, "0 or more"),
    ("ref_model_mixup_alpha", share, "0 to 1"),
    ("ref_model_sync_steps", counts, "1 or more"),
    ("precompute_ref_batch_size", counts, "1 or more"),
    ("max_grad_norm", not_negative, "0 or more; 0 clips nothing"),
    ("weight_decay", below_one, "0 or more, below 1"),
    ("adam_beta1", below_one, "0 or more, below 1; 0.9 is common"),
    ("adam_beta2", below_one, "0 or more, below 1; 0.999 is common"),
    ("adam_epsilon", positive, "a number above 0; 1.0e-8 is common"),
    ("warmup_steps", not_negative, "a number of steps, or a share of them below 1"),
    ("logging_steps", positive, "a number of steps, or a share of them below 1"),
    ("eval_steps", positive, "a number of steps, or a share of them below 1"),
    ("save_steps", positive, "a number of steps, or a share of them below 1"),
    ("save_total_limit", counts, "1 or more, or leave it out to keep every checkpoint"),
    ("dataloader_num_workers", not_negative, "0 or more"),
    ("dataset_num_proc", counts, "1 or more"),
    ("seed", lambda v: 0 <= v < 2**32, "0 to 2³² - 1"),
    ("data_seed", lambda v: 0 <= v < 2**32, "0 to 2³² - 1"),
    ("lora_r", counts, "1 or more"),
    ("lora_alpha", positive, "a number above 0; r to 2 r is common"),
    ("lora_dropout", below_one, "0 or more, below 1"),
    ("quarantine_limit", share, "0 to 1, a share of the rows"),
    ("reward_prompts", not_negative, "0 or more"),
    ("reward_samples", counts, "1 or more"),
]


# Keys that TRL or transformers take and do nothing with.
NEVER = {
    "padding_free": "TRL has switched it off: leave it out, share_prefix has no padding",
    "label_smoothing_factor": "no loss of DPO looks at it: leave it out, or label_smoothing",
    "ignore_bias_buffers": "nothing looks at it: leave it out",
    "batch_eval_metrics": "there are no metrics beside DPO's own: leave it out",
    "include_for_metrics": "there are no metrics beside DPO's own: leave it out",
}
# Here they would win, unseen, over the keys of their own, which are checked.
OF_THEIR_OWN = {"dtype", "torch_dtype", "attn_implementation", "revision", "trust_remote_code"}


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
    for key in ("hub_model_id", "hub_private_repo", "hub_revision", "hub_always_push"):
        yield key, "push_to_hub", args.push_to_hub, "true"
    # Beside each other steps win, as is well known; not so where the recipe states the steps.
    lost = "num_train_epochs" in recipe.flags and "max_steps" not in recipe.flags
    yield "num_train_epochs", "max_steps", args.max_steps < 1 or not lost, "-1 (or left out)"
    warm = schedule not in ("constant", "greedy", "reduce_lr_on_plateau")
    yield "warmup_steps", "lr_scheduler_type", warm, "one with a warmup (constant_with_warmup)"
    shaped = schedule not in ("constant", "constant_with_warmup")
    yield "lr_scheduler_kwargs", "lr_scheduler_type", shaped, "one that takes them"
    adam = any(name in args.optim.value for name in ("adam", "ademamix", "lion"))
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        yield key, "optim", adam, "a kind of Adam"
    yield "liger_kernel_config", "use_liger_kernel", args.use_liger_kernel, "true"
    workers = args.dataloader_num_workers > 0 or "dataloader_num_workers" not in recipe.chosen
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
    for key in ("dataset_name", "dataset_config", "dataset_streaming"):
        yield key, "datasets", not mixed, "left out: a mixture states them for each of its own"
    yield "streaming", "datasets", mixed, "stated: beside dataset_name it is dataset_streaming"


def silently_undone(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Keys that are stated and would do nothing, each with why and what to do.

    A switch that is turned off on purpose, or by a flag over what the recipe states, takes with it
    what stands beside it.
    """
    parts = (recipe.training, recipe.model, recipe.script, recipe.mixture)
    values = {key: value for part in parts for key, value in vars(part).items()}

    def stated(key: str) -> bool:
        there = key in recipe.chosen or key in recipe.flags
        return there and values[key] not in (None, False, recipe.defaults.get(key))

    for key, words in NEVER.items():
        if stated(key):
            yield key, words
    if twice := OF_THEIR_OWN & {*(recipe.training.model_init_kwargs or {})}:
        yield "model_init_kwargs", f"give {' and '.join(sorted(twice))} as a key of its own"
    for key, other, works, needed in without_effect(recipe):
        off = other in {*recipe.chosen, *recipe.flags} and values[other] in (False, "no")
        overruled = other in recipe.flags and key not in recipe.flags
        if stated(key) and not (works or off or overruled):
            yield key, f"it does nothing unless {other} is {needed}: leave it out, or give that"


def numbers(value: Any) -> Iterator[float]:
    """All floats in a value, however deep."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)


def at_odds(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Keys whose values do not go together, each with what is wrong and what to do."""
    args, model = recipe.training, recipe.model
    types = set(args.loss_type)
    # Adam and its kin move every weight by about the learning rate, whatever the gradient. Weights
    # are about 0.02 wide: at 0.1 the first step would leave nothing of them.
    if args.learning_rate >= 0.1 and args.optim != "sgd":
        yield "learning_rate", "the first step would destroy the model: 1.0e-7 to 1.0e-3 is common"
    if args.max_steps < 1 and not positive(args.num_train_epochs):
        yield "num_train_epochs", "nothing would be trained: give more than 0, or max_steps"
    if args.max_steps < 1 and (recipe.script.dataset_streaming or recipe.mixture.streaming):
        yield "max_steps", "a stream has no end: give the number of steps"
    if unknown := types - {*LOSS_TYPES}:
        yield "loss_type", f"no {', '.join(sorted(unknown))}: choose from {', '.join(LOSS_TYPES)}"
    if args.label_smoothing and not types & {*SMOOTHED}:
        yield "label_smoothing", f"only {', '.join(SMOOTHED)} smooth labels: leave it out"
    if "exo_pair" in types and not args.label_smoothing:
        yield "label_smoothing", "exo_pair takes its logarithm: give 0.001, as its paper does"
    if args.f_divergence_type != "reverse_kl" and (others := types - {*OF_A_DIFFERENCE}):
        yield "f_divergence_type", f"not for loss_type {', '.join(sorted(others))}: reverse_kl is"
    # aot sorts the pairs that would be weighted; of the others TRL weighs the loss in place, and
    # PyTorch has no gradient then.
    if args.use_weighting and (others := types & {"aot", "aot_unpaired", "hinge", "sft"}):
        words = f"TRL cannot weigh the pairs of loss_type {', '.join(sorted(others))}"
        yield "use_weighting", f"{words}: leave one of them out"
    moves = args.sync_ref_model or recipe.script.dataset_streaming or recipe.mixture.streaming
    if args.precompute_ref_log_probs and moves:
        why = "the reference moves" if args.sync_ref_model else "a stream's rows are not there yet"
        yield "precompute_ref_log_probs", f"{why}, and it is scored as it goes: leave this out"
    if recipe.run.share_prefix and args.torch_compile:
        yield (
            "torch_compile",
            "it would compile anew for the lengths of every batch: leave it out, or --share_prefix "
            "false",
        )
    if recipe.run.share_prefix and args.neftune_noise_alpha:
        yield (
            "neftune_noise_alpha",
            "its noise goes by the shape of a batch, which shared prefixes change: leave it "
            "out, or --share_prefix false",
        )
    if args.sync_ref_model and model.use_peft:
        yield "sync_ref_model", "an adapter has no reference beside it to move: leave one of them"
    if not model.use_peft:
        stated = sorted(k for k in recipe.chosen if k.startswith("lora_") or k in ADAPTED)
        if stated and "use_peft" not in {*recipe.chosen, *recipe.flags}:
            yield stated[0], "without use_peft all weights are trained: add it, or leave this out"
        if model.load_in_4bit or model.load_in_8bit:
            yield "use_peft", "weights in 4 or 8 bits cannot be trained: an adapter on them can"
    if model.use_peft and "lm_head" in (model.lora_target_modules or ()):
        yield "lora_target_modules", "TRL would not train an adapter on lm_head: leave it out"
    if args.auto_find_batch_size:
        yield "auto_find_batch_size", "it would change the global batch: leave it out"


def check_values(recipe: Recipe) -> None:
    """Refuse values out of range, or at odds with each other.

    Raises:
        SystemExit: one line with the file, the key, its value, and what to give instead.
    """
    parts = (recipe.script, recipe.training, recipe.model, recipe.mixture, recipe.run)
    values = {key: value for part in parts for key, value in vars(part).items()}
    for key, allowed, words in RANGES:
        if values[key] is not None and not allowed(values[key]):
            raise SystemExit(f"{recipe.path}: {key} is {values[key]}: give {words}")
    for key, value in values.items():
        if not all(map(math.isfinite, numbers(value))):
            raise SystemExit(f"{recipe.path}: {key} is {value}: give a finite number")
    for key, words in (*at_odds(recipe), *silently_undone(recipe)):
        raise SystemExit(f"{recipe.path}: {key} is {values[key]}: {words}")
