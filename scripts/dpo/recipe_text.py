"""A recipe as text: its lines, and its keys in sections."""

from __future__ import annotations

import math
from typing import Any

import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from dpo.arguments import BATCH, decides

MODEL = {*ModelConfig.__dataclass_fields__, "trust_remote_code", "chat_template_path"}
DATA = {
    *ScriptArguments.__dataclass_fields__,
    *DatasetMixtureConfig.__dataclass_fields__,
    *("max_length", "truncation_mode", "column_mapping", "preference_layout"),
}
LOSS = {
    *("beta", "loss_type", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type"),
    *("f_alpha_divergence_coef", "use_weighting", "discopop_tau", "sync_ref_model"),
    *("ref_model_mixup_alpha", "ref_model_sync_steps", "disable_dropout"),
    *("precompute_ref_log_probs", "precompute_ref_batch_size"),
}
SECTIONS = ("Model", "Data", "DPO", "Optimisation", "Evaluation and output")


def stated(key: str, value: Any) -> str:
    """A recipe's line that says this value, quoted where YAML would read another; a list of data
    sets has a line for each."""

    def flow(value: Any) -> str:
        how = {"default_flow_style": True, "allow_unicode": True, "width": math.inf}
        return yaml.safe_dump(value, sort_keys=False, **how).strip().removesuffix("...").strip()

    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return "\n".join([f"{key}:", *(f"  - {flow(entry)}" for entry in value)])
    return f"{key}: {flow(value)}"


def section(key: str) -> str:
    """The section of a recipe that a key stands in."""
    if key in MODEL:
        return "Model"
    if key in DATA:
        return "Data"
    if key in LOSS:
        return "DPO"
    return (
        "Optimisation"
        if decides(key) or key in (*BATCH, "gradient_checkpointing")
        else "Evaluation and output"
    )


def sections(keys: dict[str, Any], order: list[str]) -> str:
    """The keys of a recipe, each in its section, there in this order and output_dir last."""
    text = ""
    for title in SECTIONS:
        inside = sorted((key for key in keys if section(key) == title), key=order.index)
        inside.sort(key=lambda key: key == "output_dir")
        lines = [stated(key, keys[key]) for key in inside]
        text += "\n".join(["", f"### {title}", *lines, ""]) if lines else ""
    return text
