"""A model before its weights are read: its files are looked for, and its configuration says whether
there is the attention that is asked for, and whether an adapter fits."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from dpo.core.refusal import Refusal, one_line
from dpo.models import adapters, model_files, trust
from dpo.models.model_files import AGAIN, config_of
from dpo.recipe.hub_names import check_reachable, looks_local
from dpo.recipe.parse import Recipe

if TYPE_CHECKING:
    from peft import PeftConfig

ATTENTIONS = "eager and sdpa always are; flash_attention_2, flash_attention_3 and kernels of the "
ATTENTIONS += "hub (kernels-community/...) with their package, on a GPU"


def check(recipe: Recipe) -> None:
    """Refuse an attention or an adapter that the model cannot have, before its weights are read.

    Raises:
        Refusal: the attention is unknown or not installed; a name of the adapter's is none of
            the model's modules; or peft refuses it.
    """
    model = recipe.model
    name, revision = model.model_name_or_path, model.model_revision
    adapter = adapters.config_of(name, revision)
    if adapter:
        name, revision = adapter.base_model_name_or_path, adapter.revision
    if recipe.run.ref_model_name_or_path is not None:
        shape_of(recipe, *recipe.reference)
    if (shape := shape_of(recipe, name, revision)) is None:
        return
    if adapter and Path(model.model_name_or_path).is_dir():
        check_saved(adapter, Path(model.model_name_or_path), shape)
    elif model.use_peft and not adapter:
        check_adapter(recipe, shape)


def shape_of(recipe: Recipe, name: str, revision: str | None) -> PreTrainedModel | None:
    """A model without weights, as the recipe has it attend; None if it cannot be made so.

    Raises:
        Refusal: the attention is unknown, not installed, or none that the model can have.
    """
    args, attention = recipe.training, recipe.model.attn_implementation
    trusted, where = args.trust_remote_code, recipe.place("attn_implementation")
    config = config_of(name, revision, trust_remote_code=trusted, **recipe.init)
    if attention == "flex_attention" and args.device.type == "cpu":
        raise Refusal(f"{where}: attn_implementation is {attention}: it trains on GPUs alone")
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config,
                attn_implementation=attention,
                dtype=torch.bfloat16,  # FlashAttention computes in it
                trust_remote_code=trusted,
            )
    except Exception as error:  # there are models that cannot be made so; loading will say more
        check_init(recipe, name, revision, error)
        if attention is None or not isinstance(error, ImportError | ValueError):
            return None
        raise Refusal(
            f"{where}: attn_implementation is {attention}: {one_line(error)}. Leave it out, or "
            f"choose one that is here: {ATTENTIONS}"
        ) from error


def check_init(recipe: Recipe, name: str, revision: str | None, error: Exception) -> None:
    """Raises Refusal where a model can be made without the recipe's model_init_kwargs alone."""
    trusted = recipe.training.trust_remote_code
    if not recipe.init:
        return
    with contextlib.suppress(Exception), torch.device("meta"):
        config = config_of(name, revision, trust_remote_code=trusted)
        AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        given = ", ".join(recipe.init)
        where = recipe.place("model_init_kwargs")
        raise Refusal(f"{where}: model_init_kwargs, {given}: {one_line(error)}") from error


def check_saved(adapter: PeftConfig, folder: Path, shape: PreTrainedModel) -> None:
    """Raises Refusal where a saved adapter would not go on its base."""
    file = folder / ADAPTER_SAFE_WEIGHTS_NAME
    base, kind = adapter.base_model_name_or_path, type(shape).__name__
    from peft import get_peft_model, get_peft_model_state_dict

    try:
        made = get_peft_model(shape, copy.deepcopy(adapter))
    except (NotImplementedError, RuntimeError):
        return  # what needs weights
    except (ImportError, TypeError, ValueError) as error:
        raise Refusal(
            f"{folder / ADAPTER_CONFIG_NAME} does not fit its base {base}, a {kind}: "
            f"{one_line(error)}: state there the base that it was trained on"
        ) from error
    needed = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(made).items()}
    with safe_open(file, "pt") as weights:
        found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    for name in sorted(needed.keys() & found.keys()):
        if needed[name] != found[name]:
            raise Refusal(
                f"{file} does not fit {ADAPTER_CONFIG_NAME} and its base {base}, a {kind}: {name} "
                f"is {found[name]} there, and would be {needed[name]}: {AGAIN}"
            )


def check_adapter(recipe: Recipe, shape: PreTrainedModel) -> None:
    """Raises Refusal where a new adapter would not go on a model as the recipe says."""
    planned: Any = adapters.planned(recipe.model)
    modules = dict(shape.named_modules())
    kinds = torch.nn.Linear | Conv1D
    linear = {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, kinds)}
    there = ", ".join(sorted(linear - {"lm_head"}))
    parameters = [name for name, _ in shape.named_parameters()]
    experts = {
        ".".join(n.split(".")[-2:]) for n in parameters if not n.endswith(("weight", "bias"))
    }
    experts = ", ".join(sorted(experts)) or "none: lora_target_modules takes its linear layers"
    for key, names, choices in (
        ("lora_target_modules", modules, f"{there}, or all-linear"),
        ("lora_modules_to_save", modules, f"lm_head, embed_tokens, {there}"),
        ("lora_target_parameters", parameters, experts),
    ):
        if lost := missing(getattr(planned, key.removeprefix("lora_")), names):
            raise Refusal(
                f"{recipe.place(key)}: {key} is {lost}: {type(shape).__name__} has none of that "
                f"name: give some, with blanks between them, of {choices}"
            )
    from peft import get_peft_model

    try:
        get_peft_model(shape, copy.deepcopy(planned))
    except (NotImplementedError, RuntimeError):
        return  # what needs weights
    except (ImportError, TypeError, ValueError) as error:
        key = "lora_target_parameters" if planned.target_parameters else "lora_target_modules"
        key = "lora_dropout" if "lora_dropout" in str(error) else key
        given = getattr(planned, key if key == "lora_dropout" else key.removeprefix("lora_"))
        given = ", ".join(sorted(given)) if isinstance(given, set | list) else given
        raise Refusal(
            f"{recipe.place(key)}: {key} is {given}: {one_line(error)}. The model's linear layers: "
            f"{there}, or all-linear"
        ) from error


