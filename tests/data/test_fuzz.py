"""Whatever stands in a file of data: it is refused in one line, or every row of it is counted once,
as a pair or set aside with a reason.

    FUZZ=2000 python -m pytest -n 0 tests/data/test_fuzz.py    # many more files than by default
"""

import csv
import gzip
import io
import json
import os

import pytest
import zstandard
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st

from dpo.data import lint
from dpo.data.dataset import prepare
from dpo.data.sources.load import load, load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from support.place import ROOT, place

configuration.set_hypothesis_home_dir(place() / "hypothesis")  # not the checkout
examples = settings(
    max_examples=int(os.environ.get("FUZZ", 30)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[*HealthCheck],
)

TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *("NA", "None", "", " ", "007", "1e5", "True", "2020-01-01T00:00:00Z", "[1, 2]", "[{"),
            *('{"role": "user", "content": "Hi"}', "[{'role': 'user', 'content': 'Hi'}]", "\x00"),
            *('[{"role": "user"', "<|im_end|>", "Human: a\n\nAssistant: b", "a\r\nb"),
        ]
    ),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT},
    optional={"tool_calls": st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=1)},
)
MESSAGES = st.lists(MESSAGE, max_size=3)
NUMBER = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans())
ANYTHING = st.recursive(
    st.one_of(st.none(), NUMBER, TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
VALUE = st.one_of(TEXT, MESSAGES, MESSAGES.map(json.dumps), MESSAGES.map(repr), ANYTHING)


def said(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


LAYOUTS = {
    "explicit": lambda i: {
        "prompt": said("user", f"q{i}"),
        "chosen": said("assistant", f"a{i}"),
        "rejected": said("assistant", "b"),
    },
    "text": lambda i: {"prompt": f"q{i} ", "chosen": f"a{i}", "rejected": "b"},
    "question": lambda i: {"question": f"q{i}", "chosen": f"a{i}", "rejected": "b"},
    "implicit": lambda i: {
        "chosen": said("user", f"q{i}") + said("assistant", f"a{i}"),
        "rejected": said("user", f"q{i}") + said("assistant", "b"),
    },
    "rated": lambda i: {"prompt": f"q{i}", "responses": ["a", "b"], "ratings": [i, 9]},
    "scored": lambda i: {"prompt": f"q{i // 2}", "response": f"a{i}", "score": i % 2},
    "compared": lambda i: {
        "prompt": f"q{i}",
        "response1": "a",
        "response2": "b",
        "overall_preference": i - 2,
    },
}
NAMES = (
    *("input", "context", "system", "history", "messages", "tools", "chat_template_kwargs"),
    *("score_chosen", "score", "row", "reason", "texts", "label", "merged", ""),
)


@st.composite
def tables(draw) -> list[dict]:
    """Rows of one layout, some with one or two values that nobody would expect there."""
    layout = draw(st.sampled_from([*LAYOUTS.values()]))
    rows = [layout(i) for i in range(draw(st.integers(1, 6)))]
    for row in rows:
        if draw(st.integers(0, 2)) == 0:
            names = st.sampled_from([*row, *row, *NAMES])
            row |= draw(st.dictionaries(names, VALUE, max_size=2))
    return rows


@st.composite
def fields(draw) -> list[list[str]]:
    """The lines of a CSV file, some with a field that nobody would expect, or one too many."""
    more = draw(st.lists(st.sampled_from([*NAMES, "prompt"]), max_size=2, unique=True))
    lines = [["question", "chosen", "rejected", *more]]
    for i in range(draw(st.integers(0, 5))):
        line = [f"q{i}", f"a{i}", "b", *("c" for _ in more)]
        if draw(st.integers(0, 2)) == 0:
            line[draw(st.integers(0, len(line) - 1))] = draw(TEXT | VALUE.map(str))
            line = line[: draw(st.integers(1, len(line)))]
        lines.append(line + ["d"] * (draw(st.integers(0, 9)) == 9))
    return lines


@pytest.fixture(scope="module")
def account(tiny_model, tmp_path_factory):
    """A function that reads a file as a run does, and sees that each row is counted once."""
    folder = tmp_path_factory.mktemp("fuzz")
    flags = ["--use_cpu", "--eval_strategy=no", "--max_length=48", f"--output_dir={folder}/run"]
    flags += [f"--model_name_or_path={tiny_model}", "--config", "recipes/smollm2-sentiment.yaml"]
    tokenizer = load_tokenizer(parse([*flags, "--dataset_name=none"]))

    def read(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        recipe = parse([*flags, f"--dataset_name={folder / name}"])
        try:
            train = prepare(recipe, load_rows(recipe), tokenizer)["train"]
        except SystemExit as stop:
            assert isinstance(stop.code, str) and stop.code and "\n" not in stop.code
            return
        assert {bad.reason for bad in train.bad} <= lint.REASONS.keys()
        assert len(train.pairs) + len(train.bad) + train.merged == train.rows
        if not train.merged:
            counted = [*train.pairs["row"], *(bad.row for bad in train.bad)]
            assert sorted(counted) == [*range(1, train.rows + 1)]

    os.chdir(ROOT)
    return read


@given(rows=tables(), packed=st.booleans())
@examples
def test_rows_of_json(account, rows, packed):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    account("a.jsonl.gz" if packed else "a.jsonl", gzip.compress(content) if packed else content)


@given(rows=tables(), whole=st.booleans())
@examples
def test_rows_in_one_piece(account, rows, whole):
    account("a.json", json.dumps(rows if whole else {"data": rows}, indent=whole or None).encode())


@given(
    lines=fields(),
    sep=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
@examples
def test_fields_of_csv(account, lines, sep, encoding):
    file = io.StringIO()
    csv.writer(file, delimiter=sep).writerows(lines)
    account("a.csv", file.getvalue().encode(encoding, "replace"))


NAMED = st.builds(
    lambda folder, name, ending: f"{folder}{name}{ending}",
    st.sampled_from(["", "", "", "data/", "train/", "test/", "more/"]),
    st.sampled_from(
        ["train", "test", "train-2", "a", "b", "extra", "TRAIN", "validation", "x_test"]
    ),
    st.sampled_from([".jsonl", ".jsonl", ".json", ".csv", ".JSONL", ".jsonl.gz", ".xlsx", ".txt"]),
)


@given(names=st.lists(NAMED, min_size=1, max_size=4, unique_by=str.lower))
@examples
def test_files_of_a_folder(names, tmp_path_factory):
    """Each file is read, or it is named: with the rows, or in the refusal of all."""
    folder = tmp_path_factory.mktemp("folder")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        content = b"prompt,chosen,rejected\nq,a,b\n" if ".csv" in name else b'{"prompt": "q"}\n'
        content = gzip.compress(content) if name.endswith(".gz") else content
        (folder / name).write_bytes(content)
    try:
        splits = load(str(folder))
    except SystemExit as stop:
        assert "\n" not in stop.code and (
            any(n in stop.code for n in names) or "no file in" in stop.code
        )
        return
    for name in names:
        if not name.endswith(".txt"):  # notes, licences
            taken = [path for rows in splits.values() for path in rows.files]
            assert str(folder / name) in taken or name in next(iter(splits.values())).notes[0]


BYTES = st.lists(
    st.binary(max_size=4)
    | st.sampled_from([b'"', b",", b"\n", b"\r\n", b";", b"a", b"{", b"[", b'"chosen"', b"\xff"]),
    max_size=25,
).map(b"".join)


@given(
    begin=st.sampled_from(
        [b"", b"prompt,chosen,rejected\nq,a,b\n", b'{"prompt": "a", "chosen": "b",']
    ),
    content=BYTES,
    name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.zst"]),
)
@examples
def test_bytes(account, begin, content, name):
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name[-3:].strip("."), bytes)
    account(name, pack(begin + content))
