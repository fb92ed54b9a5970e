"""The model and the rows of data that a recipe names, found before anything heavy starts."""

import os
from pathlib import Path
from typing import Any

import datasets.config
import yaml
from datasets import Dataset, DatasetBuilder, IterableDataset
from datasets.exceptions import DatasetsError
from huggingface_hub import constants, snapshot_download
from trl import DatasetMixtureConfig

from dpo.core.refusal import Refusal, one_line
from dpo.data.formats.columns import mapping_of
from dpo.data.sources import files, rows, tables
from dpo.data.sources.files import COMPRESSED, FILES
from dpo.data.sources.rows import Rows
from dpo.recipe.hub_names import check_reachable, looks_local
from dpo.recipe.parse import Recipe

SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves


@rows.exact_names()
def load(
    dataset: str, key: str = "dataset_name", /, streaming: bool = False, **how: Any
) -> dict[str, Rows]:
    """Every split of a data set of the hub, a folder in hub layout or of save_to_disk, or a file.

    Each is read by itself: they may differ in their columns.

    Args:
        key: the recipe's key that named it, for messages.
        how: arguments of load_dataset_builder.

    Raises:
        Refusal: it cannot be found or read; a broken line is named.
    """
    path, given = Path(dataset), how.get("data_files")
    if path.is_file() and not given:
        kind = files.kind_of(path)
        if not kind:
            known = f"{', '.join(FILES)}, packed as {', '.join(COMPRESSED)} or not"
            raise Refusal(f"{key}: {dataset} is not one of {known}")
        how["data_files"], dataset = {"train": dataset}, kind
    elif not path.is_dir() and not given:
        if looks_local(dataset, (*FILES, *COMPRESSED, *files.OTHER_DATA, ".txt")):
            raise Refusal(
                f"{key}: no data at {dataset}: put them there, or name others with --dataset_name"
            )
        check_reachable(dataset, "dataset")
    try:
        Path(datasets.config.HF_DATASETS_CACHE).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(
            f"data sets are kept in {datasets.config.HF_DATASETS_CACHE}, which cannot be made "
            f"({error.strerror}): name another folder with HF_HOME or HF_DATASETS_CACHE"
        ) from error
    try:
        if any((path / name).is_file() for name in SAVED):
            found = rows.saved(dataset, streaming)
        else:
            found = _splits(str(path), _builder(dataset, how), streaming)
        if path.is_dir() and not given:
            rows.note_unread(path / (how.get("data_dir") or ""), found)
        return found
    except (OSError, ValueError, RuntimeError, DatasetsError, yaml.YAMLError) as error:
        said = rows.unreadable(path, error) or one_line(error, cause=True)
        raise Refusal(f"cannot load the data set {path}: {said}") from error


def _builder(dataset: str, how: dict[str, Any]) -> DatasetBuilder:
    try:
        return datasets.load_dataset_builder(dataset, **how)
    except (OSError, DatasetsError):
        if not constants.HF_HUB_OFFLINE or Path(dataset).exists():
            raise
        # Files of the hub that were read here, by no builder: `datasets` does not know of them.
        folder = snapshot_download(dataset, repo_type="dataset", local_files_only=True)
        return datasets.load_dataset_builder(folder, **how)


def _splits(name: str, builder: DatasetBuilder, streaming: bool) -> dict[str, Rows]:
    """
    Raises:
        ValueError: a split's files have no rows, or one of them cannot be read.
    """
    parts = {str(split): [*paths] for split, paths in (builder.config.data_files or {}).items()}
    kind, splits = type(builder).__module__.rpartition(".")[2], {}
    config: Any = builder.config  # of its kind
    if kind in files.FILES.values():
        parts = {split: rows.without_backups(paths) for split, paths in parts.items()}
    if kind in ("csv", "json") and not streaming:  # of the hub, brought here
        parts = {split: datasets.DownloadManager().download(parts[split]) for split in parts}
    if not parts or not all(Path(path).is_file() for paths in parts.values() for path in paths):
        if not streaming:
            builder.download_and_prepare()
        found: Any = builder.as_streaming_dataset() if streaming else builder.as_dataset()
        return {
            str(split): Rows(f"{name} ({split})", data, parts.get(str(split), []))
            for split, data in found.items()
        }
    for split, paths in parts.items():
        for path in paths:
            rows.check_fetched(path)
        cache = rows.content_cache([*map(Path, paths)])
        if kind in ("csv", "json"):
            named = {"sep": config.sep} if kind == "csv" else {"name": config.field}
            named = {key: None if value == "," else value for key, value in named.items()}
            named["encoding"] = config.encoding
            data = tables.table(kind, paths, named, cache, streaming)
            if data is None:
                which = ", ".join(map(os.path.basename, paths[:3]))
                raise ValueError(f"{which} has no rows: fill it, or take it out")
        else:
            how = {"data_files": {split: paths}, "split": split, "streaming": streaming}
            data = datasets.load_dataset(kind, cache_dir=cache, **how)
        splits[split] = Rows(rows.name_of(name, split, paths), data, paths)
    return splits


