"""LoRA adapters: the one that training starts from, and the model that one makes of its base."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME, cached_file, has_file
from transformers.utils.peft_utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    find_adapter_config_file,
)

from dpo.core import files
from dpo.core.refusal import Refusal, one_line
from dpo.models import loading, model_files
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import check_there

if TYPE_CHECKING:  # peft takes seconds to import, and few models are adapters
    from peft import LoraConfig, PeftConfig, PeftModel
    from trl import ModelConfig

MERGED = "merged"


def config_of(name: str, revision: str | None = None) -> PeftConfig | None:
    """The configuration of an adapter, which names its base; None if `name` is no adapter.

    Raises:
        Refusal: it is no adapter that peft knows, or the name is a folder's and none is there, for
            which the hub would be asked.
    """
    check_there(name)
    if not find_adapter_config_file(name, revision=revision):
        return None
    if Path(name).is_dir():
        model_files.read_json(Path(name, ADAPTER_CONFIG_NAME))
    import peft

    try:
        return peft.PeftConfig.from_pretrained(name, revision=revision)
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(
            f"{name}/{ADAPTER_CONFIG_NAME} is of no adapter that peft {peft.__version__} knows: "
            f"{one_line(error)}: save it again with save_pretrained"
        ) from error


def planned(model: ModelConfig) -> LoraConfig | None:
    """The adapter that a recipe puts on a model; None without `use_peft`."""
    if not model.use_peft:
        return None
    from trl import get_peft_config

    stated = copy.copy(model)
    modules = model.lora_target_modules
    if isinstance(modules, str) and re.fullmatch(r"[\w.]+", modules):
        stated.lora_target_modules = [modules]  # peft takes a string for a pattern of whole names
    made: Any = get_peft_config(stated)  # of LoRA, the one kind that it knows
    return made


def shape_of(folder: Path) -> str:
    """How an adapter in a folder acts on its base (rank, α, modules, rsLoRA, ...), as JSON; not
    where that base lies, nor who wrote it."""
    config = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
    aside = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
    return json.dumps({k: v for k, v in config.items() if k not in aside}, sort_keys=True)


def checked_base(recipe: Recipe) -> str | None:
    """The base of the adapter that the recipe starts from; None if it starts from a model.

    Raises:
        Refusal: the recipe does not train the adapter on, or states another shape for it; its
            base is not there, or it is none of a model that predicts words.
    """
    name = recipe.model.model_name_or_path
    config = config_of(name, recipe.model.model_revision)
    if not config:
        return None
    base, file = config.base_model_name_or_path, f"{name}/{ADAPTER_CONFIG_NAME}"
    if not base:
        raise Refusal(f"{file} names no base model: state its base_model_name_or_path there")
    if config.task_type not in (None, "CAUSAL_LM"):
        raise Refusal(
            f"{file} has task_type {config.task_type}: an adapter of a causal language model is "
            "trained on here (CAUSAL_LM)"
        )
    if not Path(base).is_dir() and base.startswith((".", "/", "~")):
        raise Refusal(
            f"{file} names {base} as base_model_name_or_path, and there is no such folder: put the "
            "base there, or state there where it is"
        )
    if base == name or find_adapter_config_file(base, revision=config.revision):
        raise Refusal(
            f"{file} names {base} as base_model_name_or_path, which is an adapter itself: merge "
            "that into its base first, with peft's merge_and_unload()"
        )
    if not recipe.model.use_peft:
        raise Refusal(
            f"{name} is a LoRA adapter of {base}: --use_peft trains it on; to train all weights, "
            "merge it into its base first, with peft's merge_and_unload()"
        )
    for key in recipe.stated:
        if key.startswith("lora_") or key in ("use_rslora", "use_dora"):
            raise Refusal(f"{key}: the adapter {name} brings its own: leave it out")
    return base


def tokenizer_home(model: ModelConfig) -> tuple[str, str | None]:
    """Name and revision of what holds the tokenizer: the model; or the base of an adapter that was
    saved without one."""
    name: Any = model.model_name_or_path  # named by now
    revision = model.model_revision
    config: Any = config_of(name, revision)
    if config and not has_file(name, "tokenizer_config.json", revision=revision):
        return config.base_model_name_or_path, config.revision
    return name, revision


def weights_file(model: ModelConfig) -> Path:
    """The weights of the adapter that training starts from."""
    name, revision = model.model_name_or_path, model.model_revision
    return Path(cached_file(name, ADAPTER_SAFE_WEIGHTS_NAME, revision=revision))


@loading.whole()
def trainable(name: str, zero3: bool, **init) -> PeftModel:
    """The adapter that training starts from, on its base. TRL trains it on, and keeps a frozen
    copy of it, the adapter "ref", as the reference.

    Args:
        zero3: it will be sharded, and takes the base's dtype, as TRL has a new adapter do: users
            saw DeepSpeed fail on weights of two dtypes (TRL's issue 6089).
        init: how transformers loads the base.
    """
    from peft import AutoPeftModelForCausalLM

    policy = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, **init)
    if zero3:
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(policy.dtype)
    return policy


def obstacle(policy: PeftModel) -> str | None:
    """Why prefixes cannot be shared under an adapter, in a few words; None when they can."""
    for config in policy.peft_config.values():
        if config.is_prompt_learning:
            return "the adapter puts virtual tokens before the prompt"
        if getattr(config, "alora_invocation_tokens", None):
            return "the adapter acts from some token of each row on"
    return None


def match_reference(policy: PeftModel) -> None:
    """Give the adapter "ref" the weights of the trained one to the bit: of one on 4-bit weights TRL
    copies it first and rounds it to bfloat16 then."""
    for name, parameter in policy.named_parameters():
        if ".ref." in name:
            trained = policy.get_parameter(name.replace(".ref.", ".default."))
            parameter.data = trained.data.clone()


@loading.whole()
def load(name: str, revision: str | None = None, **init) -> PreTrainedModel:
    """A model; of an adapter the model that it makes of its base, their weights added."""
    init["revision"] = revision
    if adapter := config_of(name, revision):
        check_there(str(adapter.base_model_name_or_path))
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(name, **init).merge_and_unload()
    return AutoModelForCausalLM.from_pretrained(name, **init)


def save_generation_config(model: PeftModel, folder: Path) -> None:
    """Write generation_config.json beside an adapter, which peft saves without one: it says where
    the answers of the model that was trained end, and its base's may not."""
    text = model.generation_config.to_json_string(ignore_metadata=True)
    files.write_whole(folder / GENERATION_CONFIG_NAME, text)


def loaded_as(recipe: Recipe) -> dict[str, Any]:
    """How the recipe's model is loaded, beside by its name."""
    trusted = recipe.training.trust_remote_code
    return recipe.init | {"dtype": recipe.model.dtype, "trust_remote_code": trusted}


def merge(folder: Path, tokenizer: PreTrainedTokenizerBase, **init) -> Path:
    """Write the model that the adapter in `folder` makes of its base, which loads without peft.

    Written beside and renamed; left alone if it is there.
    """
    merged, beside = folder / MERGED, folder / f".{MERGED}"
    if not merged.exists():
        model = load(str(folder), **init)
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for weights in beside.glob("*.safetensors"):
            files.follow_umask(weights)
        os.replace(beside, merged)
    return merged
