"""A DPO recipe of another tool as one of ours: `make new FROM=` runs this.

Every key is mapped, renamed or left out with the reason, and the recipe says so in its header.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from dpo.brought import Brought, trl
from dpo.foreign_recipes import read, refuse_others, told
from dpo.from_tools import axolotl, llama_factory, open_instruct
from dpo.old_keys import DROPPED, RENAMED
from dpo.other_tools import TOOLS
from dpo.recipe import make_parser, resolve
from dpo.recipe_text import sections
from dpo.undone import AGAINST, NEVER
from dpo.values import LOSS_TYPES, SMOOTHED

TAKE = {"axolotl": axolotl, "LLaMA-Factory": llama_factory, "open-instruct": open_instruct}
# TRL's own keys that a recipe of ours leaves out, each with why.
LEFT_OUT = {
    **dict.fromkeys(("do_train", "do_eval"), "a run trains, and eval_strategy says the rest"),
    **dict.fromkeys(("log_level", "log_level_replica"), "the terminal has the lines that matter"),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision"),
        "a run publishes where it is told to: --push_to_hub --hub_model_id",
    ),
    "hub_token": "a token is no part of a recipe: `hf auth login`",
    "resume_from_checkpoint": "a run goes on by itself",
    "remove_unused_columns": "columns are told from the rows",
    "trust_remote_code": "code of the model's authors is run only where you say so",
    **dict.fromkeys(("dataset_num_proc", "dataloader_num_workers"), "the machine's cores say it"),
    "dataloader_pin_memory": "the machine says it",
    "use_liger_kernel": "prefix sharing saves the same memory",
    "gradient_checkpointing_kwargs": "how activations are computed again changes no result",
    "save_only_model": "a killed run goes on from its optimizer's state",
    "accelerator_config": "pairs are dealt by the batch and the seed",
    **NEVER,
    **AGAINST,
}
DATA_KEYS = (
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets"),
    *("test_split_size", "column_mapping", "preference_layout"),
)


def rename(b: Brought, ours: set[str]) -> list[str]:
    """Take what is left of the old keys to ours, or leave it out. Returns those nobody knows."""
    renamed, dropped = TOOLS.get(b.tool, ({}, {}))
    renamed = {k: v for k, v in RENAMED.items() if k not in dropped} | renamed
    dropped = DROPPED | dropped
    unknown = []
    ratio, steps = b.take("warmup_ratio"), b.take("warmup_steps")
    if ratio or steps:
        b.put("warmup_steps", steps or ratio, of="warmup_steps" if steps else "warmup_ratio")
    for key, value in b.old.items():
        new = key if key in ours else renamed.get(key)
        if value in (None, "", [], {}):
            b.dropped[key] = "it is empty"
        elif key in LEFT_OUT or new in LEFT_OUT:
            b.dropped[key] = LEFT_OUT.get(key) or LEFT_OUT[new]
            if key == "trust_remote_code" and value is True:
                b.warned.append("trust_remote_code: add it if the model brings code that you trust")
        elif new not in ours:
            if new or key in dropped:
                b.dropped[key] = f"it is {new}" if new else dropped[key]
            else:
                unknown.append(key)
        elif new in b.new:
            b.dropped[key] = f"{new} is said already"
        else:
            b.put(new, value, of=key)
    return unknown


def account(b: Brought, given: dict[str, Any]) -> None:
    """Name the keys that were taken together with others, or were empty: none goes unsaid."""
    said = {*b.new, *b.dropped, *(line.split(" → ")[0].split(":")[0] for line in b.renamed)}
    said |= {key.split(":")[0] for key in b.dropped}
    renamed, dropped = TOOLS.get(b.tool, ({}, {}))
    for key, value in given.items():
        if key in said:
            continue
        if value in (None, False, 0, "", [], {}):
            b.dropped[key] = "it is empty"
        elif new := renamed.get(key) or RENAMED.get(key):
            b.renamed.append(f"{key} → {new}")
        else:
            b.dropped[key] = dropped.get(key, "another key says it")


def precision(b: Brought) -> None:
    new, dtype = b.new, str(b.new.pop("dtype", "")).removeprefix("torch.")
    if new.get("load_in_4bit") or new.get("load_in_8bit"):
        new["use_peft"] = True
    if dtype in ("bfloat16", "float16", "auto") and not new.get("use_peft"):
        b.dropped["dtype"] = f"{dtype}: weights that are trained stay in float32"
        b.warned.append(
            f"the original trains weights in {dtype}, where an update of a small learning rate is "
            "lost; here they are in float32, and bf16 computes"
        )
    elif dtype in ("bfloat16", "float16", "auto"):
        new["dtype"] = dtype
    adapter = [k for k in new if k.startswith("lora_") or k in ("use_dora", "use_rslora")]
    for key in [] if new.get("use_peft") else adapter:
        b.dropped[key] = f"{new.pop(key)}: without an adapter all weights are trained"
    if "lora_dropout" in new and new.get("disable_dropout", True):
        b.dropped["lora_dropout"] = f"{new.pop('lora_dropout')}: disable_dropout is on"
    for half in ("bf16", "fp16"):
        if new.get(half) in ("auto", half == "bf16"):
            b.dropped[half] = f"{new.pop(half)}: the default serves"
    if new.get("tf32") == "auto":
        b.dropped["tf32"] = "auto: the default serves"
        del new["tf32"]
    if new.get("attn_implementation") not in (None, "eager", "sdpa"):
        b.dropped["attn_implementation"] = (
            f"{new.pop('attn_implementation')}: prefix sharing has attention of its own"
        )


def losses(b: Brought) -> None:
    types = b.new.get("loss_type", ["sigmoid"])
    types = [types] if isinstance(types, str) else types
    types = ["aot_unpaired" if name == "aot_pair" else name for name in types]
    if other := [name for name in types if name not in LOSS_TYPES]:
        b.refuse(f"loss_type {', '.join(other)} is none of TRL's DPO: {', '.join(LOSS_TYPES)}")
    b.new["loss_type"] = types
    if b.new.get("label_smoothing") and not {*types} & {*SMOOTHED}:
        b.dropped["label_smoothing"] = (
            f"{b.new.pop('label_smoothing')}: {types[0]} smooths no labels"
        )
        b.warned.append("label_smoothing: TRL smooths labels of robust, exo_pair and aot alone")


def evaluation(b: Brought) -> None:
    new = b.new
    for what in ("eval", "save"):
        if new.get(f"{what}_strategy") is False:  # YAML's no
            new[f"{what}_strategy"] = "no"
        if new.get(f"{what}_strategy", "steps") != "steps" and f"{what}_steps" in new:
            b.dropped[f"{what}_steps"] = f"{new.pop(f'{what}_steps')}: {what}_strategy has no steps"
    if "eval_strategy" not in new and "eval_steps" in new and new.get("test_split_size"):
        new["eval_strategy"] = "steps"
    if new.get("datasets") and not new.get("test_split_size"):
        if new.get("eval_strategy", "no") != "no":
            b.warned.append("nothing is held out of a mixture: evaluation is off")
        new["eval_strategy"] = "no"
    if new.get("eval_strategy", "no") == "no":
        if new.pop("load_best_model_at_end", None):
            b.dropped["load_best_model_at_end"] = "without evaluation none is best"
            b.warned.append("the original asks for its best model, and evaluates none")
        for key in [k for k in new if k.startswith(("eval_", "per_device_eval", "metric_for"))]:
            if key != "eval_strategy":
                b.dropped[key] = f"{new.pop(key)}: nothing is evaluated"
        new.pop("greater_is_better", None)
    if new.get("save_strategy") == "no":
        b.dropped["save_strategy"] = f"{new.pop('save_strategy')}: a killed run goes on from one"
        new.pop("save_steps", None)
    if not {"save_steps", "save_strategy"} & {*new}:
        new["save_steps"] = new.get("eval_steps", 100)
    new.setdefault("save_total_limit", 1)
    trackers = new.get("report_to") or "wandb"
    trackers = [trackers] if isinstance(trackers, str) else trackers
    kept = [name for name in trackers if name in ("wandb", "trackio", "none")]
    if lost := [name for name in trackers if name not in (*kept, "all")]:
        b.dropped["report_to"] = f"{', '.join(lost)}: W&B and a local page are the trackers here"
    new["report_to"] = (kept or ["wandb"])[0]


def known_names(b: Brought) -> None:
    """Leave out optimizers and schedules that Transformers has not."""
    removed = {"adamw_hf": "adamw_torch", "adamw": "adamw_torch"}
    b.new["optim"] = removed.get(b.new.get("optim"), b.new.get("optim", "adamw_torch_fused"))
    for key, kinds in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
        value = b.new.get(key)
        if value is not None and value not in [kind.value for kind in kinds]:
            b.dropped[key] = f"{b.new.pop(key)}: Transformers has none of this name"
            b.warned.append(f"{key}: {value} is not there: the default is taken")


def batch(b: Brought, gpus: int | None, asked: int | None) -> list[str]:
    """Keep the original's batch on any number of GPUs. Returns what the header says of it."""
    documented = (1 if b.new.get("use_peft") else 8) if b.tool == "alignment-handbook" else None
    used = asked or gpus or documented or 1
    pairs = int(b.new.get("per_device_train_batch_size", 8))
    accumulated = int(b.new.get("gradient_accumulation_steps", 1))
    b.new["per_device_train_batch_size"] = pairs
    b.new["gradient_accumulation_steps"] = accumulated * used
    if asked or gpus or documented:
        where = "GPUS=" if asked else "the recipe" if gpus else "its documentation"
        said = f"there {pairs} × {accumulated} a GPU, on {used} GPUs by {where}"
    else:
        said = f"there {pairs} × {accumulated} a GPU, and the batch grows with the GPUs: with more "
        said += "than one give their number, GPUS="
        b.warned.append(
            f"the original's batch changes with the GPUs: {pairs * accumulated} pairs a GPU. Here "
            f"it is {pairs * accumulated} on any number; GPUS=8 would make it 8 times as many"
        )
    share = f"{pairs} pairs × {accumulated * used} accumulated = {pairs * accumulated * used}"
    return [f"Batch: {share}, on any number of GPUs that divides it;", f"{said}."]