def load_mixture(mixture: DatasetMixtureConfig) -> list[Rows]:
    """Each data set of a mixture, cut to its share as TRL cuts it: no data set is oversampled.

    Apart, since each may have columns of its own.

    Raises:
        Refusal: one of them cannot be loaded, or only some of them state a share.
    """
    parts = []
    for entry in mixture.datasets:
        how = {key: getattr(entry, key) for key in ("name", "data_dir", "data_files")}
        splits = load(entry.path, "datasets", mixture.streaming, **how)
        name = entry.data_files if isinstance(entry.data_files, str) else entry.path
        data = rows.part_of(splits, entry.split, name)
        data = data.select_columns(entry.columns) if entry.columns else data
        notes = next(iter(splits.values())).notes
        parts.append(Rows(f"{name} ({entry.split})", data, notes=notes))
    shares: list[Any] = [entry.fraction for entry in mixture.datasets]
    if not any(share is not None for share in shares):
        return parts
    if None in shares or mixture.streaming:
        raise Refusal(
            "datasets: `fraction` must be stated for all data sets of a mixture or for none, and "
            "not with `streaming`"
        )
    stated = [(part, share) for part, share in zip(parts, shares, strict=True) if share]
    total = min(len(part.data) * sum(shares) / share for part, share in stated)
    for part, share in zip(parts, shares, strict=True):
        part.data = part.data.select(range(round(share / sum(shares) * total)))
    return parts


def load_rows(recipe: Recipe) -> tuple[list[Rows], list[Rows]]:
    """The rows to train on and the held-out ones, the latter empty if the recipe does not evaluate
    or holds out a share of the former (`test_split_size`).

    Raises:
        Refusal: the data cannot be loaded, or lacks a split.
    """
    mapping_of(recipe.run.column_mapping, f"{recipe.place('column_mapping')}: column_mapping")
    script, mixture = recipe.script, recipe.mixture
    wanted = {"dataset_train_split": script.dataset_train_split}
    if recipe.training.eval_strategy != "no" and mixture.test_split_size is None:
        wanted["dataset_test_split"] = script.dataset_test_split
        if script.dataset_train_split == script.dataset_test_split:
            raise Refusal(
                f"dataset_test_split: {script.dataset_test_split!r} is what the run trains on: "
                "held-out pairs must be another split"
            )
    if mixture.test_split_size is not None and (mixture.streaming or script.dataset_streaming):
        raise Refusal("test_split_size: a stream cannot be split: name a test split")
    if mixture.datasets:
        if "dataset_test_split" in wanted:
            raise Refusal(
                "datasets: a mixture has no held-out split: state test_split_size, the share or "
                'number of pairs to hold out, or eval_strategy: "no"'
            )
        return load_mixture(mixture), []
    if not script.dataset_name:
        raise Refusal(f"{recipe.path}: dataset_name is missing")
    how = {"streaming": script.dataset_streaming, "name": script.dataset_config}
    splits = load(script.dataset_name, **how)
    for key, split in wanted.items():
        if split not in splits:
            raise Refusal(
                f"{key}: {script.dataset_name} has no split {split!r}, only {', '.join(splits)}"
                + "".join(f"; {note}" for note in next(iter(splits.values())).notes)
                + ("; test_split_size holds out a share of the training pairs" * ("test" in key))
            )
    train = [splits[script.dataset_train_split]]
    # Without evaluation a test split is not missed.
    known = {*wanted.values(), mixture.test_split_size is None and script.dataset_test_split}
    if left := [split for split in splits if split not in known]:
        train[0].notes.append(
            f"splits that are not read: {rows.listed(left, 8)} (dataset_train_split names what is)"
        )
    if "dataset_test_split" not in wanted:
        return train, []
    held_out = splits[script.dataset_test_split]
    if isinstance(held_out.data, IterableDataset):  # every evaluation goes through all of it
        held_out.data = Dataset.from_list([*held_out.data], on_mixed_types="use_json")
    return train, [held_out]
