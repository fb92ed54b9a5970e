"""The preference data and the model that a recipe names, found before anything heavy starts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import datasets
from datasets import Dataset
from huggingface_hub import HfApi, constants
from transformers import AutoConfig
from trl import get_dataset

from dpo.recipe import Recipe

LOCAL_INSTEAD = (
    "use what an earlier run has cached with HF_HUB_OFFLINE=1, a mirror with HF_ENDPOINT, or local "
    "folders with --model_name_or_path and --dataset_name"
)
HUB_TIMEOUT = 10  # seconds: load_dataset's own retries would be silent for minutes


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def looks_local(name: str) -> bool:
    """Whether a name can only mean a folder: hub names are `name` or `owner/name`."""
    return name.startswith((".", "/", "~", "models/", "recipes/")) or name.count("/") > 1


def check_reachable(name: str, repo_type: str) -> None:
    """Ask the hub for `name` once, unless it is a folder here or the hub is switched off.

    Raises:
        SystemExit: no answer within HUB_TIMEOUT, or the hub knows no such repository.
    """
    if Path(name).is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().repo_info(name, repo_type=repo_type, timeout=HUB_TIMEOUT)
    # Whatever goes wrong in this one call (no network, no such name, no access), the run cannot
    # load it, and the reader needs the same two facts.
    except Exception as error:
        raise SystemExit(
            f"cannot get the {repo_type} {name!r} from {constants.ENDPOINT}: {first_line(error)}. "
            f"If it should be there, {LOCAL_INSTEAD}"
        ) from error


def check_model(recipe: Recipe) -> None:
    """Find the model before the data is prepared.

    Raises:
        SystemExit: no name is given, the folder is missing or has no weights, the hub does not
            answer, or the weights would hardly learn in the dtype asked for.
    """
    name = recipe.model.model_name_or_path
    if not name:
        raise SystemExit(f"{recipe.path}: model_name_or_path is missing")
    folder = Path(name)
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            raise SystemExit(
                f"model folder {name} has no weights (*.safetensors): copy them there, or name "
                "another folder with --model_name_or_path"
            )
    elif looks_local(name):
        raise SystemExit(
            f"no model folder {name}: `make install` makes the embedded one; name another folder "
            "or a hub model with --model_name_or_path"
        )
    else:
        check_reachable(name, "model")
    check_master_weights(recipe)


def check_master_weights(recipe: Recipe) -> None:
    """Full fine-tuning needs weights in float32: at a learning rate of 5e-7 an update is smaller
    than bfloat16 can tell from nothing. DeepSpeed keeps float32 copies of its own.

    Raises:
        SystemExit: the recipe trains half-precision weights, and nothing keeps better ones.
    """
    model, kept = recipe.model, os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    dtype = model.dtype
    if dtype == "auto":
        revision = model.model_revision
        dtype = AutoConfig.from_pretrained(model.model_name_or_path, revision=revision).dtype
    if not kept and not model.use_peft and str(dtype).endswith("float16"):
        raise SystemExit(
            f"dtype {model.dtype}: full fine-tuning hardly moves weights in half precision. Leave "
            "dtype out: bf16 computes in half precision and keeps float32 weights; or choose "
            "--use_peft, or CONFIG=zero2, which keeps float32 weights itself"
        )


def content_cache(folder: Path) -> str:
    """A cache folder of its own for each content of a local data folder.

    `datasets` keys its cache of a folder that has a data card by the folder's name and the card:
    with changed files, or with another folder of that name, it returns the old rows.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{datasets.config.HF_DATASETS_CACHE}/{digest.hexdigest()[:16]}"


def load_preferences(recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    """The training pairs, and the held-out pairs if the recipe evaluates.

    Raises:
        SystemExit: the data set cannot be found or read, or lacks a split.
    """
    script, mixture = recipe.script, recipe.mixture
    evaluates = recipe.training.eval_strategy != "no"
    if mixture.datasets:
        name, data = "the data sets of `datasets`", get_dataset(mixture)
    elif script.dataset_name:
        name = script.dataset_name
        if not Path(name).exists():
            if looks_local(name):
                raise SystemExit(f"no data at {name}: name another with --dataset_name")
            check_reachable(name, "dataset")
        try:
            data = datasets.load_dataset(
                name,
                name=script.dataset_config,
                streaming=script.dataset_streaming,
                cache_dir=content_cache(Path(name)) if Path(name).is_dir() else None,
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise SystemExit(f"cannot load the data set {name}: {first_line(error)}") from error
    else:
        raise SystemExit(f"{recipe.path}: dataset_name is missing")

    wanted = {"dataset_train_split": script.dataset_train_split}
    if evaluates:
        wanted["dataset_test_split"] = script.dataset_test_split
    for key, split in wanted.items():
        if split not in data:
            raise SystemExit(f"{key}: {name} has no split {split!r}, only {', '.join(data)}")
    if evaluates and script.dataset_train_split == script.dataset_test_split:
        raise SystemExit(
            f"dataset_test_split: {script.dataset_test_split!r} is what the run trains on: "
            f"held-out pairs must be another split ({', '.join(data)})"
        )
    train = data[script.dataset_train_split]
    return train, data[script.dataset_test_split] if evaluates else None
