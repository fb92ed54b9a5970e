"""What others wrote is read, and never run: pickles nowhere, a model's own code only if asked."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME

from dpo.core.refusal import Refusal
from dpo.models.model_files import code_in, needs_code, read_json

WEIGHTS = (".bin", ".pt", ".pth", ".ckpt")  # pickles
NAMES = {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, ADAPTER_SAFE_WEIGHTS_NAME}


def read_as_data(deepspeed: bool) -> None:
    """Let no checkpoint run code as it is read: whoever calls torch.load, it unpickles tensors,
    plain values and what is named here, and refuses all else before it is built.

    `deepspeed` asks for everything in its shards. Three kinds of object are in them.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if deepspeed:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        kinds = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
        torch.serialization.add_safe_globals(kinds)


def check_weights(name: str, files: Iterable[str], key: str = "model_name_or_path") -> None:
    """Safetensors hold numbers and nothing else.

    Args:
        files: of a model or an adapter, by name, in a folder or on the hub.
        key: of the recipe, that names it.

    Raises:
        Refusal: its weights are in another format, or under another name.
    """
    files = sorted(files)
    if NAMES & {*files}:
        return
    if found := [file for file in files if file.endswith(".safetensors") and "/" not in file]:
        raise Refusal(
            f"model {name} has its weights in {found[0]}, and transformers reads "
            f"{SAFE_WEIGHTS_NAME}, or {SAFE_WEIGHTS_INDEX_NAME} and what it names: give the folder "
            "that save_pretrained wrote; if only the name differs, rename the file"
        )
    pickled = [file for file in files if file.endswith(WEIGHTS)]
    if not pickled:
        raise Refusal(
            f"model {name} has no weights (*.safetensors): copy them there, or name another with "
            f"--{key}"
        )
    kind = "AutoPeftModel" if pickled[0].startswith("adapter") else "AutoModel"
    package = "peft" if kind == "AutoPeftModel" else "transformers"
    raise Refusal(
        f"model {name} has weights in {pickled[0]}, a pickle, and only safetensors are read. If "
        f'you trust who made it, convert it: python -c "from {package} import {kind}ForCausalLM as '
        f"M; M.from_pretrained('{name}').save_pretrained('converted')\""
    )


def _json(name: str, file: str, revision: str | None) -> dict[str, Any]:
    there = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    path = cached_file(name, file, **there)
    return read_json(Path(path)) if path else {}


def code_of(name: str, revision: str | None) -> list[str]:
    """The files of code that a model or its tokenizer brings, as its configuration names them."""
    found = set()
    for file in ("config.json", "tokenizer_config.json"):
        found |= code_in(_json(name, file, revision))
    return sorted(found)


def check_code(name: str, revision: str | None, trusted: bool) -> None:
    """Say that a model's own code will run, or find that transformers does without it.

    Raises:
        Refusal: the model needs its code, and the recipe does not trust it.
    """
    code = code_of(name, revision)
    if not code:
        return
    if trusted:
        at = "" if Path(name).is_dir() else f" at revision {revision or 'main'}"
        PartialState().print(
            f"trust_remote_code: {name}{at} brings code of its own, which runs here with all that "
            f"you may do: {', '.join(code)}"
        )
        return
    try:
        if _json(name, "config.json", revision):
            AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        if _json(name, "tokenizer_config.json", revision):
            AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise needs_code(name, code) from error
