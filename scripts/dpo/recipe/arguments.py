"""This repository's own arguments, and which of all arguments decide what is learned."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from dpo.core.refusal import Refusal
from dpo.recipe.flags import mapping_of

if TYPE_CHECKING:
    from trl import TrlParser

    from dpo.recipe.parse import Recipe

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Arguments that say how a run is carried out, and what it shows. All others decide what is learned.
CARRIED_OUT = {
    *("output_dir", "resume_from_checkpoint", "restart", "other_processes", "use_cpu"),
    *("share_prefix", "reference_cache", "quarantine_limit", "save_merged", "keep"),
    "policy_is_reference",
    *("precompute_ref_log_probs", "precompute_ref_batch_size", "dataset_num_proc"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_offloading"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "torch_empty_cache_steps"),
    *("per_device_eval_batch_size", "reward_prompts", "reward_samples"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "report_to", "run_name", "project", "push_to_hub"),
    *("disable_tqdm", "skip_memory_metrics", "deepspeed", "fsdp", "fsdp_config", "debug"),
}
CARRIED_OUT_PREFIXES = ("eval_", "save_", "log_", "logging_", "hub_", "ddp_", "trackio_")
LENGTH = ("max_steps", "num_train_epochs")  # of a run
QUESTIONS = ("prompt", "question", "instruction", "input", "context", "text")  # columns that ask
LAYOUTS = {
    "explicit": "prompt, chosen and rejected: messages, or plain text without a chat template",
    "implicit": "chosen and rejected, which both begin with the prompt",
    "dialogue": "chosen and rejected as text with turns that open with Human: and Assistant:",
    "question": "a question and two answers as plain text, with or without a system prompt",
    "sharegpt": "conversations with `from` and `value`, then chosen and rejected",
    "compared": "two responses or conversations, and which of them is better",
    "rated": "several rated or ranked completions of a prompt: the best against the worst",
    "scored": "one scored response a row: the best of a prompt's against the worst",
}
KEEP = {
    "continue": "all checkpoints that save_total_limit leaves, the policy's weights in them once",
    "use": "no checkpoint",
}
LAYOUTS_SAID = "; ".join(f"{name} ({says})" for name, says in LAYOUTS.items())


def positive(text: str, least: int = 1) -> int:
    """A number on the command line that has to be 1 or more, or `least`."""
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


def not_negative(text: str) -> float:
    """A number on the command line that has to be 0 or more, and finite."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 on")
    return number


NAMES = ("model_name_or_path", "ref_model_name_or_path", "dataset_name")
# Keys of one of `datasets`, and what each may be.
OF_ONE = {
    **dict.fromkeys(("path", "name", "data_dir", "split"), (str,)),
    **{"data_files": (str, list, dict), "columns": (list,), "fraction": (int, float)},
}


def check_kinds(path: Path, keys: dict[str, Any], parser: TrlParser) -> None:
    """See that values of a file are of a kind that its keys can have, where no flag would tell.

    Raises:
        Refusal: a key that takes one value has a list or a mapping, one that needs a value has
            none, or one of `datasets` is no data set.
    """
    several = {action.dest for action in parser._actions if action.nargs}
    kinds = [kind for group in parser.dataclass_types for kind in get_type_hints(group).items()]
    mappings = {key for key, kind in kinds if "dict" in str(kind)} | {"column_mapping", "datasets"}
    for key, value in keys.items():
        if isinstance(value, list) and key not in {*several, "report_to", "debug", "fsdp"}:
            raise Refusal(f"{path}: {key} is {value}: it takes one value, and no list")
        if isinstance(value, dict) and key not in mappings:
            raise Refusal(f"{path}: {key} is {value}: it takes one value, and no mapping")
        if key in NAMES and isinstance(value, (bool, int, float)):
            raise Refusal(f"{path}: {key} is {value}: give a name or a folder, 7 as ./7")
        default = parser.get_default(key)
        if value is None and default is not None and key not in ("max_length", "dtype"):
            raise Refusal(f"{path}: {key} is empty: give a value, or leave it out")
    if keys.get("datasets") is not None:
        check_entries(path, keys["datasets"])


def check_entries(path: Path, entries: Any) -> None:
    """
    Raises:
        Refusal: it is no list of data sets, each with keys of its own.
    """
    form = f"give a list of data sets, each a mapping of {', '.join(OF_ONE)}: - path: owner/name"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refusal(f"{path}: datasets is {entries}: {form}")
    for number, entry in enumerate(entries or [{}], start=1):
        where = f"{path}: datasets, entry {number}"
        if unknown := [str(key) for key in entry if key not in OF_ONE]:
            raise Refusal(f"{where}: no key {', '.join(unknown)}: one of {', '.join(OF_ONE)}")
        if not entry.get("path"):
            raise Refusal(f"{where} has no path: {form}")
        for key, value in entry.items():
            wrong = isinstance(value, bool) or not isinstance(value, (*OF_ONE[key], type(None)))
            if key == "columns" and not wrong:
                names: Any = value or ()
                wrong = not all(isinstance(name, str) for name in names)
            if wrong or (key == "fraction" and value is not None and not 0 < value < float("inf")):
                words = {"columns": "a list of names", "fraction": "a number above 0"}
                raise Refusal(f"{where}: {key} is {value}: give {words.get(key, 'a name')}")


