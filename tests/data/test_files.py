"""Files of every kind are read as they stand, or refused in a line that says where."""

import bz2
import gzip
import json
import lzma
from functools import cache

import datasets
import numpy as np
import pytest
import zstandard
from datasets import Dataset, DatasetDict
from huggingface_hub import constants

from dpo.data.dataset import prepare
from dpo.data.sources.load import load, load_rows
from dpo.evaluation import prompts
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from support.tiny import pair

RECIPE = ["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu", "--eval_strategy=no"]
HEADER = "question,chosen,rejected\n"
USER, GOOD = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}


def rows_of(path, split: str = "train") -> list[dict]:
    return [*load(str(path))[split].data]


@cache
def tokenizer(*flags):
    return load_tokenizer(parse([*RECIPE, *flags]))


def read(path, tmp_path, *flags):
    """The training pairs of a data set, as a run has them."""
    given = [*RECIPE, f"--dataset_name={path}", f"--output_dir={tmp_path}/run", *flags]
    recipe = parse(given)
    return prepare(recipe, load_rows(recipe), tokenizer(*flags))["train"]


# name: (the file's name, what is in it, the first row)
TEXT = {
    "NA": ("a.csv", HEADER + "q,NA,None\n", ["q", "NA", "None"]),
    "truth values": ("a.csv", HEADER + "q,True,False\n", ["q", "True", "False"]),
    "numbers": ("a.csv", HEADER + "q,42,1e5\n", ["q", "42", "1e5"]),
    "leading zeros": ("a.csv", HEADER + "01,007,1.50\n", ["01", "007", "1.50"]),
    "dates": ("a.csv", HEADER + "q,2020-01-01,1/2/03\n", ["q", "2020-01-01", "1/2/03"]),
    "blanks": ("a.csv", HEADER + "q, a ,\tb\n", ["q", " a ", "\tb"]),
    "an empty field": ("a.csv", HEADER + 'q,"",\n', ["q", "", ""]),
    "a short line": ("a.csv", HEADER + "q,a\n", ["q", "a", None]),
    "a blank line": ("a.csv", "\n" + HEADER + "\nq,a,b\n", ["q", "a", "b"]),
    "quotes": ("a.csv", HEADER + 'q,"a ""b"", c",d "e"\n', ["q", 'a "b", c', 'd "e"']),
    "quotes over lines": ("a.csv", HEADER + 'q,"a\r\n\nb",c\n', ["q", "a\r\n\nb", "c"]),
    "a long field": ("a.csv", HEADER + f"q,{'a' * 200_000},b\n", ["q", "a" * 200_000, "b"]),
    "tabs": ("a.tsv", "question\tchosen\trejected\nq\ta, b\tc\n", ["q", "a, b", "c"]),
    "semicolons": ("a.csv", "question;chosen;rejected\nq;1,5;b\n", ["q", "1,5", "b"]),
    "pipes": ("a.csv", "question|chosen|rejected\nq|a;|b,\n", ["q", "a;", "b,"]),
    "Excel's separator": ("a.csv", "sep=;\nquestion;chosen;rejected\nq;a;b\n", ["q", "a", "b"]),
    "UTF-8 with a mark": ("a.csv", "\ufeff" + HEADER + "q,é,b\n", ["q", "é", "b"]),
    "UTF-16": ("a.csv", (HEADER + "q,é,b\n").encode("utf-16"), ["q", "é", "b"]),
}


@pytest.mark.parametrize("name, content, row", TEXT.values(), ids=TEXT)
def test_csv_is_text(tmp_path, name, content, row):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    (found,) = rows_of(tmp_path / name)
    assert found == dict(zip(("question", "chosen", "rejected"), row, strict=True))


def test_csv_is_learned_from_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "is 1 odd?,True,False\nsodium?,Na,NA\n3?,007,\n")
    train = read(tmp_path / "a.csv", tmp_path)
    assert [p["chosen"][0]["content"] for p in train.pairs] == ["True", "Na"]
    assert [p["rejected"][0]["content"] for p in train.pairs] == ["False", "NA"]
    assert [(bad.row, bad.reason) for bad in train.bad] == [(3, "empty")]


