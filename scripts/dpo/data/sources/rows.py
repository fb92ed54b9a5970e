"""Rows of a data set as they were found."""

import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets.config
import yaml
from datasets import Dataset, IterableDataset, Json, Value, data_files
from datasets.data_files import SPLIT_KEYWORDS, EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError

from dpo.core.hashing import digest_of_all
from dpo.core.refusal import Refusal, one_line
from dpo.data.formats import parsing
from dpo.data.formats.turns import Fault
from dpo.data.sources import files
from dpo.models.model_files import FETCH, POINTER

PAGES = (b"<!doctype", b"<html", b"<?xml")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")  # of one table that was written as several files


@contextmanager
def exact_names() -> Iterator[None]:
    """In here `datasets` takes the names of files and folders that are there as they are, also if
    they have [, ], * or ? in them: it would take them for patterns, and read other files."""
    stock = data_files.resolve_pattern

    def resolve(pattern: str, base_path: str, *args: Any, **how: Any) -> list[str]:
        there = os.path.isfile(os.path.join(base_path, pattern))
        pattern = glob.escape(pattern) if there else pattern
        return stock(pattern, glob.escape(base_path), *args, **how)

    data_files.resolve_pattern = resolve
    try:
        yield
    finally:
        data_files.resolve_pattern = stock


def check_fetched(path: str) -> None:
    """See that a file holds data, whatever its name says.

    Raises:
        files.Broken: it is a pointer of git-lfs, or a web page.
    """
    with open(path, "rb") as opened:
        begin = opened.read(100).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith(POINTER):
        raise files.Broken(path, None, FETCH)
    if begin.startswith(PAGES):
        raise files.Broken(path, None, "it is a web page, and no data: download it again")


def without_backups(paths: list[str]) -> list[str]:
    """Files of a split without those of other endings, `train.jsonl.bak` beside `train.jsonl`, and
    without what `datasets` has cached beside a table."""
    known = [path for path in paths if files.kind_of(Path(path))]
    return [path for path in known if not Path(path).name.startswith("cache-")] or paths


