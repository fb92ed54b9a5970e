"""Prompts of any kind are read one at a time, and those that cannot be asked are counted."""

import gzip
import json

import pytest

from dpo.core.refusal import Refusal
from dpo.evaluation.contestants import find
from dpo.pairs import asked
from dpo.pairs.answers import Asked


@pytest.fixture
def model(tiny_model) -> Asked:
    return Asked(find(str(tiny_model)), "cpu", 4)


def read(folder, model, name, **how):
    found = asked.read(str(name), folder, [model], **{"max_new_tokens": 8, "test_size": 0.5, **how})
    return found, [entry for block in asked.blocks(folder, 4) for entry in block.entries]


def said(entries) -> list[str]:
    return [entry["prompt"][-1]["content"] for entry in entries]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "txt.gz", "jsonl.gz"])
def test_prompts_are_read_from_files(kind, tmp_path, model):
    texts = ["What is a dog?", 'Say "hi",\tplease', "Où est-il ?"]
    rows = [{"prompt": text, "answer": str(n)} for n, text in enumerate(texts)]
    written = {
        "txt": "\n".join(["", *texts, " ", ""]),
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": "prompt,answer\n"
        + "".join(f'"{t.replace(chr(34), chr(34) * 2)}",{n}\n' for n, t in enumerate(texts)),
    }[kind.split(".")[0]].encode()
    path = tmp_path / f"asked.{kind}"
    path.write_bytes(gzip.compress(written) if kind.endswith("gz") else written)
    found, entries = read(tmp_path, model, path, keep_rows=True)
    assert said(entries) == texts and (found.rows, found.asked) == (3, 3)
    if kind.startswith("txt"):
        assert [entry["at"] for entry in entries] == [2, 3, 4]  # as an editor numbers lines
    else:
        assert [entry["row"]["answer"] for entry in entries] == ["0", "1", "2"]


def test_rows_that_cannot_be_asked_are_counted(tmp_path, model):
    rows = [
        {"prompt": "What is a dog?"},
        {"prompt": " What is a dog? "},  # again
        {"prompt": ""},
        {"prompt": None},
        {"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi!"}]},
        {"prompt": [{"role": "captain", "content": "Go"}]},
        {"prompt": "word " * 3000},
        {"prompt": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Why?"}]},
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found, entries = read(tmp_path, model, path)
    assert said(entries) == ["What is a dog?", "Why?"]
    assert len(entries[1]["prompt"]) == 2  # the whole conversation
    counts = {"repeated": 1, "no_prompt": 1, "missing": 1, "wrong_role": 1, "unknown_role": 1}
    assert dict(found.left_out) == counts | {"too_long": 1}
    assert (found.rows, found.asked) == (8, 2)


def test_a_part_of_the_prompts_is_taken(tmp_path, model):
    path = tmp_path / "asked.txt"
    path.write_text("".join(f"Question {n % 9}?\n" for n in range(12)))
    found, entries = read(tmp_path, model, path, skip=2, first=3)
    assert said(entries) == ["Question 2?", "Question 3?", "Question 4?"]
    assert (found.rows, found.asked) == (3, 3)
    with pytest.raises(Refusal, match=r"--skip 9 passes over all that .*: 9 prompts"):
        read(tmp_path, model, path, skip=9)
    with pytest.raises(Refusal, match="--test_size 9 leaves none of 9 prompts to train on"):
        read(tmp_path, model, path, test_size=9)


def test_pairs_of_conversations_are_prompts_too(tmp_path, model):
    """As UltraFeedback's are, where the prompt stands in both answers."""
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    turns += [{"role": "user", "content": "C?"}]
    row = {s: [*turns, {"role": "assistant", "content": s}] for s in ("chosen", "rejected")}
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(row))
    _, (entry,) = read(tmp_path, model, path)
    assert entry["prompt"] == turns


def test_splits_stay_apart_and_no_prompt_is_in_both(tmp_path, model):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "A?"}\n{"prompt": "B?"}\n{"prompt": "C?"}\n')
    (folder / "test.jsonl").write_text('{"prompt": "B?"}\n{"prompt": "D?"}\n')
    found, entries = read(tmp_path, model, folder)
    assert [(e["split"], s) for e, s in zip(entries, said(entries), strict=True)] == [
        ("train", "A?"),
        ("train", "B?"),
        ("train", "C?"),
        ("test", "D?"),
    ]
    assert found.left_out == {"repeated": 1}
    starts = [(block.part, block.start) for block in asked.blocks(tmp_path, 2)]
    assert starts == [(0, 0), (0, 2), (1, 0)]
    assert said(read(tmp_path, model, folder, first=1, skip=1)[1]) == ["B?", "D?"]
    assert said(read(tmp_path, model, folder, test_size=0)[1]) == ["A?", "B?", "C?"]
    assert said(read(tmp_path, model, folder, split="test")[1]) == ["B?", "D?"]
    with pytest.raises(Refusal, match=r"no split 'dev', only test, train|only train, test"):
        read(tmp_path, model, folder, split="dev")


def test_the_prompts_of_a_recipe_are_those_of_its_pairs(tmp_path, model):
    _, entries = read(tmp_path, model, "smollm2-sentiment")
    counts = [sum(entry["split"] == split for entry in entries) for split in ("train", "test")]
    assert counts[0] > 400 and counts[1] == 124
    assert said(entries)[0].endswith(("sentence.", "."))


def test_rows_of_a_recipe_that_are_set_aside_are_counted(tmp_path, model, monkeypatch):
    rows = [{"prompt": f"{n}?", "chosen": "Yes.", "rejected": "No."} for n in range(6)]
    rows += [{"prompt": "word " * 99, "chosen": "Yes.", "rejected": "No."}, rows[0]]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = f"model_name_or_path: models/SmolLM2-135M-Instruct\ndataset_name: {data}\n"
    recipe += 'eval_strategy: "no"\nmax_length: 64\noutput_dir: outputs/x\nbf16: false\n'
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.setattr(asked, "FOLDER", tmp_path)
    found, entries = read(tmp_path, model, "mine")
    assert len(entries) == found.asked == 6 and found.rows == 8
    assert dict(found.left_out) == {"prompt_too_long": 1, "duplicate": 1}


def test_options_of_the_template_are_those_of_the_row_before_those_of_all(tmp_path, model):
    path = tmp_path / "asked.jsonl"
    own = {"prompt": "B?", "chat_template_kwargs": {"enable_thinking": True}}
    path.write_text(f'{{"prompt": "A?"}}\n{json.dumps(own)}\n')
    _, entries = read(tmp_path, model, path, options={"enable_thinking": False, "n": 1})
    path.write_text(f'{{"prompt": "B?"}}\n{json.dumps(own)}\n')
    _, twice = read(tmp_path, model, path)
    assert len({entry["draw"] for entry in twice}) == 1 < len(twice)  # in one split, both
    assert [entry["options"] for entry in entries] == [
        {"enable_thinking": False, "n": 1},
        {"enable_thinking": True, "n": 1},
    ]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_prompts_is_refused(text, tmp_path, model):
    path = tmp_path / "asked.txt"
    path.write_text(text)
    with pytest.raises(Refusal, match=r"PROMPTS: .*asked\.txt holds no prompts"):
        read(tmp_path, model, path)
