"""A DPO recipe of another tool as one of ours: `make new FROM=` runs this.

Every key is mapped, renamed or left out with the reason, and the recipe says so in its header.
"""

import difflib
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from dpo.core.refusal import Refusal
from dpo.recipe.arguments import decides
from dpo.recipe.convert.brought import Brought, trl
from dpo.recipe.convert.fitting import evaluation, known_names, losses, precision
from dpo.recipe.convert.found import read, refuse_others, told
from dpo.recipe.convert.old_keys import DROPPED, MODULES, RENAMED, TOOLS, tables
from dpo.recipe.convert.reasons import by_key
from dpo.recipe.no_effect import UNWANTED
from dpo.recipe.parse import make_parser, resolve
from dpo.recipe.strict import check_finite
from dpo.recipe.text import sections

# Why TRL's own keys are that a recipe of ours leaves out.
REASONS = {
    "a run trains, and eval_strategy says the rest": "do_train do_eval",
    "the terminal has the lines that matter": "log_level log_level_replica",
    "a run publishes where it is told to: --push_to_hub --hub_model_id": """push_to_hub hub_model_id
        hub_strategy hub_private_repo hub_revision""",
    "a token is no part of a recipe: `hf auth login`": "hub_token",
    "a run goes on by itself": "resume_from_checkpoint",
    "columns are told from the rows": "remove_unused_columns",
    "code of the model's authors is run only where you say so": "trust_remote_code",
    "the machine's cores say it": "dataset_num_proc dataloader_num_workers",
    "the machine says it": "dataloader_pin_memory",
    "prefix sharing saves the same memory": "use_liger_kernel",
    "how activations are computed again changes no result": "gradient_checkpointing_kwargs",
    "a killed run goes on from its optimizer's state": "save_only_model",
    "pairs are dealt by the batch and the seed": "accelerator_config",
}
LEFT_OUT = by_key(REASONS) | UNWANTED
# What null means in TRL where it is not the default: all tokens, all checkpoints, no clipping.
NULL = {"max_length": None, "save_total_limit": None, "max_grad_norm": 0.0}
EMPTY = "it is empty: the default is taken"
VARIABLE = re.compile(r"\$\{[^{}]*\}|\$[A-Za-z_]\w*|\$\([^()]*\)|\{\{[^{}%]*\}\}")
DATA_KEYS = (
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets"),
    *("test_split_size", "column_mapping", "preference_layout"),
)
SAID = {"MODEL": ("model_name_or_path",), "DATASET": DATA_KEYS}


def fill_in(b: Brought, ours: set[str], given: set[str]) -> None:
    """See that no value is left that the file only names: a shell's variable, a template's field.

    Args:
        given: keys of ours that are said elsewhere.

    Raises:
        Refusal: what is learned hangs on one.
    """
    renamed, _ = tables(b.tool)
    for key, value in b.old.items():
        left = VARIABLE.search(str(value))
        new = key if key in ours else renamed.get(key, "").replace(",", " ").partition(" ")[0]
        if not left or not new or "template" in key:
            continue
        if new not in given and decides(new):
            instead = next((f", or give {n}=" for n, keys in SAID.items() if new in keys), "")
            b.refuse(
                f"{key} is {value}: nothing here says what {left[0]} is: write its value{instead}"
            )
        why = "MODEL= and DATASET= go before it" if new in given else f"{left[0]} is not known"
        b.old[key], b.dropped[key] = None, f"{value}: {why}"


def flat(path: Path, keys: dict[str, Any], ours: set[str]) -> dict[str, Any]:
    """The keys, those in a section of the file (`training:`, `[training]`) as those beside it.

    Raises:
        Refusal: a key stands in two sections.
    """
    known = {*ours, *RENAMED, *DROPPED}.union(*(table for tool in TOOLS.values() for table in tool))
    found: dict[str, Any] = {}
    for key, value in keys.items():
        section = isinstance(value, dict) and key not in known and known & {*value}
        for inner, part in value.items() if section else [(key, value)]:
            if inner in found:
                raise Refusal(f"FROM: {path}: {inner} stands twice, one in {key}: keep one")
            found[inner] = part
    return found


