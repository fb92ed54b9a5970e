"""The rows of CSV and JSON files as a table that `datasets` keeps on disk, or as a stream."""

import inspect
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Json, Value
from datasets.features.features import register_feature
from datasets.fingerprint import Hasher
from filelock import FileLock

from dpo.data.sources import files
from dpo.data.sources.files import rows_of

EXACT = 2**53  # whole numbers below it are floats as well
BATCH = 1000


@dataclass
class Exact(Json):
    """JSON to the last digit: `datasets` makes 0.7000000000000001 of 0.7, and fails at whole
    numbers of more than 64 bits."""

    _type: str = field(default="Exact", init=False, repr=False)

    def encode_example(self, value: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False)

    def decode_example(self, value: str | None, token_per_repo_id: Any = None) -> Any:
        return None if value is None else json.loads(value)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        if isinstance(storage, pa.ExtensionArray):
            return storage
        return pa.ExtensionArray.from_storage(self.pa_type, storage.cast(pa.string()))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that this is experimental; datasets' version is pinned
    register_feature(Exact, "Exact")


def columns_of(rows: Iterable[dict[str, Any]]) -> Features:
    """The columns of rows: text, truth values or numbers where all are that; else JSON."""
    found: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds = found.setdefault(name, set())
            if value is not None:
                long = isinstance(value, int) and abs(value) >= EXACT
                kinds.add(object if long else type(value))
    simple = {str: "string", bool: "bool", int: "int64", float: "float64"}
    features = {}
    for name, kinds in found.items():
        kind = float if kinds == {int, float} else next(iter(kinds)) if len(kinds) == 1 else object
        kind = kind if kinds else str
        features[name] = Value(simple[kind]) if kind in simple else Exact()
    return Features(features)


def write(rows: Iterator[dict[str, Any]], features: Features, path: Path) -> None:
    schema = features.arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := [*islice(rows, BATCH)]:
            arrays = []
            for name, feature in features.items():
                values = [row.get(name) for row in batch]
                if isinstance(feature, Exact):
                    values = pa.array([*map(feature.encode_example, values)], pa.string())
                    arrays.append(feature.cast_storage(values))
                else:
                    arrays.append(pa.array(values, schema.field(name).type))
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def table(
    kind: str, paths: list[str], how: dict[str, Any], cache: str, streaming: bool
) -> Dataset | IterableDataset | None:
    """The rows of a split's files; None if there are none. Read once, and kept in the folder
    `cache`, which belongs to the files' content; a stream is only looked through.

    Args:
        kind: csv or json.
        how: for csv `sep` and `encoding`, for json `name` and `encoding`, each None if not known.

    Raises:
        Broken: one of the files cannot be read.
    """
    if streaming:
        features = columns_of(rows_of(kind, paths, how))
        given = {"kind": kind, "paths": paths, "how": how}
        return IterableDataset.from_generator(rows_of, features, given) if features else None
    code = [inspect.getsource(part) for part in (files, columns_of, write)]
    path = Path(cache) / f"rows-{Hasher.hash([kind, paths, how, code])}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # the other processes find what one has read
        if not path.exists():
            features = columns_of(rows_of(kind, paths, how))
            if not features:
                return None
            begun = path.with_suffix(".begun")
            write(rows_of(kind, paths, how), features, begun)
            begun.replace(path)
    return Dataset.from_file(str(path))