# name: (the file's name, what is in it, what is said)
REFUSED = {
    "a comma too many": ("a.csv", HEADER + "q,a,b\nq,a, so,b\n", "line 3: 4 fields for 3 columns"),
    "in every row": ("a.csv", HEADER + "q,a, so,b\n", "must stand in quotes"),
    "after quotes over lines": ("a.csv", HEADER + 'q,"a\nb",c\nq,a,b,c\n', "line 4: 4 fields"),
    "an open quote": ("a.csv", HEADER + 'q,"a,b\nq,a,b\n', "line 2: unexpected end of data"),
    "a quote in quotes": ("a.csv", HEADER + 'q,"a "b" c",d\n', "quote in a field not doubled"),
    "two columns of a name": ("a.csv", "prompt,chosen,chosen\na,b,c\n", "are called 'chosen'"),
    "Latin-1": ("a.csv", HEADER.encode() + b"q,caf\xe9,b\n", "line 2: .*write it again as UTF-8"),
    "UTF-16 without a mark": ("a.csv", (HEADER + "q,a,b\n").encode("utf-16-le"), "line 1: .*UTF-8"),
    "lines of an old Mac": ("a.csv", (HEADER + "q,a,b\n").replace("\n", "\r"), r"with \\n: mend"),
    "nothing": ("a.csv", "", "a.csv has no rows: fill it, or take it out"),
    "a header": ("a.tsv", "question\tchosen\trejected\n", "a.tsv has no rows"),
    "a key twice": ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "b": 3}', "line 2: 'b' stands twice"),
    "a key twice in a message": (
        "a.jsonl",
        '{"a": {"b": "x", "b": "y"}}',
        "object, as 'x' and 'y'",
    ),
    "a key twice in a list": ("a.json", '[{"a": 1},\n{"b": 1,\n"b": 2}]', "'b' stands twice"),
    "a key twice around": ("a.json", '{"data": [{"a": 1}], "data": [{"a": 2}]}', "'data' stands"),
    "JSON of an old Mac": ("a.jsonl", '{"a": 1}\r{"a": 2}\r', r"lines end with \\r alone"),
    "pandas' split": (
        "a.json",
        '{"columns": ["a", "b"], "index": [0], "data": [["x", "y"]]}',
        'split form: save it with a row a line: .*orient="records", lines=True',
    ),
    "columns as lists": ("a.json", '{"a": ["x", "y"], "b": [1, 2]}', "a, b are columns as lists"),
    "columns of messages": ("a.json", json.dumps({k: [[USER]] * 2 for k in "ab"}), "as lists"),
    "no list": ("a.json", "5", "a row is an object of columns, not 5"),
    "two lists": ("a.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', "several lists of rows"),
    "two lists beside a word": (
        "a.json",
        '{"version": "1", "train": [{"a": 1}], "test": [{"a": 1}]}',
        "several lists of rows, train, test",
    ),
    "two lists of any names": (
        "a.json",
        '{"meta": "x", "data": [{"a": 1}],\n"examples": [{"a": 1}]}',
        "several lists of rows, data, examples",
    ),
    "a list of rows and another": (
        "a.jsonl",
        '{"n": 2, "pairs": [{"a": 1}], "skipped": [{"a": 1}]}',
        "several lists of rows, pairs, skipped",
    ),
    "objects over several lines": (
        "a.jsonl",
        '{\n "a": 1\n}\n{\n "a": 2\n}\n',
        "another value begins in line 4: write a row a line",
    ),
    **{
        f"{what} as {name}": (name, content, says)
        for name in ("a.jsonl", "a.csv", "a.parquet", "a.json.gz")
        for what, content, says in (
            (
                "a pointer",
                "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 5\n",
                "it is the pointer that git leaves without git-lfs: .*git lfs pull",
            ),
            ("a page", "\n<!DOCTYPE html>\n<html></html>\n", "it is a web page, and no data"),
        )
    },
    "a page with a mark": ("a.tsv", "\ufeff<HTML lang=en>\n", "it is a web page, and no data"),
    "an answer of a server": ("a.arrow", '<?xml version="1.0"?><Error>', "it is a web page"),
    "half a list": ("a.json", '[{"a": 1},\n{"a": 2}', "line 2: Expecting"),
    "a packed line": ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": \n'), "line 2: Expecting"),
    "half a gzip": ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "cannot be unpacked"),
    "no zstd": ("a.jsonl.zst", "a", "cannot be unpacked"),
    "deep": ("a.jsonl", "[" * 100_000, "recursion"),
    "another kind": ("a.xlsx", "PK", "not one of .jsonl"),
}


@pytest.mark.parametrize("name, content, says", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_by_its_line(tmp_path, name, content, says):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=says) as stop:
        load(str(tmp_path / name))
    assert "\n" not in stop.value.code and name in stop.value.code


