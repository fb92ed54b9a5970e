"""A recipe as text: its lines, and its keys in sections."""

import math
from typing import Any

import torch
import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from dpo.recipe.arguments import BATCH, decides

MODEL = {
    *ModelConfig.__dataclass_fields__,
    *("trust_remote_code", "chat_template_path", "ref_model_name_or_path", "ref_model_revision"),
}
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
    for title, keys in (("Model", MODEL), ("Data", DATA), ("DPO", LOSS)):
        if key in keys:
            return title
    learned = decides(key) or key in (*BATCH, "gradient_checkpointing")
    return "Optimisation" if learned else "Evaluation and output"


def sections(keys: dict[str, Any], order: list[str]) -> str:
    """The keys of a recipe, each in its section, there in this order and output_dir last."""
    text = ""
    for title in SECTIONS:
        inside = sorted((key for key in keys if section(key) == title), key=order.index)
        inside.sort(key=lambda key: key == "output_dir")
        lines = [stated(key, keys[key]) for key in inside]
        text += "\n".join(["", f"### {title}", *lines, ""]) if lines else ""
    return text


def line(key: str, value: str, remark: str, default: str = "") -> str:
    """A line of a recipe with its remark; one that would state the default is commented out."""
    text = f"{key}: {value}"
    return f"{'# ' * (value == default)}{text}".ljust(40) + f" # {remark}"


def rounded(number: float) -> int:
    """A round number of steps up to this one, at most 500 and at least 1: 1, 2, 5, 10, 20 …"""
    return max(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if step <= max(number, 1))


def machine_keys() -> list[str]:
    """The recipe's lines about the precision that this machine can compute in."""
    if not torch.cuda.is_available():
        return [
            line("bf16", "false", "a CPU would take longer: leave both out on a GPU"),
            line("gradient_checkpointing", "false", "true: less memory, a third more time"),
        ]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return [line("fp16", "true", "this GPU has no bfloat16: leave it out on a newer one")]
    return []