@dataclass
class Rows:
    """Rows as they were found."""

    name: str  # what they are called in messages: their file, if it is one
    data: Dataset | IterableDataset
    files: list[str] = field(default_factory=list)  # that they were read from
    notes: list[str] = field(default_factory=list)  # what of the same data set is not read

    @property
    def padded(self) -> tuple[str, ...]:
        """Columns of structs and lists: a null in them may be of the table's making."""
        features, columns = self.data.features, self.data.column_names
        known = features or dict.fromkeys(columns or next(iter(self.data), {}))
        return tuple(name for name, kind in known.items() if not isinstance(kind, (Json, Value)))

    def first(self, count: int) -> list[dict[str, Any]]:
        return self.meant(islice(iter(self.data), count))

    def meant(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as they are meant; one that cannot be parsed as it is."""
        padded, found = self.padded, []
        for row in rows:
            try:
                found.append(parsing.meant(row, padded))
            except Fault:
                found.append(row)
        return found


def part_of(splits: dict[str, Rows], wanted: str, name: str) -> Dataset | IterableDataset:
    """A split, or a part of some as `datasets` spells it: `train[:10%]+test`.

    Raises:
        Refusal: there is no such split, or it is a slice of a stream.
    """
    if wanted in splits:
        return splits[wanted].data
    try:
        lengths = {split: len(rows.data) for split, rows in splits.items()}
        pieces = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise Refusal(
            f"datasets: {name} has no split {wanted!r}, only {', '.join(splits)}, and slices of "
            "them where it is no stream"
        ) from error
    data: dict[str, Any] = {name: rows.data for name, rows in splits.items()}
    parts = [data[p.splitname].select(range(p.from_, p.to)) for p in pieces]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def listed(names: Iterable, limit: int = 40) -> str:
    """Names of columns or files, in a line of bounded length."""
    names = [f"{name!s:.40}" for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def unread(folder: Path, read: Collection[str]) -> list[str]:
    """The files in a folder that look like data, by their endings, and are not among those read. A
    card that says which files are read may name others: what they are for is known then.

    Raises:
        files.Broken: some of another kind may be meant as well: no split says that they are not.
    """
    taken = {Path(path).resolve() for path in read}
    there = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    left = [
        path
        for path in there
        if {*files.FILES, *files.OTHER_DATA} & {s.lower().rstrip("~") for s in path.suffixes[-2:]}
        and path.name not in files.NO_DATA
        and not any(part.startswith((".", "cache-")) for part in path.parts)
        and (folder / path).resolve() not in taken
    ]
    card = folder / "README.md"
    says = card.read_text(errors="replace") if card.is_file() else ""
    if stated := "data_files" in says and bool(read):
        left = [p for p in left if not re.search(rf"(?<![\w.-]){re.escape(p.name)}(?![\w-])", says)]
    if stated or not read or any((folder / name).is_file() for name in files.NO_DATA):
        return [*map(str, left)]
    used = sorted(os.path.relpath(path, os.path.abspath(folder)).lower() for path in read)
    words = {word for name in used for word in re.findall("[a-z]+", name)}
    splits = words & {word for of in SPLIT_KEYWORDS.values() for word in of}
    stems = {name.rpartition("/")[2].partition(".")[0] for name in used}
    for path in left:
        if files.kind_of(path) and (not splits or path.name.lower().partition(".")[0] in stems):
            why = f"it would not be read beside {', '.join(used[:3])}: a folder's files are of one "
            why += "kind, with endings in small letters; write them alike, or name one file"
            raise files.Broken(str(path), None, why)
    return [*map(str, left)]


def note_unread(folder: Path, found: dict[str, Rows]) -> None:
    """Have each split say which files it is read from if it may not be clear, and all of them
    which files of their folder are not read."""
    for split, rows in found.items():
        if len(rows.files) > 1 and not all(map(SHARD.search, rows.files)):
            names = (os.path.relpath(path, os.path.abspath(folder)) for path in rows.files)
            rows.notes.append(f"{split} is read from several files: {listed(names, 8)}")
    if left := unread(folder, [path for rows in found.values() for path in rows.files]):
        note = (
            f"files that are not read: {listed(left, 8)} (a folder's splits are its files named "
            "train or test, of one kind, with endings in small letters: append the others to those)"
        )
        for rows in found.values():
            rows.notes.append(note)


def unreadable(path: Path, error: Exception) -> str:
    """Why a data set cannot be read, in our words; nothing where what was raised says it best."""
    if isinstance(error, files.Broken):
        return str(error)
    if isinstance(error, yaml.YAMLError):
        return f"the lines between --- in its README.md are no YAML: {one_line(error, cause=True)}"
    if several := re.search(r"available configs: \[(.*?)\]", str(error)):
        return (
            f"its card has several configurations: choose one of {several[1]} with --dataset_config"
        )
    if not path.is_dir():
        return ""
    there = listed(unread(path, ()))
    if isinstance(error, (DataFilesNotFoundError, EmptyDatasetError)):
        known = f"no file in it ends with {', '.join(files.FILES)}, in small letters"
        return known + (f", as {there} should" if there else "")
    if "same data file format" in str(error):
        return f"its splits are of several kinds ({there}): write them alike, or name one file"
    return ""


def saved(dataset: str, streaming: bool) -> dict[str, Rows]:
    found, splits = datasets.load_from_disk(dataset), {}
    for split, data in (found if isinstance(found, dict) else {"train": found}).items():
        paths = [file["filename"] for file in data.cache_files]
        data = data.to_iterable_dataset() if streaming else data
        splits[str(split)] = Rows(f"{dataset} ({split})", data, paths)
    return splits


def name_of(dataset: str, split: str, paths: list[str]) -> str:
    if len(paths) != 1:
        return f"{dataset} ({split})"
    if not Path(dataset).is_dir():
        return paths[0]
    return os.path.join(dataset, os.path.relpath(paths[0], dataset))


def content_cache(given: list[Path]) -> str:
    """A cache folder of its own for each content of local data files and folders.

    `datasets` keys its cache of a folder that has a data card by the folder's name and the card:
    with changed files, or with another folder of that name, it returns the old rows. A file it
    keys by its time.
    """
    digest = hashlib.sha256()
    for data in given:
        found = sorted(path for path in (data, *data.rglob("*")) if path.is_file())
        digest.update(digest_of_all(found, data).encode())
    return f"{datasets.config.HF_DATASETS_CACHE}/{digest.hexdigest()[:16]}"
