"""CSV and JSON files as rows whose values are what stands in the file.

`datasets` reads them through pandas and pyarrow, which guess: NA is nothing, 007 is 7, a date is a
time, and a comma too many shifts a row's columns.
"""

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fsspec.compression import compr
from fsspec.utils import infer_compression

FILES = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
OTHER_DATA = (".jsonlines", ".xlsx", ".xls", ".ods", ".feather", ".pkl", ".db", ".zip", ".tar")
# What `datasets` writes beside data, to say which files they are.
NO_DATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
# The names of a list of rows in an object.
AROUND = ("data", "rows", "train", "test", "validation", "examples", "instances", "records")
AROUND += ("items", "pairs", "preferences", "comparisons", "samples", "entries")
OLD_MAC = "lines end with \\r alone: write it again with \\n"
SAVE = 'save it with a row a line: to_json(…, orient="records", lines=True) in pandas'
SEPARATORS = (",", ";", "\t", "|")
BOMS = {  # the longer first: one of UTF-32 begins as one of UTF-16
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
csv.field_size_limit(2**31 - 1)  # by default a field of 128 KB ends the reading


class Broken(ValueError):
    """Where and why a file cannot be read: `train.jsonl, line 7: ...`."""

    def __init__(self, path: str, line: int | None, reason: object):
        where = path if line is None else f"{path}, line {line}"
        said = " ".join(str(reason).split()) or type(reason).__name__
        mend = "" if line is None else ": mend the line or take it out"
        super().__init__(f"{where}: {said}{mend}")


def kind_of(path: Path) -> str | None:
    """What a file is, by its name without what it is compressed with; None if it is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return FILES.get(suffixes[-1]) if suffixes else None


def lines_of(path: str, encoding: str | None = None) -> Iterator[str]:
    """The lines of a file with their ends, unpacked and decoded.

    Args:
        encoding: by default what the file's first bytes say, else UTF-8.

    Raises:
        Broken: a line is not in that encoding, or the file is cut off.
    """
    number = 0
    try:
        with open(path, "rb") as packed, compr[infer_compression(path)](packed, mode="rb") as raw:
            stream = io.BufferedReader(raw)
            begin = stream.peek(4)[:4]
            wide = next((name for bom, name in BOMS.items() if begin.startswith(bom)), None)
            encoding = wide or encoding or "utf-8"
            text = io.TextIOWrapper(stream, encoding, newline="\n") if wide else stream
            for number, line in enumerate(text, start=1):
                line = line.decode(encoding) if isinstance(line, bytes) else line
                yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeDecodeError as error:
        raise Broken(path, None if wide else number, f"{error}: write it again as UTF-8") from error
    except LookupError as error:
        raise Broken(path, None, error) from error
    # Each kind of compression has errors of its own, without a common base.
    except Exception as error:
        if isinstance(error, (MemoryError, FileNotFoundError, PermissionError)):
            raise
        raise Broken(path, None, f"cannot be unpacked or read: {error}") from error


def csv_rows(path: str, sep: str | None, encoding: str | None) -> Iterator[dict[str, str | None]]:
    """The rows of a CSV file, each field as text; None where a line ends before its last columns.

    Raises:
        Broken: two columns have the same name, a line has more fields than the first, or a quote
            is not closed.
    """
    lines = lines_of(path, encoding)
    for before, first in enumerate(lines, 1):  # noqa: B007  where the header ends
        if first.lower().startswith("sep="):  # as Excel names it
            sep = first[4:].strip("\r\n") or sep
        elif first.strip():
            break
    else:
        return
    if "\0" in first:
        raise Broken(path, before, "characters of no text, as UTF-16 has: write it again as UTF-8")
    if "\r" in first.rstrip("\r\n"):
        raise Broken(path, before, OLD_MAC)
    if not sep or sep not in first:  # what parts the header most
        sep = max(SEPARATORS, key=lambda s: len(next(csv.reader([first], delimiter=s), ())))
    reader = csv.reader(chain([first], lines), delimiter=sep, strict=True)
    header: list[str] = []
    while True:
        start = before + reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise Broken(path, start, f"{error}: is a quote in a field not doubled?") from error
        if fields is None:
            return
        if not header:
            header = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(fields)]
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice:
                said = f"two columns are called {twice!r}: rename one in line {start}"
                raise Broken(path, None, said)
            continue
        if len(fields) > len(header):
            said = f"{len(fields)} fields for {len(header)} columns ({', '.join(header)}): a field "
            raise Broken(path, start, f"{said}with {sep!r} in it must stand in quotes")
        if fields:
            yield dict.fromkeys(header) | dict(zip(header, fields, strict=False))


class Twice(ValueError):
    """A key stands twice in one object of JSON, of which Python would keep the last."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The keys and values of an object, for `json`'s object_pairs_hook.

    Raises:
        Twice: a key is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        both = " and ".join(f"{value!r:.30}" for name, value in pairs if name == twice)
        raise Twice(f"{twice!r:.40} stands twice in one object, as {both:.70}")
    return found


def parsed(path: str, number: int, text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=once)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        return value
    except json.JSONDecodeError as error:
        if "\r" in text.strip().replace("\r\n", ""):
            raise Broken(path, number, OLD_MAC) from error
        where = number + error.lineno - 1
        if error.msg == "Extra data" and "\n" in text.strip():
            said = f"another value begins in line {where}: write a row a line, or a list of rows"
            raise Broken(path, None, said) from error
        raise Broken(path, where, f"{error.msg}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise Broken(path, None if "\n" in text.strip() else number, error) from error


def table_in(value: Any, path: str, name: str | None) -> list[Any]:
    """The rows of a file that is one JSON value: a list, the one list of rows in an object, or an
    object of columns.

    Raises:
        Broken: there are several such lists, or none of that name.
    """
    if name and isinstance(value, dict):
        if not isinstance(value.get(name), list):
            raise Broken(path, None, f"no list of rows is called {name!r}")
        return value[name]
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    columns = [column for column in value.values() if isinstance(column, dict)]
    numbers = [*columns[0]] if columns and len(columns) == len(value) else []
    # As pandas has it, whose rows bear any numbers where some were taken out.
    same = all([*column] == numbers for column in columns)
    if numbers and same and all(map(str.isdecimal, numbers)):
        return [{name: value[name][row] for name in value} for row in numbers]
    if numbers and all(map(str.isdecimal, value)):  # or, of orient="index", in objects of rows
        return columns
    if {*value} in ({"columns", "data"}, {"columns", "index", "data"}):
        raise Broken(path, None, f"it is a table in pandas' split form: {SAVE}")
    filled = {key: rows for key, rows in value.items() if isinstance(rows, list) and rows}
    alike = len(filled) == len(value) > 1 and len({*map(len, filled.values())}) == 1
    # A row has lists of messages.
    if alike and not any(isinstance(cell, dict) for cells in filled.values() for cell in cells):
        said = f"{', '.join(value):.60} are columns as lists, and no rows: {SAVE}"
        raise Broken(path, None, said)

    def is_row(found: Any) -> bool:  # and not a message, of which a row has lists
        return isinstance(found, dict) and not found.keys() & {"role", "from"}

    lists = {key: rows for key, rows in filled.items() if all(map(is_row, rows))}
    if len(lists) > 1 and (len(lists) == len(value) or {*AROUND} & {*lists}):
        raise Broken(path, None, f"several lists of rows, {', '.join(lists)}: a file for each")
    around = next((key for key in lists if key in AROUND or len(value) == 1), None)
    return lists[around] if around else [value]


def json_rows(path: str, name: str | None, encoding: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON: an object a line, or one list of them, with or without an object
    around it. Text in the place of an object is a prompt alone.

    Raises:
        Broken: a line or the whole is no JSON, or a row no object.
    """
    lines = ((i, line) for i, line in enumerate(lines_of(path, encoding), 1) if line.strip())
    head = [*islice(lines, 2)]
    if not head:
        return
    try:
        a_line = isinstance(json.loads(head[0][1]), (dict, str))
    except (ValueError, RecursionError):
        begin = head[0][1].strip()
        a_line = ".json" not in Path(path).suffixes and begin[:1] != "[" and begin != "{"
    if len(head) > 1 and a_line and not name:
        rows = ((i, parsed(path, i, line.strip())) for i, line in chain(head, lines))
    else:
        whole = parsed(path, 1, "".join(lines_of(path, encoding)))
        rows = ((None if len(head) > 1 else 1, row) for row in table_in(whole, path, name))
    for number, row in rows:
        row = {"prompt": row} if isinstance(row, str) else row  # of a list of prompts
        if not isinstance(row, dict):
            said = json.dumps(row, ensure_ascii=False)
            raise Broken(path, number, f"a row is an object of columns, not {said:.20}")
        yield row


def rows_of(kind: str, paths: list[str], how: dict[str, Any]) -> Iterator[dict[str, Any]]:
    read = csv_rows if kind == "csv" else json_rows
    for path in paths:
        yield from read(path, **how)