CALL = GOOD | {"content": None, "tool_calls": [{"arguments": {"x": 0.7, "id": 2**70, "y": None}}]}
VALUES = {
    "dates": {"chosen": "2020-01-01", "rejected": "2020-01-01T10:00:00+02:00"},
    "a date in one row": [{"chosen": "2020-01-01 00:00:00"}, {"chosen": "never"}],
    "dates in messages": {"chosen": [GOOD | {"content": "2020-01-01"}]},
    "dates in objects": {"meta": {"day": "1999-12-31T00:00:00Z"}},
    "numbers to the last digit": {"chosen": [CALL], "score": 0.1, "count": 2**53},
    "mixed": [{"score": 1}, {"score": "high"}, {"score": [1]}, {"score": 1.5}],
    "text that is JSON": [{"chosen": "42"}, {"chosen": 42}, {"chosen": '"a"'}],
    "numbers": [{"score": 1}, {"score": 0.5}],
    "keys of their own": [{"tools": [{"a": 1}]}, {"tools": [{"b": None}]}, {"tools": []}],
}
FORMS = {
    "lines": lambda rows: "".join(f"{json.dumps(row)}\n" for row in rows),
    "lines after a mark": lambda rows: "\ufeff" + "\n\n".join(map(json.dumps, rows)),
    "a list": json.dumps,
    "in an object": lambda rows: json.dumps({"version": "1.0", "data": rows}),
    "indented": lambda rows: json.dumps({"data": rows}, indent=2),
    "under another name": lambda rows: json.dumps({"name": "x", "pairs": rows}),
}


FEW = ("dates in messages", "mixed", "keys of their own")  # of lines and of a list, all


@pytest.mark.parametrize("form", FORMS)
def test_json_is_what_it_says(tmp_path, form):
    for name in VALUES if form in ("lines", "a list") else FEW:
        rows = VALUES[name]
        rows = rows if isinstance(rows, list) else [rows]
        path = tmp_path / f"{name}.json"
        path.write_text(FORMS[form](rows), encoding="utf-8")
        assert rows_of(path) == rows, name
        # And as it streams by.
        assert [*load(str(path), streaming=True)["train"].data] == rows, name


def test_json_of_columns_as_pandas_writes_it(tmp_path):
    rows = [{"question": f"{i}", "chosen": "2020-01-01", "rejected": "b"} for i in range(3)]
    table = Dataset.from_list(rows).to_pandas()
    table.to_json(tmp_path / "a.json")
    assert rows_of(tmp_path / "a.json") == rows
    table[table["question"] != "1"].to_json(tmp_path / "b.json")  # its rows keep their numbers
    assert rows_of(tmp_path / "b.json") == rows[::2]
    table.to_json(tmp_path / "c.json", orient="index")
    assert rows_of(tmp_path / "c.json") == rows


