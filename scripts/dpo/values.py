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
    if args.use_weighting and types & {"aot", "aot_unpaired"}:
        yield "use_weighting", "aot sorts the pairs that would be weighted: leave one of them out"
    if args.sync_ref_model and model.use_peft:
        yield "sync_ref_model", "an adapter has no reference beside it to move: leave one of them"
    if not model.use_peft:
        if stated := sorted(key for key in recipe.chosen if key.startswith("lora_")):
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
    values = vars(recipe.training) | vars(recipe.model) | vars(recipe.run)
    for key, allowed, words in RANGES:
        if values[key] is not None and not allowed(values[key]):
            raise SystemExit(f"{recipe.path}: {key} is {values[key]}: give {words}")
    for key, words in at_odds(recipe):
        raise SystemExit(f"{recipe.path}: {key} is {values[key]}: {words}")
