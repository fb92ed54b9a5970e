"""Values that no run should start with: out of range, or at odds with each other.

What TRL and transformers refuse as they parse is not repeated here. What they would refuse only
once the model is loaded, or would train with and say nothing, is.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers.trainer_utils import HubStrategy

from dpo.core.refusal import Refusal
from dpo.losses import START
from dpo.recipe.arguments import KEEP
from dpo.recipe.hub_names import ABROAD
from dpo.recipe.no_effect import silently_undone, unbuildable
from dpo.recipe.parse import Recipe
from dpo.recipe.strict import check_finite

ADAPTED = ("use_rslora", "use_dora")
LOSS_TYPES = (*START, "sft")
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
METRICS = (
    *("loss", "aux_loss", "entropy", "mean_token_accuracy"),
    *(f"{of}/{which}" for of in ("rewards", "logps", "logits") for which in ("chosen", "rejected")),
    *("rewards/accuracies", "rewards/margins"),
)
NAMED = ", ".join(METRICS)
# Built on the difference of two scores, in which the term that f-DPO cannot compute cancels.
OF_A_DIFFERENCE = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"),
)
COUNTS = """per_device_eval_batch_size dataloader_prefetch_factor ddp_bucket_cap_mb
    ref_model_sync_steps precompute_ref_batch_size dataset_num_proc lora_r reward_samples"""
MAPPINGS = """model_init_kwargs lr_scheduler_kwargs liger_kernel_config
    gradient_checkpointing_kwargs activation_checkpointing_kwargs"""
STEPS = "a number of steps, or a share of them below 1"
HERE = "a folder of this machine, with / and no drive"


def within(low: float, high: float, ends: str = "[)") -> Callable[[float], bool]:
    """Whether a number is in an interval, to which an end with a square bracket belongs."""
    at_low, at_high = ends[0] == "[", ends[1] == "]"
    return lambda v: low < v < high or (at_low and v == low) or (at_high and v == high)


positive, not_negative = within(0, math.inf, "()"), within(0, math.inf)
share, below_one, counts = within(0, 1, "[]"), within(0, 1), within(1, math.inf, "[]")


# Keys, what is allowed, and in words. A key without a value is not looked at.
RANGES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("beta", positive, "a number above 0, such as 0.1: the larger, the nearer to the reference"),
    ("learning_rate", positive, "a number above 0, such as 5.0e-7, or 1.0e-5 with LoRA"),
    (COUNTS, counts, "1 or more"),
    ("max_steps", lambda v: v == -1 or v >= 1, "1 or more, or leave it out: num_train_epochs"),
    # The marks of a chat template around a question and an answer are a dozen tokens.
    ("max_length", within(16, math.inf), "16 tokens or more; 1024 is TRL's default"),
    ("label_smoothing", within(0, 0.5), "0 or more, below 0.5: a share of wrong labels"),
    ("ld_alpha", share, "0 to 1, or leave it out"),
    ("loss_weights", lambda v: all(map(positive, v)), "numbers above 0, one for each loss_type"),
    ("neftune_noise_alpha", positive, "a number above 0, or leave it out; 5 is common"),
    # f-DPO's range: at its ends the divergence would be divided by zero, and is a KL divergence.
    (
        "f_alpha_divergence_coef",
        within(0, 1, "()"),
        "a number between 0 and 1; what 0 and 1 stand for is f_divergence_type forward_kl and "
        "reverse_kl",
    ),
    ("pad_to_multiple_of", lambda v: v == "auto" or v >= 1, "auto, or 1 or more"),
    ("discopop_tau", positive, "a number above 0; 0.05 is the paper's"),
    ("f_divergence_type", lambda v: v in DIVERGENCES, f"one of {', '.join(DIVERGENCES)}"),
    ("ref_model_mixup_alpha", share, "0 to 1"),
    ("max_grad_norm", not_negative, "0 or more; 0 clips nothing"),
    ("weight_decay", below_one, "0 or more, below 1"),
    ("adam_beta1", below_one, "0 or more, below 1; 0.9 is common"),
    ("adam_beta2", below_one, "0 or more, below 1; 0.999 is common"),
    ("adam_epsilon", positive, "a number above 0; 1.0e-8 is common"),
    ("warmup_steps", not_negative, STEPS),
    ("logging_steps eval_steps save_steps", positive, STEPS),
    ("eval_delay", not_negative, "a number of steps or epochs"),
    ("ddp_timeout", counts, "a number of seconds"),
    ("keep", KEEP.__contains__, " or ".join(f"{k} ({says})" for k, says in KEEP.items())),
    ("save_total_limit", counts, "1 or more, or leave it out to keep every checkpoint"),
    ("router_aux_loss_coef dataloader_num_workers reward_prompts", not_negative, "0 or more"),
    ("seed data_seed split_seed", within(0, 2**32), "0 to 2³² - 1"),
    ("lora_alpha", positive, "a number above 0; r to 2 r is common"),
    ("lora_task_type", lambda v: v == "CAUSAL_LM", "CAUSAL_LM, or leave it out"),
    ("lora_dropout", below_one, "0 or more, below 1"),
    ("metric_for_best_model", lambda v: v.removeprefix("eval_") in METRICS, f"one of {NAMED}"),
    ("train_sampling_strategy", lambda v: v in ("random", "sequential"), "random or sequential"),
    (MAPPINGS, lambda v: isinstance(v, dict), "a mapping"),
    (
        "ref_model_name_or_path",
        lambda v: bool(v.strip()),
        "a folder or a name of the hub, or leave it out",
    ),
    ("output_dir reference_cache", lambda v: not ABROAD.search(v), HERE),
    ("quarantine_limit", share, "0 to 1, a share of the rows"),
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
    if len(types) < len(args.loss_type):
        yield "loss_type", "one of them is there twice: give each once, and its loss_weights"
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
    instead = "leave it out, or --share_prefix false"
    if recipe.run.share_prefix and args.torch_compile:
        yield "torch_compile", f"it would compile anew for the lengths of every batch: {instead}"
    if recipe.run.share_prefix and args.neftune_noise_alpha:
        why = "its noise goes by the shape of a batch, which shared prefixes change"
        yield "neftune_noise_alpha", f"{why}: {instead}"
    if args.sync_ref_model and model.use_peft:
        yield "sync_ref_model", "an adapter has no reference beside it to move: leave one of them"
    if not model.use_peft:
        stated = sorted(k for k in recipe.stated if k.startswith("lora_") or k in ADAPTED)
        if stated and "use_peft" not in {*recipe.stated, *recipe.flags}:
            yield stated[0], "without use_peft all weights are trained: add it, or leave this out"
        if model.load_in_4bit or model.load_in_8bit:
            yield "use_peft", "weights in 4 or 8 bits cannot be trained: an adapter on them can"
    if model.use_peft and "lm_head" in (model.lora_target_modules or ()):
        yield "lora_target_modules", "TRL would not train an adapter on lm_head: leave it out"
    yield from unbuildable(args)
    dealt: Any = args.accelerator_config
    other = dealt.split_batches or dealt.dispatch_batches or not dealt.even_batches
    if other or not dealt.use_seedable_sampler:
        names = "split_batches, dispatch_batches, even_batches and use_seedable_sampler"
        why = "pairs are dealt to the processes by the recipe's batch and seed"
        yield "accelerator_config", f"{why}: leave out {names}"
    if args.save_strategy == "best" and args.eval_strategy == "no":
        yield "save_strategy", "there is no best without an eval_strategy: give steps or epoch"
    if args.save_strategy == "best" and not args.metric_for_best_model:
        yield "save_strategy", "say by what: metric_for_best_model, such as loss"
    if args.eval_on_start and args.eval_strategy == "no":
        yield "eval_on_start", "there are no held-out pairs without an eval_strategy: leave it out"
    if args.dataloader_multiprocessing_context and not args.dataloader_num_workers:
        yield "dataloader_multiprocessing_context", "there are no dataloader_num_workers to start"
    if "use_safetensors" in (args.model_init_kwargs or {}):
        yield "model_init_kwargs", "weights are read as data alone: leave use_safetensors out"
    if args.activation_offloading and args.device.type == "cpu":
        yield "activation_offloading", "there is no GPU whose memory it would spare: leave it out"
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        lost = old in recipe.flags or new not in recipe.flags
        if {old, new} <= {*recipe.stated} and recipe.stated[old] != recipe.stated[new] and lost:
            yield old, f"it is the old name of {new}, which is another: leave one of them out"
    if args.push_to_hub and constants.HF_HUB_OFFLINE:
        yield "push_to_hub", "HF_HUB_OFFLINE is set, and nothing can be sent: unset one of them"
    if args.push_to_hub and not args.hub_model_id:
        yield "push_to_hub", "say where to: hub_model_id: org/name"
    if args.push_to_hub and HubStrategy(args.hub_strategy).value != "end":
        yield "hub_strategy", "choose end: the policy is sent; optimizer states are pickles"
    given, folder = args.resume_from_checkpoint, Path(args.output_dir)
    if recipe.run.restart and given and Path(given).resolve().parent == folder.resolve():
        yield "restart", "it moves that checkpoint aside with its run: leave one of them out"
    if args.auto_find_batch_size:
        yield "auto_find_batch_size", "it would change the global batch: leave it out"


def check_values(recipe: Recipe) -> None:
    """Refuse values out of range, or at odds with each other.

    Raises:
        Refusal: one line with the file, or ARGS, the key, its value, and what to give instead.
    """
    parts = (recipe.script, recipe.training, recipe.model, recipe.mixture, recipe.run)
    values = {key: value for part in parts for key, value in vars(part).items()}
    for keys, allowed, words in RANGES:
        for key in keys.split():
            if values[key] is not None and not allowed(values[key]):
                raise Refusal(f"{recipe.place(key)}: {key} is {values[key]}: give {words}")
    check_finite(values, recipe.place)
    for key, words in itertools.chain(at_odds(recipe), silently_undone(recipe)):
        shown = getattr(values[key], "value", values[key])  # of a choice its name
        raise Refusal(f"{recipe.place(key)}: {key} is {shown}: {words}")