def test_a_row_of_lists_is_a_row(tmp_path):
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD], "history": [["a", "b"]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert rows_of(tmp_path / "a.jsonl") == [row]


ROWS = [pair(f"{i}", f"It was {i}.", f"It was not {i}.") for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PACKED = {
    "jsonl.gz": gzip.compress(LINES),
    "jsonl.zst": zstandard.compress(LINES),
    "jsonl.bz2": bz2.compress(LINES),
    "json.xz": lzma.compress(LINES),
    "ndjson": LINES,
    "JSONL": LINES,
}
FOLDERS = {
    "parquet": lambda rows, to: rows.to_parquet(to / "train.parquet"),
    "arrow": lambda rows, to: rows.save_to_disk(to / "x") or next(to.glob("x/*.arrow")),
    "save_to_disk": lambda rows, to: rows.save_to_disk(to),
    "a DatasetDict": lambda rows, to: DatasetDict(train=rows, test=rows).save_to_disk(to),
}


@pytest.mark.parametrize("suffix", PACKED)
def test_files_are_unpacked(tmp_path, suffix):
    (tmp_path / f"train.{suffix}").write_bytes(PACKED[suffix])
    assert rows_of(tmp_path / f"train.{suffix}") == ROWS
    if suffix != "JSONL":  # `datasets` finds a folder's files
        assert rows_of(tmp_path) == ROWS


@pytest.mark.parametrize("form", FOLDERS)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_datasets_writes_is_read(tmp_path, form, streaming):
    where = FOLDERS[form](Dataset.from_list(ROWS), tmp_path)
    where = where if form == "arrow" else tmp_path
    assert [*load(str(where), streaming=streaming)["train"].data] == ROWS


def test_what_datasets_has_cached_is_no_data(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "inner")
    Dataset.from_list(ROWS[:1]).save_to_disk(tmp_path / "old")
    next(tmp_path.glob("old/*.arrow")).rename(tmp_path / "inner/cache-abc.arrow")
    assert rows_of(tmp_path) == rows_of(tmp_path / "inner") == ROWS


MORE = "".join(json.dumps(pair(f"more {i}", "So.", "No.")) + "\n" for i in range(3)).encode()
CARD = b"---\nconfigs:\n- {config_name: default, data_files: a.jsonl}\n---\n"
TWO = CARD.replace(b"default", b"a")[:-4] + b"- {config_name: b, data_files: a.jsonl}\n---\n"
# The files beside train.jsonl, and those of them that are named as not read.
BESIDE = {
    "another name": (["extra.jsonl"], ["extra.jsonl"]),
    "another kind": (["more.csv", "b.parquet"], ["b.parquet", "more.csv"]),
    "capitals": (["EXTRA.JSONL", "TEST.jsonl.GZ"], ["EXTRA.JSONL", "TEST.jsonl.GZ"]),
    "packed": (["b.jsonl.gz"], ["b.jsonl.gz"]),
    "in a folder": (["more/b.json"], ["more/b.json"]),
    "what we cannot read": (["more.xlsx", "c.zip"], ["c.zip", "more.xlsx"]),
    "a second of the split": (["train-2.jsonl"], []),
    "a split in a folder": (["sub/train.jsonl", "extra.csv"], ["extra.csv"]),
    "backups": (["train.jsonl.bak", "train.jsonl.old"], ["train.jsonl.bak", "train.jsonl.old"]),
    "numbered backups": (["train.jsonl.1", "train.jsonl~"], ["train.jsonl.1", "train.jsonl~"]),
    "half a file": (["train.jsonl.part", "test.jsonl"], ["train.jsonl.part"]),
    "no data": (["README.md", "notes.txt", ".cache/a.jsonl"], []),
}


@pytest.mark.parametrize("names, left", BESIDE.values(), ids=BESIDE)
def test_files_of_a_folder_that_are_not_read_are_named(tmp_path, names, left):
    folder = tmp_path / "data"
    for name in ("train.jsonl", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(LINES if name == "train.jsonl" else MORE)
    train = read(folder, tmp_path)
    said = "".join(note for note in train.notes if "files that" in note)
    made = [name for name in (*names, "train.jsonl") if "train" in name and name not in left]
    line = f"train is read from several files: {', '.join(sorted(made))}"
    assert [note for note in train.notes if "several" in note] == [line] * (len(made) > 1)
    assert len(train.pairs) == 3 * len(made)
    assert said.partition(" (")[0] == (f"files that are not read: {', '.join(left)}" * bool(left))
    assert not left or "endings in small letters: append the others" in said


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_no_server_is_told_what_is_loaded(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("datasets.load.get_session", lambda: pytest.fail("a server is asked"))
    table = Dataset.from_list(ROWS)
    write = table.to_json if suffix == "jsonl" else table.to_parquet
    write(tmp_path / f"a.{suffix}")
    assert rows_of(tmp_path) == rows_of(tmp_path / f"a.{suffix}") == ROWS


# Names that `datasets` would take for patterns, and others that these would match.
PATTERNS = {
    "brackets": ("a[1]", "a1"),
    "a question mark": ("d?", "dx"),
    "a star": ("e*", "east"),
    "a range": ("prefs [a-z]", "prefs b"),
    "an open bracket": ("f[1", "f1"),
    "no pattern": ("b (1) #2", "b 1"),
}


@pytest.mark.parametrize("name, other", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_names_are_no_patterns(tmp_path, name, other, suffix):
    for path, rows in ((name, ROWS[:1]), (other, ROWS[1:])):
        write = getattr(Dataset.from_list(rows), {"jsonl": "to_json"}.get(suffix, "to_parquet"))
        write(tmp_path / f"{path}.{suffix}")
        (tmp_path / path).mkdir()
        write(tmp_path / path / f"train.{suffix}")
    Dataset.from_list(ROWS[:1]).save_to_disk(tmp_path / name / "saved")
    for data in (f"{name}.{suffix}", name, f"{name}/train.{suffix}", f"{name}/saved"):
        assert rows_of(tmp_path / data) == ROWS[:1], data
        assert [*load(str(tmp_path / data), streaming=True)["train"].data] == ROWS[:1], data
    (tmp_path / name / "README.md").write_bytes(CARD.replace(b"a.jsonl", b"train.*"))
    assert rows_of(tmp_path / name) == ROWS[:1]
    how = {"data_files": str(tmp_path / f"{name}.{suffix}")}
    kind = "json" if suffix == "jsonl" else suffix
    assert [*load(kind, "datasets", **how)["train"].data] == ROWS[:1]


NONE_OR_MANY = {
    "two kinds": ({"a.jsonl": LINES, "b.csv": b"a"}, "b.csv: it would not be read beside a.jsonl"),
    "two of a split": ({"train.jsonl": LINES, "train.csv": b"a"}, "train.csv: it would not be re"),
    "capitals beside": ({"a.jsonl": LINES, "B.JSONL": MORE}, "B.JSONL: it would not be read"),
    "capitals alone": ({"TRAIN.JSONL": LINES}, "in small letters, as TRAIN.JSONL should"),
    "sheets alone": ({"a.xlsx": b"PK"}, "ends with .jsonl, .*, as a.xlsx should"),
    "nothing": ({"README.md": b"a"}, "no file in it ends with .jsonl"),
    "splits of two kinds": (
        {"train.jsonl": LINES, "test.csv": HEADER.encode()},
        r"its splits are of several kinds \(test.csv, train.jsonl\): write them alike",
    ),
    "a card that is no YAML": (
        {"a.jsonl": LINES, "README.md": b"---\nconfigs: [a: b\n---\n"},
        "the lines between --- in its README.md are no YAML: .*line ",
    ),
    "a card that is cut off": (
        {"a.jsonl": LINES, "README.md": b"---\nlicense: 'mit\n---\n"},
        "the lines between --- in its README.md are no YAML",
    ),
    "a card of tabs": (
        {"a.jsonl": LINES, "README.md": b"---\nconfigs:\n\t- a\n---\n"},
        "the lines between --- in its README.md are no YAML",
    ),
    "a card of two": (
        {"a.jsonl": LINES, "README.md": TWO},
        "several configurations: choose one of 'a', 'b' with --dataset_config",
    ),
    "an empty split": ({"train.jsonl": LINES, "test.jsonl": b""}, "test.jsonl has no rows: fill"),
}


@pytest.mark.parametrize("files, says", NONE_OR_MANY.values(), ids=NONE_OR_MANY)
def test_a_folder_of_which_nobody_knows_what_is_meant_is_refused(tmp_path, files, says):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=says) as stop:
        load(str(tmp_path))
    assert "\n" not in stop.value.code


def test_what_a_card_leaves_out_and_other_splits_are_named(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in {"README.md": CARD, "a.jsonl": LINES, "b.csv": MORE}.items():
        (folder / name).write_bytes(content)
    assert "not read: b.csv (" in read(folder, tmp_path).notes[0]
    saved = tmp_path / "saved"
    DatasetDict({name: Dataset.from_list(ROWS) for name in ("train", "more", "test")}).save_to_disk(
        saved
    )
    (saved / "extra.jsonl").write_bytes(MORE)
    files, splits = read(saved, tmp_path).notes[:2]
    assert "not read: extra.jsonl (" in files and "splits that are not read: more (" in splits
    with pytest.raises(SystemExit, match=r"has files that are not read: extra.jsonl \("):
        prompts.read(str(saved))


def listed(messages) -> str:
    return str(np.array(messages, dtype=object))


TURNS = [USER, GOOD | {"content": 'It\'s } {\n "so", ' + "really " * 20}]
SHAREGPT = [{"from": "human", "value": "How?"}, {"from": "gpt", "value": TURNS[1]["content"]}]


WAYS = {
    "JSON": json.dumps,
    "Python": repr,
    "numpy": listed,
    "numpy's repr": lambda turns: repr(np.array(turns, dtype=object)),
    "JSON between lines": lambda turns: f" \n{json.dumps(turns)}\n",
    "JSON of JSON": lambda turns: json.dumps(json.dumps(turns)),
    "a tuple": lambda turns: repr((*turns,)),
    "without its brackets": lambda turns: json.dumps(turns)[1:-1],
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("turns", [TURNS, SHAREGPT], ids=["messages", "sharegpt"])
@pytest.mark.parametrize("whole", [False, True])
def test_messages_that_are_text_are_parsed(tmp_path, write, turns, whole):
    first = turns if whole else turns[1:]
    row = {"chosen": write(first), "rejected": write([*first[:-1], turns[1] | {[*USER][1]: "No."}])}
    if "from" in turns[0]:
        row["rejected"] = write([*first[:-1], turns[1] | {"value": "No."}])
    row |= {} if whole else {"prompt": write(turns[:1])}
    Dataset.from_list([row]).to_csv(tmp_path / "a.csv")
    (found,) = read(tmp_path / "a.csv", tmp_path).pairs
    assert found["prompt"] == [USER]
    assert found["chosen"] == [TURNS[1]]
    assert found["rejected"] == [GOOD | {"content": "No."}]


@pytest.mark.parametrize("write", [json.dumps, repr])
@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs", "history", "responses"])
def test_other_lists_that_are_text_are_parsed(tmp_path, write, name):
    value = {
        "tools": [tool("f", x={"enum": ["it's"], "default": None})],
        "chat_template_kwargs": {"enable_thinking": False},
        "history": [["Who?", "It's me."]],
        "responses": ["It's so.", "No."],
    }[name]
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD | {"content": "No."}], name: value}
    if name == "responses":
        row = {"question": "How?", name: value, "ratings": [5, 1.5]}
    text = {key: write(v) if isinstance(v, list) or key == name else v for key, v in row.items()}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "b.jsonl").write_text(json.dumps(text))
    flags = ["--chat_template_path=qwen3", "--max_length=512"]
    one, two = (read(tmp_path / f"{n}.jsonl", tmp_path, *flags).pairs for n in "ab")
    for key in ("prompt_ids", "chosen_ids", "rejected_ids", "template_options"):
        assert one[0][key] == two[0][key]
    if name == "history":
        assert two[0]["prompt"][0]["content"] == "Who?"
    assert bool(two[0]["template_options"]) == (name not in ("history", "responses"))


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        '{"name": "Ann"}',
        '[{"from": "Paris", "to": "Rome"}]',
        '{"role": "admin"}',
        "[x for x in xs]",
        '"role": 1 is no message',
        '(1, "role": 2)',
        json.dumps('"role": 1'),
        '[link](a) has "role": 1',
    ],
)
def test_text_that_begins_with_a_bracket_stays_text(tmp_path, text):
    rows = [{"question": "How?", "chosen": text, "rejected": "No."}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    (found,) = read(tmp_path / "a.jsonl", tmp_path).pairs
    assert found["chosen"] == [GOOD | {"content": text}]


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "assistant", "content": "cut of',
        "[{'role': 'assistant', 'content': array([1])}]",
        '[{"from": "gpt", "value": "a" "b"}',
        '{"content": "a", "role": assistant}',
    ],
)
def test_messages_that_cannot_be_parsed_are_set_aside(tmp_path, text):
    rows = [{"question": f"{i}", "chosen": "a", "rejected": "b"} for i in range(2)]
    rows[1]["chosen"] = text
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = read(tmp_path / "a.jsonl", tmp_path)
    assert [(bad.row, bad.reason) for bad in train.bad] == [(2, "not_messages")]
    assert "chosen begins as messages" in train.bad[0].detail


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ["images", "image"])
@pytest.mark.parametrize("value", [[], None, [None], "", [{"bytes": None, "path": None}]])
def test_an_images_column_may_be_empty(tmp_path, suffix, name, value):
    rows = Dataset.from_list([row | {name: value} for row in ROWS])
    write = rows.to_json if suffix == "jsonl" else rows.to_parquet
    write(tmp_path / f"a.{suffix}")
    train = read(tmp_path / f"a.{suffix}", tmp_path)
    assert len(train.pairs) == 3 and name not in train.pairs.column_names