def header(b: Brought, name: str, said: list[str], plain: list[str], unknown: list[str]) -> str:
    """The recipe's comments: what it is, and what became of every key that is not in it."""
    reasons: dict[str, list[str]] = {}
    for key, why in b.dropped.items():
        reasons.setdefault(why, []).append(key)
    notes = [f"{', '.join(keys)} ({why})" for why, keys in reasons.items()]
    data = b.new.get("dataset_name") or ", ".join(
        dict.fromkeys(d["path"] for d in b.new.get("datasets", []))
    )
    parts = [
        f"{Path(b.new['model_name_or_path']).name} on {data or 'data to be named'}.",
        f"Source: {b.path.name}, a recipe of {b.tool}, brought here by make new FROM=.",
        *([f"Renamed: {', '.join(b.renamed)}."] if b.renamed else []),
        *([f"Left out, as the default: {', '.join(plain)}."] if plain else []),
        *([f"Left out: {'; '.join(notes)}."] if notes else []),
        *([f"Not known, left out: {', '.join(unknown)}."] if unknown else []),
        *(f"Mind: {warning}." for warning in b.warned),
        "Published: none.",
        "Machine: not said.",
        " ".join(said),
        "Reached: not run yet.",
        f"Run: make train RECIPE={name}",
    ]
    how = {"width": 98, "initial_indent": "# ", "subsequent_indent": "#   "}
    wrapped = (
        textwrap.wrap(p, break_on_hyphens=False, break_long_words=False, **how) for p in parts
    )
    return "\n".join(line for lines in wrapped for line in lines)