def missing(wanted: Iterable[str] | str | None, names: Iterable[str]) -> str | None:
    """The first name wanted that ends none of `names`; a string is a pattern of whole ones."""
    if wanted is None or wanted == "all-linear":
        return None
    if isinstance(wanted, str):
        with contextlib.suppress(re.error):
            return None if any(re.fullmatch(wanted, name) for name in names) else wanted
        return wanted
    lost = (w for w in sorted(wanted) if not any(f".{n}".endswith(f".{w}") for n in names))
    return next(lost, None)


def check_model(recipe: Recipe) -> None:
    """Find the model before the data is prepared.

    Raises:
        Refusal: no name is given, the folder is missing or has no weights, the hub does not
            answer, the recipe has other plans for an adapter than to train it on, or the weights
            would hardly learn in the dtype asked for.
    """
    name = recipe.model.model_name_or_path
    if not name:
        raise Refusal(f"{recipe.path}: model_name_or_path is missing")
    check_weights(name)
    base, trusted = adapters.checked_base(recipe), recipe.training.trust_remote_code
    trust.check_code(name, recipe.model.model_revision, trusted)
    if base:
        check_weights(base)
        trust.check_code(base, None, trusted)
    which = (base, None) if base else (name, recipe.model.model_revision)
    model_files.check_config(*which, trusted, **recipe.init)
    model_files.check_trainable(*which, trusted, recipe.model.use_peft)
    check_master_weights(recipe)
    check_reference(recipe)


def check_reference(recipe: Recipe) -> None:
    """Find the reference of a recipe that states one of its own, before the data is prepared.

    Raises:
        Refusal: it is not there or not whole, is an adapter or quantised, or has other tokens than
            the policy.
    """
    if recipe.run.ref_model_name_or_path is None:
        return
    key, trusted = "ref_model_name_or_path", recipe.training.trust_remote_code
    name, revision = recipe.reference
    where = f"{recipe.place(key)}: {key} is {name}"
    check_weights(name, key)
    trust.check_code(name, revision, trusted)
    if adapters.config_of(name, revision):
        merged = Path(name, adapters.MERGED)
        instead = merged if merged.is_dir() else "what peft's merge_and_unload() makes of it"
        raise Refusal(f"{where}: an adapter, and a reference is a whole model: name {instead}")
    model_files.check_config(name, revision, trusted, **recipe.init)
    if getattr(config_of(name, revision, trust_remote_code=trusted), "quantization_config", None):
        raise Refusal(f"{where}: it is quantised: name the model that it was made from")
    words, others = (
        model_files.tokenizer_of(*of, trusted)
        for of in (adapters.tokenizer_home(recipe.model), recipe.reference)
    )
    if words.get_vocab() != others.get_vocab():
        raise Refusal(
            f"{where}: it has other tokens than {recipe.model.model_name_or_path} ({len(others)} "
            f"and {len(words)}), and would score other texts: name a model with the same tokenizer"
        )


def check_weights(name: str, key: str = "model_name_or_path") -> None:
    """See that a model is there and that its weights are whole; the recipe's `key` names it."""
    folder = Path(name)
    if folder.is_dir():
        trust.check_weights(name, (path.name for path in folder.iterdir()), key)
        model_files.check_weights(folder)
    elif folder.is_file():
        gguf = "GGUF is for inference alone: " if folder.suffix == ".gguf" else ""
        raise Refusal(
            f"model {name} is a file: {gguf}name a folder with config.json, *.safetensors and a "
            "tokenizer, or a model of the hub"
        )
    elif "://" in name:
        known = "/".join(name.split("://")[1].split("/")[1:3])
        raise Refusal(f"model {name} is an address: name it as the hub does: {known}")
    elif looks_local(name):
        raise Refusal(
            f"no model folder {name}: `make install` makes the embedded one; name another folder "
            f"or a hub model with --{key}"
        )
    elif files := check_reachable(name, "model"):
        trust.check_weights(name, files, key)


def check_master_weights(recipe: Recipe) -> None:
    """Full fine-tuning needs weights in float32: at a learning rate of 5e-7 an update is smaller
    than bfloat16 can tell from nothing. DeepSpeed keeps float32 copies of its own.

    Raises:
        Refusal: the recipe trains half-precision weights, and nothing keeps better ones.
    """
    model, kept = recipe.model, recipe.launch.deepspeed
    dtype, how = model.dtype, {"trust_remote_code": recipe.training.trust_remote_code}
    if dtype == "auto":
        dtype = config_of(model.model_name_or_path, model.model_revision, **how).dtype
    if not kept and not model.use_peft and str(dtype).endswith("float16"):
        raise Refusal(
            f"dtype {model.dtype}: full fine-tuning hardly moves weights in half precision. Leave "
            "dtype out: bf16 computes in half precision and keeps float32 weights; or choose "
            "--use_peft, or CONFIG=zero2, which keeps float32 weights itself"
        )