@pytest.mark.parametrize("value", ["a.png", ["a.png"], [None, {"path": "a"}], {"bytes": "a"}])
def test_an_image_is_refused_by_its_row(tmp_path, value):
    rows = [*ROWS[:2], ROWS[2] | {"images": value}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match="has images, and text alone is trained on here: row 3"):
        read(tmp_path / "a.jsonl", tmp_path)


def tool(name: str, **properties) -> dict:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name: str, **arguments) -> list[dict]:
    function = {"name": name, "arguments": arguments}
    return [GOOD | {"content": "", "tool_calls": [{"type": "function", "function": function}]}]


PADDED = {
    "tools": [{"tools": [tool(f"f{i}", **{f"x{i}": {"type": f"t{i}"}})]} for i in range(2)],
    "calls": [{"chosen": call(f"f{i}", **{f"x{i}": i})} for i in range(2)],
    "optional parts": [{"tools": [tool("f0", x={"enum": ["a"]})]}, {"tools": [tool("f1")]}],
    "options": [{"chat_template_kwargs": {f"x{i}": i}} for i in range(2)],
}


@pytest.mark.parametrize("case", PADDED)
@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_a_struct_adds_no_nulls(tmp_path, case, form):
    """As a table each row has the keys of all; as JSON lines only its own."""
    rows = [ROWS[i] | more for i, more in enumerate(PADDED[case])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Dataset.from_list(rows)
    assert [*table] != rows
    (tmp_path / "b").mkdir()
    FOLDERS[form](table, tmp_path / "b")
    flags = ["--chat_template_path=qwen3"]
    own, found = (read(tmp_path / name, tmp_path, *flags).pairs for name in ("a.jsonl", "b"))
    for name in ("prompt_ids", "chosen_ids", "template_options"):
        assert [*found[name]] == [*own[name]]


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
@pytest.mark.parametrize("whole", [False, True])
def test_messages_as_an_object_of_lists_are_read(tmp_path, keys, whole):
    """As older `datasets` wrote sequences of objects."""

    def columns(*turns):
        return {key: [turn[name] for turn in turns] for key, name in zip(keys, USER, strict=True)}

    no = GOOD | {"content": "No."}
    row = {"chosen": columns(USER, GOOD), "rejected": columns(USER, no)}
    if not whole:
        row = {"prompt": columns(USER), "chosen": columns(GOOD), "rejected": columns(no)}
    Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row))
    for name in ("a.parquet", "a.jsonl"):
        found = read(tmp_path / name, tmp_path).pairs[0]
        assert [found[n] for n in ("prompt", "chosen", "rejected")] == [[USER], [GOOD], [no]]