def convert(
    path: Path,
    name: str,
    model: str = "",
    data: dict[str, Any] | None = None,
    gpus: int | None = None,
) -> tuple[str, list[str]]:
    """The text of the recipe that one of another tool becomes, and what to tell of the way.

    Args:
        model: in the place of the one that it names.
        data: keys of data, in the place of those that it names.
        gpus: how many the original ran on, if it does not say.

    Raises:
        SystemExit: it cannot be read, is of no tool that is known, or is no DPO.
    """
    parser = make_parser()
    defaults = vars(parser.parse_known_args([])[0])
    keys, documented = read(path)
    b = Brought(told(path, keys, {*defaults}), path, dict(keys))
    refuse_others(b)
    TAKE.get(b.tool, trl)(b)
    unknown = rename(b, {*defaults})
    losses(b)
    precision(b)
    evaluation(b)
    known_names(b)
    said = batch(b, documented, gpus)
    account(b, {key: value for key, value in keys.items() if key not in unknown})
    if model:
        b.new["model_name_or_path"] = model
    if data:
        b.new = {k: v for k, v in b.new.items() if k not in DATA_KEYS} | data
    b.new["output_dir"] = f"outputs/{name}"
    if not b.new.get("model_name_or_path"):
        b.refuse("it names no model: give one with MODEL=")
    for key in ("model_name_or_path", "dataset_name"):
        if not isinstance(b.new.get(key, ""), str):
            b.refuse(f"{key} is {b.new[key]}: a recipe's keys are not nested: give one name")
    if not b.new.get("dataset_name") and not b.new.get("datasets"):
        b.refuse("it names no data: give them with DATASET=")
    plain = []
    for key, value in [*b.new.items()]:
        if key in defaults and value == defaults[key]:
            plain.append(f"{key}: {value}")
            del b.new[key]
    comments = header(b, name, said, plain, unknown)
    text = f"{comments}\n{sections(b.new, [*defaults])}"
    here = ["--use_cpu", "--tf32=false"]  # whatever this machine can compute in
    resolve(make_parser(), b.path, name, yaml.safe_load(text), here)
    told_of = [line.removeprefix("# ").strip("# ") for line in comments.splitlines()]
    return text, told_of
