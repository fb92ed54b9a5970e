"""Whatever stands in a file of data: it is refused in one line, or every row of it is counted once,
as a pair or set aside with a reason.

    FUZZ=2000 python -m pytest -n 0 tests/test_fuzz.py    # many more files than by default
"""

import csv
import gzip
import io
import json
import os

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st
from place import place

from dpo import lint
from dpo.preferences import prepare
from dpo.recipe import parse
from dpo.sources import load_rows
from dpo.tokenization import load_tokenizer

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
            *('[{"role": "user"', "<|im_end|>", "Human: a\n\nAssistant: b", "\ud800", "a\r\nb"),
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
ANSWERS = ("chosen", "rejected")
NAMES = (
    *("prompt", "question", "instruction", "input", "context", "system", "history", "messages"),
    *("conversations", "images", "tools", "chat_template_kwargs", "score_chosen", "score", "row"),
    *("completions", "responses", "ratings", "response1", "response2", "overall_preference"),
    *("reason", "texts", "label", ""),
)
ROW = st.fixed_dictionaries(
    dict.fromkeys(ANSWERS, TEXT | MESSAGES | VALUE), optional=dict.fromkeys(NAMES, VALUE)
)


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
        if not train.layout.startswith("scored"):  # a pair of which is several rows
            counted = [*train.pairs["row"], *(bad.row for bad in train.bad)]
            assert sorted(counted) == [*range(1, train.rows + 1)]

    os.chdir(ROOT)
    return read


@given(rows=st.lists(ROW, min_size=1, max_size=5), packed=st.booleans())
@examples
def test_rows_of_json(account, rows, packed):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    account("a.jsonl.gz" if packed else "a.jsonl", gzip.compress(content) if packed else content)


@given(rows=st.lists(ROW, min_size=1, max_size=5), whole=st.booleans())
@examples
def test_rows_in_one_piece(account, rows, whole):
    account("a.json", json.dumps(rows if whole else {"data": rows}, indent=whole).encode())


@given(
    header=st.lists(st.sampled_from([*ANSWERS, *NAMES]), max_size=4),
    rows=st.lists(st.lists(TEXT | VALUE.map(str), max_size=7), max_size=5),
    sep=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
@examples
def test_fields_of_csv(account, header, rows, sep, encoding):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=sep)
    writer.writerows([["prompt", *ANSWERS, *header], *rows])
    account("a.csv", file.getvalue().encode(encoding, "replace"))


BYTES = st.lists(
    st.binary(max_size=4)
    | st.sampled_from([b'"', b",", b"\n", b"\r\n", b";", b"a", b"{", b"[", b'"chosen"', b"\xff"]),
    max_size=25,
).map(b"".join)


@given(
    begin=st.sampled_from([b"", b"prompt,chosen,rejected\n", b'{"prompt": "a", "chosen": "b",']),
    content=BYTES,
    name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.zst"]),
)
@examples
def test_bytes(account, begin, content, name):
    account(name, begin + content)