SPLITS = {
    "another column": ({"score": 1.0}, {"other": "x"}),
    "another kind": ({"score": 1.0}, {"score": "high"}),
    "more in a struct": ({"meta": {"a": 1}}, {"meta": {"b": [2]}}),
    "an empty one": ({"tools": []}, {"tools": [tool("f", x={"type": "t"})]}),
}


@pytest.mark.parametrize("case", SPLITS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_splits_may_differ_in_their_columns(tmp_path, case, suffix):
    for split, more in zip(("train", "test"), SPLITS[case], strict=True):
        rows = Dataset.from_list([row | more for row in ROWS])
        write = rows.to_json if suffix == "jsonl" else rows.to_parquet
        write(tmp_path / f"{split}.{suffix}")
    for split, more in zip(("train", "test"), SPLITS[case], strict=True):
        assert rows_of(tmp_path, split) == [row | more for row in ROWS]


def test_files_of_a_mixture_come_through_the_same_door(tmp_path):
    (tmp_path / "a.csv").write_text("question;chosen;rejected\n" + "1;NA;007\n2;a;b\n3;c;d\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "c")
    (tmp_path / "mixed.yaml").write_text(f"""\
model_name_or_path: models/SmolLM2-135M-Instruct
datasets:
  - {{path: csv, data_files: "{tmp_path}/*.csv", split: "train[:1]+train[2:]"}}
  - {{path: json, data_files: {tmp_path}/b.jsonl.gz}}
  - {{path: {tmp_path}/c, split: "train[:50%]"}}
eval_strategy: "no"
output_dir: {tmp_path}/run
""")
    recipe = parse(["--config", str(tmp_path / "mixed.yaml"), "--use_cpu"])
    one, two, three = load_rows(recipe)[0]
    assert [row["chosen"] for row in one.data] == ["NA", "c"]
    assert [*two.data] == ROWS and [*three.data] == ROWS[:2]
    text = (tmp_path / "mixed.yaml").read_text().replace("train[:50%]", "tran")
    (tmp_path / "mixed.yaml").write_text(text)
    with pytest.raises(SystemExit, match="c has no split 'tran', only train"):
        load_rows(parse(["--config", str(tmp_path / "mixed.yaml"), "--use_cpu"]))


def test_a_csv_file_of_the_hub_is_read_again_offline(tmp_path, monkeypatch):
    """As an earlier run has left it in the hub's cache."""
    home = tmp_path / "hub/datasets--someone--pairs"
    (home / "snapshots/abc").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs/main").write_text("abc")
    (home / "snapshots/abc/train.csv").write_text(HEADER + "q,NA,007\n")
    for name, value in {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(constants, name, value)
    (row,) = rows_of("someone/pairs")
    assert (row["chosen"], row["rejected"]) == ("NA", "007")


ASKED = [USER]
PROMPTS = {
    "a.txt": b"How?\n\n",
    "a.txt.gz": gzip.compress(b"How?\n"),
    "a.csv": b"prompt\nHow?\n",
    "b.tsv": b"id\tquestion\n1\tHow?\n",
    "c.csv": (
        "instruction,tools\n" + '"' + json.dumps([USER]).replace('"', '""') + '",\n'
    ).encode(),
    "a.jsonl": json.dumps({"question": "How?"}).encode(),
    "b.jsonl": json.dumps({"messages": TURNS}).encode(),
    "c.jsonl": json.dumps({"conversations": SHAREGPT}).encode(),
    "d.jsonl.gz": gzip.compress(json.dumps({"prompt": [USER]}).encode()),
    "a.json": json.dumps([{"instruction": "How?", "input": ""}]).encode(),
    "b.json": b'["How?"]',
    "e.jsonl": b'"How?"\n',
    "f.jsonl": json.dumps({"query": "How?"}).encode(),
    "g.jsonl": json.dumps({"prompt": [{"role": "Human", "content": "How?"}]}).encode(),
    "h.jsonl": json.dumps({"context": "<s>How?</s>", "context_messages": [USER]}).encode(),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_come_through_the_same_door(tmp_path, name):
    (tmp_path / name).write_bytes(PROMPTS[name])
    assert prompts.read(str(tmp_path / name)) == [[USER]]


def test_prompts_of_folders_and_what_stands_beside_them(tmp_path):
    rows = [{"prompt": "How?", "system": "Be brief.", "tools": [tool("f")]}]
    rows.append({"prompt": [USER], "tools": [tool("g", x={"type": "t"})]})
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    (asked,) = prompts.read(str(tmp_path / "a.jsonl"))
    system = {"role": "system", "content": "Be brief."}
    assert asked == {"prompt": [system, USER], "options": {"tools": [tool("f")]}}
    Dataset.from_list(rows[1:]).save_to_disk(tmp_path / "b")
    assert prompts.read(str(tmp_path / "b"))[0]["options"] == {"tools": rows[1]["tools"]}


@pytest.mark.parametrize(
    "row, says",
    [
        ({"prompt": "q", "system_message": "x"}, "asked: prompt; not read: system_message"),
        ({"prompt": "q", "image": "x.png", "id": 3}, "asked: prompt; not read: image"),
        ({"id": "x", "text": "long", "query": "q"}, "asked: text; not read: id, query"),
        ({"prompt": "q", "tags": ["a"], "meta": {"b": 1}}, "not read: tags, meta"),
        ({"prompt": "q", "system": "x", "chosen": "a", "rejected": "b", "score": 1.0}, ""),
    ],
)
def test_what_is_not_asked_of_prompts_is_named(row, says, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    prompts.read(str(tmp_path / "prompts.jsonl"))
    assert says in (out := capsys.readouterr().out) and bool(out) == bool(says)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", 'prompt\na\n\n""\n', "row 2: the prompt has no text"),
        ("a.jsonl", '{"prompt": null}', "row 1: a column is missing"),
        ("a.jsonl", '{"prompt": 5}', "row 1: a value of the wrong kind"),
        (
            "a.jsonl",
            json.dumps({"prompt": '[{"role": "user", "content": "cut'}),
            "row 1: a value of the wrong kind",
        ),
        ("a.jsonl", json.dumps({"prompt": [USER, GOOD]}), "row 1: the prompt ends with the as"),
        ("a.jsonl", '{"answer": "a"}', "no column `prompt`, only answer"),
        ("a.csv", "prompt\na,b\n", "line 2: 2 fields for 1 columns"),
        ("a.txt", "", "holds no prompts"),
        ("a.jsonl", '{"prompt": null}\n{"prompt": null}', r"row 1: .* take the row out \(prompt"),
        ("a.jsonl", '{"prompt": "a", "tools": "[{"}', r"row 1: .*\(tools is no JSON: Expecting"),
        ("a.jsonl", '{"prompt": "a", "tools": {"a": 1}}', r"row 1: .*\(tools is no list"),
        ("a.jsonl", '{"prompt": "a", "chat_template_kwargs": [1]}', "kwargs is no object"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=says) as stop:
        prompts.read(str(tmp_path / name))
    assert "\n" not in stop.value.code


def test_a_cache_that_cannot_be_made_is_named(monkeypatch, tiny_data):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/nothing")
    with pytest.raises(SystemExit, match=r"are kept in /proc/nothing, .*HF_DATASETS_CACHE"):
        load(str(tiny_data))