def check_data(recipe: Recipe) -> None:
    """See that what a recipe says of its data can be.

    Raises:
        Refusal: there is no such layout, a mapping is none, or the name of a data set is none.
    """
    given, where = recipe.run.preference_layout, recipe.place("preference_layout")
    if given is not None and given not in LAYOUTS:
        raise Refusal(f"{where}: preference_layout: no layout {given!r}: one of {LAYOUTS_SAID}")
    where = recipe.place("column_mapping")
    mapping_of(recipe.run.column_mapping, f"{where}: column_mapping")
    named = [("datasets", entry.path) for entry in recipe.mixture.datasets]
    for key, name in [("dataset_name", recipe.script.dataset_name), *named]:
        if name is not None and (not name.strip() or name.lstrip().startswith(("{", "["))):
            raise Refusal(
                f"{recipe.place(key)}: {key} is {name!r}: give the name of a data set, a folder or "
                "a file; several stand in the recipe, as datasets: [{path: …}, {path: …}]"
            )


# What a run is told apart by, whether its recipe states it or leaves it at its default.
ALWAYS_SHOWN = (
    *("model_name_or_path", "dataset_name", "beta", "loss_type", "seed"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
    *("max_steps", "max_length", "max_grad_norm", "bf16", "use_peft"),
)


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    """Of all arguments' values those that a run is told apart by; no limit of steps is none."""
    limited = values.get("max_steps", -1) > 0
    left_out = "num_train_epochs" if limited else "max_steps"
    return {key: values.get(key) for key in ALWAYS_SHOWN if key != left_out}


def decides(key: str) -> bool:
    """Whether an argument decides what is learned."""
    return key not in CARRIED_OUT and not key.startswith(CARRIED_OUT_PREFIXES)


# Other defaults than TRL's.
DEFAULTS = {
    "precompute_ref_log_probs": True,
    "hub_strategy": "end",  # use/push.py
    "logging_nan_inf_filter": False,  # it would log a mean for a loss that is not finite: alerts.py
}


def argument(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class RunArguments:
    """This repository's own arguments: how data are read, which model is the reference, and how a
    run is carried out. None changes the form of the loss or the optimizer."""

    # --- starting and going on ---
    restart: bool = argument(
        default=False,
        help="Start over: an output folder that holds an earlier run is moved aside, never "
        "deleted. Without it a run continues from its last whole checkpoint, and a finished "
        "one is left alone.",
    )
    other_processes: bool = argument(
        default=False,
        help="Go on from a checkpoint that another number of processes wrote. The batch "
        "stays the recipe's; sums are rounded and dropout is drawn otherwise. A checkpoint of "
        "ZeRO's shards cannot be split otherwise and is refused all the same.",
    )
    # --- speed and the reference ---
    ref_model_name_or_path: str | None = argument(
        default=None,
        help="The reference where it is not what the policy starts from, as in rounds that share "
        "one: a folder, a run's among them, or a name of the hub; a whole model with the policy's "
        "tokens. The loss then does not begin at its constant.",
    )
    ref_model_revision: str = argument(
        default="main", help="Its branch, tag or commit, if it is of the hub."
    )
    share_prefix: bool = argument(
        default=True,
        help="Compute the prompt of a pair once and no padding, score completion tokens "
        "only, and deal the pairs of a batch to processes by length: the same losses, sooner. "
        "With false, and precompute_ref_log_probs false, the run is stock TRL, but for its "
        "faults (docs/speed.md).",
    )
    reference_cache: str = argument(
        default="cache/reference",
        help="Folder that keeps the reference's log-probabilities for later runs; "
        "`make clean-cache` empties it. --precompute_ref_log_probs false keeps the reference "
        "in memory and scores as it trains.",
    )
    policy_is_reference: bool = argument(
        default=True,
        help="The policy starts as its reference: before step 1 its log-ratios are seen to "
        "be zero and the loss to be the constant of its type. Say false for one that starts "
        "elsewhere on purpose. With ref_model_name_or_path nothing need be said: there the scores "
        "of the reference are held against the reference itself.",
    )
    # --- data ---
    preference_layout: str | None = argument(
        default=None,
        help="How the data's rows hold preferences: explicit, implicit, dialogue, question, "
        "sharegpt, compared, rated or scored (docs/data.md). By default their columns tell.",
    )
    column_mapping: str | None = argument(
        default=None,
        help="Columns of other names, ours before theirs: {prompt: question, chosen: good} "
        'in a recipe, "prompt=question chosen=good" on the command line.',
    )
    chat_template_path: str | None = argument(
        default=None,
        help="Chat template for a model that brings none, or a wrong one: a .jinja file, or "
        "the name of one that TRL brings along. It is saved with the policy.",
    )
    quarantine_limit: float = argument(
        default=0.05,
        help="Share of a split's rows that may be wrong. Each is set aside and named; with "
        "more than this share of them a run does not start. What max_length leaves out is no "
        "fault and counts apart.",
    )
    split_seed: int = argument(
        default=42,
        help="Draws the pairs that test_split_size holds out. Apart from seed, so that runs of "
        "several seeds are measured on the same pairs.",
    )
    # --- results ---
    save_merged: bool = argument(
        default=True,
        help="Beside a trained LoRA adapter, write the model that it makes of its base, in "
        "`merged`: it loads without peft, and takes the space of the whole model.",
    )
    keep: str = argument(
        default="continue",
        help="What a finished run keeps beside its policy, settings and reports: continue (all "
        "checkpoints that save_total_limit leaves, with the optimizer's states; weights that are "
        "the policy's take no place a second time) or use (no checkpoint: nothing to go on from). "
        "Of a run that has ended the same command with it tidies up.",
    )
    reward_prompts: int = argument(
        default=128,
        help="Held-out prompts that the reference and the trained policy answer after "
        "training, where the data names its true reward. Fewer is faster, and the interval "
        "around the result wider.",
    )
    reward_samples: int = argument(
        default=2, help="Answers that each of the two gives to each of them."
    )