def rename(b: Brought, ours: set[str]) -> list[str]:
    """Take what is left of the old keys to ours, or leave it out. Returns those nobody knows."""
    renamed, dropped = tables(b.tool)
    unknown = []
    ratio, steps = b.take("warmup_ratio"), b.take("warmup_steps")
    if ratio or steps:
        b.put("warmup_steps", steps or ratio, of="warmup_steps" if steps else "warmup_ratio")
    for key, value in b.old.items():
        new = key if key in ours else renamed.get(key)
        if value is None and new in NULL and key not in b.dropped:
            b.put(new, NULL[new], of=key)
        elif key == "max_train_samples" and value:
            b.dropped[key] = dropped[key]
            b.warned.append(f"max_train_samples: {value}: all rows are trained on here")
        elif value in (None, "", [], {}):
            b.dropped.setdefault(key, EMPTY)
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
    renamed, dropped = tables(b.tool)
    for key, value in given.items():
        if key not in said and key in renamed and value not in (None, False, 0, "", [], {}):
            b.renamed.append(f"{key} → {renamed[key]}")
        elif key not in said:
            b.dropped[key] = dropped.get(key, "another key says it") if value else EMPTY


def batch(b: Brought, gpus: int | None, asked: int | None) -> list[str]:
    """Keep the original's batch on any number of GPUs. Returns what the header says of it."""
    documented = (1 if b.new.get("use_peft") else 8) if b.tool == "alignment-handbook" else None
    used = asked or gpus or documented or 1
    pairs = int(b.new.get("per_device_train_batch_size", 8))
    accumulated = int(b.new.get("gradient_accumulation_steps", 1))
    b.new["per_device_train_batch_size"] = pairs
    b.new["gradient_accumulation_steps"] = accumulated * used
    said = f"there {pairs} × {accumulated} a GPU"
    if asked or gpus or documented:
        where = "GPUS=" if asked else "the recipe" if gpus else "its documentation"
        said += f", on {used} GPUs by {where}"
    else:
        said += ", and the batch grows with the GPUs: with more than one give their number, GPUS="
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
        Refusal: it cannot be read, is of no tool that is known, or is no DPO.
    """
    parser = make_parser()
    defaults = vars(parser.parse_known_args([])[0])
    keys, documented = read(path)
    keys = flat(path, keys, {*defaults})
    check_finite(keys, lambda key: f"FROM: {path}")
    b = Brought(told(path, keys, {*defaults}), path, dict(keys))
    refuse_others(b)
    fill_in(b, {*defaults}, {*SAID["MODEL"] * bool(model), *DATA_KEYS * bool(data)})
    try:
        (MODULES[b.tool].bring if b.tool in MODULES else trl)(b)
        unknown = rename(b, {*defaults})
        losses(b)
        precision(b)
        evaluation(b)
        known_names(b)
        said = batch(b, documented, gpus)
        account(b, {key: value for key, value in keys.items() if key not in unknown})
    # A value of another kind, or larger than any.
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        text = re.search(r"'(.+)'$", str(error))
        near = (k for k in (b.last, *keys) if text and text[1] in str(keys.get(k)))
        key = next(near, b.last)
        value = textwrap.shorten(str(keys.get(key)), 80)
        b.refuse(f"{key} is {value}: {b.tool} takes no such value there: {error}")
    for at, key in enumerate(unknown):
        if near := difflib.get_close_matches(key, [*defaults, *RENAMED], 1, 0.75):
            unknown[at] = f"{key} (is it {near[0]}?)"
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
    same = {k: v for k, v in b.new.items() if k in defaults and v == defaults[k]}
    b.new = {key: value for key, value in b.new.items() if key not in same}
    plain = [f"{key}: {value}" for key, value in same.items()]
    comments = header(b, name, said, plain, unknown)
    text = f"{comments}\n{sections(b.new, [*defaults])}"
    here = ["--use_cpu", "--tf32=false"]  # whatever this machine can compute in
    resolve(make_parser(), b.path, name, yaml.safe_load(text), here)
    told_of = [line.removeprefix("# ").strip("# ") for line in comments.splitlines()]
    return text, told_of
