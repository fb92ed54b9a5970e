"""The rows that are trained on are those in the files, as TRL would tokenise them."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from accelerate.utils import set_seed
from datasets import Dataset, arrow_dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from dpo.data import dataset
from dpo.data.dataset import prepare
from dpo.data.schema import IDS, PLACE, REFERENCE_LOGPS, column
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from dpo.training.build import make_trainer
from dpo.training.resume import TakeUp, to_go_on_from
from support.place import ROOT
from support.tiny import pair, recipe_steps

RECIPE = ROOT / "recipes/smollm2-sentiment.yaml"
CARD = """---
configs:
  - config_name: default
    data_files:
      - {split: train, path: train.jsonl}
      - {split: test, path: test.jsonl}
---
"""


def load(*flags):
    recipe = parse(["--config", str(RECIPE), "--use_cpu", *map(str, flags)])
    return prepare(recipe, load_rows(recipe), load_tokenizer(recipe))


def write(folder, word: str) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for split in ("train", "test"):
        path = folder / f"{split}.jsonl"
        path.write_text(json.dumps(pair(split, f"It was {word}.", "No.")) + "\n")
        os.utime(path, (1, 1))  # a copy that keeps times gives no hint either


@pytest.mark.parametrize("card", [CARD, None], ids=["with a card", "without"])
def test_changed_files_are_read_again(tmp_path, card):
    folder = tmp_path / "data"
    write(folder, "good")
    if card:
        (folder / "README.md").write_text(card)
    for word in ("good", "fine", "good"):
        write(folder, word)
        for split in load(f"--dataset_name={folder}").values():
            assert split.pairs[0]["chosen"][0]["content"] == f"It was {word}."
    other = tmp_path / "other" / "data"
    write(other, "else")
    if card:
        (other / "README.md").write_text(card)
    read = load(f"--dataset_name={other}")["train"].pairs
    assert read[0]["chosen"][0]["content"] == "It was else."
    for word in ("good", "fine"):  # a single file, of the same time and size
        write(folder, word)
        read = load(f"--dataset_name={folder}/train.jsonl", "--eval_strategy=no")["train"].pairs
        assert read[0]["chosen"][0]["content"] == f"It was {word}."


def test_no_evaluation_needs_no_held_out_pairs(tiny_data):
    read = load(f"--dataset_name={tiny_data}", "--eval_strategy=no")
    assert len(read["train"].pairs) == 16 and "held-out" not in read


def test_what_a_trainer_would_take_for_its_own_is_not_kept_of_the_data(tmp_path):
    rows = [pair(f"day {at}", f"It was good {at}.", "No.") | {"kind": at} for at in range(4)]
    rows = [row | dict.fromkeys((*REFERENCE_LOGPS, PLACE), 1.5) for row in rows]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    names = load(f"--dataset_name={path}", "--eval_strategy=no")["train"].pairs.column_names
    assert "kind" in names and not {*REFERENCE_LOGPS, PLACE} & {*names}


def test_pairs_are_a_table_of_their_own(tmp_path, monkeypatch):
    """Where rows were set aside, and where some are held out; made once, and found by others."""
    rows = [pair(f"day {at}", f"It was good {at}.", f"It was bad {at}.") for at in range(9)]
    lines = [json.dumps(row | {"kind": "ab"[at % 2]}) for at, row in enumerate(rows)]
    (tmp_path / "train.jsonl").write_text("\n".join([lines[3], *lines]) + "\n")
    flags = [f"--dataset_name={tmp_path / 'train.jsonl'}", "--test_split_size=0.3"]
    flags += ["--quarantine_limit=0.5"]
    monkeypatch.setattr(dataset, "flat", lambda pairs: pairs)
    listed = {split: found.pairs for split, found in load(*flags).items()}
    monkeypatch.undo()
    own = {split: found.pairs for split, found in load(*flags).items()}
    made = {split: [os.stat(file["filename"]) for file in own[split].cache_files] for split in own}

    def copied(self, **how):
        raise AssertionError("all columns are copied")

    monkeypatch.setattr(Dataset, "flatten_indices", copied)
    for split, pairs in own.items():
        assert pairs[:] == listed[split][:] and pairs.features == listed[split].features
        pairs.add_column("ref_chosen_logps", [0.0] * len(pairs))
        with pytest.raises(AssertionError, match="are copied"):
            listed[split].add_column("ref_chosen_logps", [0.0] * len(pairs))
    again = {split: found.pairs for split, found in load(*flags).items()}
    found = {s: [os.stat(file["filename"]) for file in again[s].cache_files] for s in again}
    assert made == found and all(made.values())


ROWS = {
    "messages": [
        pair("a day", "It was good.", "\n\nIt was bad."),  # its blanks merge with the prompt's end
        pair("b", "So 🙂 good.", "  Bad, and a good deal longer than the other."),
        {
            "prompt": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "One?"},
                {"role": "assistant", "content": "Two."},
                {"role": "user", "content": "Three?"},
            ],
            "chosen": [{"role": "assistant", "content": "Four."}],
            "rejected": [{"role": "assistant", "content": "Five " * 40}],
        },
    ],
    "text": [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"prompt": "The sky is ", "chosen": "blue.", "rejected": "green, or so they say."},
        {"prompt": "Two and two", "chosen": "fold", "rejected": " make five.<|im_end|>"},
    ],
}


@pytest.mark.parametrize("kind", ROWS)
def test_the_tokens_are_those_of_trl(tmp_path, tiny_model, kind):
    """Fails when TRL tokenises otherwise: then tokenize.py must follow."""
    rows = ROWS[kind]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = load(
        *(f"--dataset_name={tmp_path}/train.jsonl", f"--model_name_or_path={tiny_model}"),
        "--eval_strategy=no",
    )["train"].pairs
    trainer = DPOTrainer(
        model=str(tiny_model),
        args=DPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to=[]),
        train_dataset=Dataset.from_list(rows),
    )
    theirs = trainer.train_dataset
    assert len(ours) == len(theirs) == 3
    for name in IDS:
        assert list(ours[name]) == list(theirs[name])
    assert any(ours["merged"])


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "csv"])
def test_one_file_is_a_data_set(tmp_path, kind):
    rows = [
        {"system": "Be brief.", "question": f"q{i}", "chosen": "a", "rejected": "b"}
        for i in range(4)
    ]
    path, frame = tmp_path / f"pairs.{kind}", pd.DataFrame(rows)
    write = {
        "json": lambda: frame.to_json(path, orient="records"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
        "csv": lambda: frame.to_csv(path, index=False),
    }
    write[kind]()
    train = load(f"--dataset_name={path}", "--eval_strategy=no")["train"]
    assert train.layout.startswith("question")
    prompts = [[message["content"] for message in row] for row in train.pairs["prompt"]]
    assert prompts == [["Be brief.", f"q{i}"] for i in range(4)]


def test_a_named_layout_wins(tmp_path):
    row = {"prompt": "How?", "chosen": "So.", "rejected": "No."}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    flags = [f"--dataset_name={tmp_path}/train.jsonl", "--eval_strategy=no"]
    assert load(*flags)["train"].pairs[0]["prompt"] == "How?"  # text is text, as in TRL
    asked = load(*flags, "--preference_layout=question")["train"].pairs[0]["prompt"]
    assert asked == [{"role": "user", "content": "How?"}]
    with pytest.raises(SystemExit, match=r"no layout 'chat': one of explicit .*scored"):
        load(*flags, "--preference_layout=chat")


def test_columns_that_are_no_preferences(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "How?", "label": 1}\n')
    with pytest.raises(SystemExit, match=r"columns text, label are no preferences.*explicit"):
        load(f"--dataset_name={tmp_path}/train.jsonl", "--eval_strategy=no")


def mixed(tmp_path, *more: str):
    """A recipe of two data sets of different layouts, and what is read of it."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    whole = [pair(f"i{i}", "a", "b") for i in range(20)]
    sides = ("chosen", "rejected")
    implicit = [{name: row["prompt"] + row[name] for name in sides} for row in whole]
    orca = [{"question": f"o{i}", "chosen": "a", "rejected": "b"} for i in range(20)]
    for name, rows in (("implicit", implicit), ("orca", orca)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "mixed.yaml"
    text = f"""\
model_name_or_path: {ROOT}/models/SmolLM2-135M-Instruct
datasets:
  - path: json
    data_files: {folder}/implicit.jsonl
    fraction: 0.75
  - path: json
    data_files: {folder}/orca.jsonl
    fraction: 0.25
output_dir: {tmp_path}/run
"""
    recipe.write_text(text)
    parsed = parse(["--config", str(recipe), "--use_cpu", *more])
    return prepare(parsed, load_rows(parsed), load_tokenizer(parsed))


def asked(pairs) -> list[str]:
    return [row[0]["content"] for row in pairs["prompt"]]


def test_a_mixture_has_the_shares_that_it_states(tmp_path):
    train = mixed(tmp_path)["train"]
    # As TRL cuts them: the first rows of each, none twice.
    implicit, orca = [f"How was i{i}?" for i in range(20)], [f"o{i}" for i in range(7)]
    assert asked(train.pairs) == implicit + orca
    assert "implicit" in train.layout and "question" in train.layout


def test_the_parts_of_a_mixture_may_differ_in_other_columns(tmp_path):
    def put(name: str, row) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "train.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / name / "README.md").write_text(CARD.replace("      - {split: test", "#"))

    def read():
        parsed = parse(["--config", str(tmp_path / "parts.yaml"), "--use_cpu"])
        return prepare(parsed, load_rows(parsed), load_tokenizer(parsed))["train"]

    (tmp_path / "parts.yaml").write_text(f"""\
model_name_or_path: {ROOT}/models/SmolLM2-135M-Instruct
datasets:
  - path: {tmp_path}/one
  - path: {tmp_path}/two
output_dir: {tmp_path}/run
""")
    put("one", pair("one", "a", "b") | {"score": 1, "tools": "[]"})
    for name in ("two", "six"):  # a file of the same size is read again
        put("two", pair(name, "a", "b") | {"score": "high", "length": 0.5})
        assert asked(read().pairs) == ["How was one?", f"How was {name}?"]
    put("two", 5)
    with pytest.raises(SystemExit, match=r"two/train.jsonl, line 1: a row is an object"):
        read()


def test_scores_are_compared_under_the_same_system_prompt(tmp_path):
    rows = [
        {"system": system, "prompt": "q", "response": f"{system} {score}", "score": score}
        for system in ("short", "long")
        for score in (2, 5, 1)
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--dataset_name={path}", "--eval_strategy=no"]
    pairs = load(*flags)["train"].pairs
    found = [(row["prompt"][0]["content"], row["chosen"], row["rejected"]) for row in pairs]
    assert [(s, c[0]["content"], r[0]["content"]) for s, c, r in found] == [
        ("short", "short 5", "short 1"),
        ("long", "long 5", "long 1"),
    ]
    with pytest.raises(SystemExit, match="not in a stream"):
        load(*flags, "--dataset_streaming", "--max_steps=1")


def test_what_has_no_rows_says_so(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(SystemExit, match="no rows"):
        load(f"--dataset_name={tmp_path}/train.jsonl", "--eval_strategy=no")


def test_images_are_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(pair("What?", "A.", "B.") | {"image": "x"}))
    with pytest.raises(SystemExit, match=r"train.jsonl has images, and text alone is trained on"):
        load(f"--dataset_name={tmp_path}/train.jsonl", "--eval_strategy=no")


def test_a_stream_is_not_split(tiny_data):
    with pytest.raises(SystemExit, match="a stream cannot be split"):
        load(f"--dataset_name={tiny_data}", "--dataset_streaming", "--test_split_size=0.1")


def test_no_column_of_many_pairs_is_made_in_python(tmp_path, tiny_data, monkeypatch):
    """It was, on every process: 40 µs a pair, minutes of a large data set."""

    def by_row(self, *_):
        raise AssertionError(f"{self.column_name} is read value by value")

    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    swapped = rows[3] | {"chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}
    rows += [rows[2], swapped, rows[0] | {"chosen": []}]
    test = [rows[5], *map(json.loads, (tiny_data / "test.jsonl").read_text().splitlines())]
    (tmp_path / "data").mkdir()
    for split, some in (("train", rows), ("test", test)):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
    monkeypatch.setattr(arrow_dataset.Column, "__iter__", by_row)
    monkeypatch.setattr(arrow_dataset.Column, "__getitem__", by_row)
    train = load(f"--dataset_name={tmp_path / 'data'}", "--test_split_size=0.2")["train"]
    assert train.rows < len(rows)
    found = load(f"--dataset_name={tmp_path / 'data'}")["train"]
    assert [(bad.row, bad.reason) for bad in found.bad] == [
        *((4, "labels_swapped"), (6, "held_out_prompt"), (17, "duplicate")),
        *((18, "labels_swapped"), (19, "empty")),
    ]
    assert [*column(found.pairs, "row")] == [1, 2, 3, 5, *range(7, 17)]


def test_a_share_is_held_out_by_prompt_and_by_the_split_seed(tmp_path):
    prompts = [f"q{i % 25}" for i in range(100)]
    rows = [
        {"question": prompt, "chosen": f"a{i}", "rejected": "b"} for i, prompt in enumerate(prompts)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--dataset_name={path}", "--test_split_size=0.2"]
    read = load(*flags)
    train, test = asked(read["train"].pairs), asked(read["held-out"].pairs)
    assert len(test) == 20 and len(train) == 80
    assert not {*train} & {*test}
    set_seed(99)  # whatever the process has drawn before, the split is the same
    assert asked(load(*flags)["held-out"].pairs) == test
    # Runs of several seeds are measured on the same pairs.
    assert asked(load(*flags, "--seed=7")["held-out"].pairs) == test
    assert asked(load(*flags, "--split_seed=42")["held-out"].pairs) == test
    assert asked(load(*flags, "--split_seed=7")["held-out"].pairs) != test
    # Without evaluation it is not trained on either: the split belongs to the data.
    assert asked(load(*flags, "--eval_strategy=no")["train"].pairs) == train
    assert asked(load(f"--dataset_name={path}", "--test_split_size=20")["held-out"].pairs) == test
    with pytest.raises(SystemExit, match="test_split_size: 100 of 100 pairs"):
        load(f"--dataset_name={path}", "--test_split_size=100")


def test_a_stream_trains_and_sets_aside_as_it_comes(tmp_path, tiny_model):
    good = [pair(f"{i}", "It was good.", "It was bad.") for i in range(8)]
    rows = [*good[:2], good[2] | {"chosen": None}, *good[3:]]
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps(row) + "\n" for row in (rows if split == "train" else good[:1])]
        (data / f"{split}.jsonl").write_text("".join(lines))
    text = RECIPE.read_text().replace("recipes/data/sentiment", str(data))
    recipe = tmp_path / RECIPE.name
    recipe.write_text(
        text.replace("models/SmolLM2-135M-Instruct", str(tiny_model)) + "dataset_streaming: true\n"
    )
    (tmp_path / "run").mkdir()
    trainer, _ = recipe_steps(recipe, tmp_path)
    assert trainer.state.global_step == 2
    lines = (tmp_path / "run/quarantine.jsonl").read_text().splitlines()
    # Once, however often they come by; the first pair is held out.
    found = [(line["row"], line["reason"]) for line in map(json.loads, lines)]
    assert found == [(1, "held_out_prompt"), (3, "missing")]


def test_a_stream_begins_again_in_the_middle_of_a_step(tmp_path, tiny_model):
    """Seven pairs at a batch of four: each step has four, whatever the micro-batch, and a run that
    goes on sees the pairs of one that was not stopped."""
    rows = [pair(f"{i}", f"It was {i}.", f"It was not {i}.") for i in range(7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--config", str(RECIPE), "--use_cpu", f"--model_name_or_path={tiny_model}"]
    flags += [f"--dataset_name={tmp_path}/rows.jsonl", "--dataset_streaming", "--max_steps=6"]
    flags += ["--eval_strategy=no", "--save_steps=3", "--logging_steps=1", "--report_to=none"]
    flags += ["--bf16=false", "--learning_rate=1e-3", "--share_prefix=false"]

    def train(folder: str, micro_batch: int) -> list[tuple[float, float]]:
        recipe = parse(
            [
                *(*flags, f"--output_dir={tmp_path / folder}"),
                f"--per_device_train_batch_size={micro_batch}",
                f"--gradient_accumulation_steps={4 // micro_batch}",
            ]
        )
        (tmp_path / folder).mkdir(exist_ok=True)
        tokenizer = load_tokenizer(recipe)
        pairs = prepare(recipe, load_rows(recipe), tokenizer)["train"].pairs
        trainer = make_trainer(recipe, tokenizer, pairs, None)
        checkpoint = to_go_on_from(trainer, tmp_path / folder, None, other_processes=False)
        if checkpoint:
            trainer.add_callback(TakeUp(trainer, checkpoint))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        return [(entry["loss"], entry["grad_norm"]) for entry in log]

    whole = train("one", 1)
    assert len(whole) == 6
    assert np.array(train("two", 2)) == pytest.approx(np.array(whole), abs=1e-4)
    shutil.rmtree(tmp_path / "one/checkpoint-6")
    assert train("one", 1) == whole


def test_a_stream_without_a_pair_says_so(tmp_path):
    row = pair("What?", "A.", "B.") | {"chosen": None}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run").mkdir()
    flags = ["--dataset_streaming", "--max_steps=1", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match="no row of the stream is a pair"):
        load(f"--dataset_name={tmp_path}/train.jsonl", "--eval_strategy=no", *flags)


def test_held_out_rows_of_a_stream_may_be_of_several_kinds(tmp_path):
    """As those that are not streamed: each is set aside by itself."""
    sound = [pair(f"What {i}?", "A.", "B.") for i in range(4)]
    rows = {"train": sound, "test": [*sound[:1], sound[1] | {"chosen": "text", "rejected": 3}]}
    for split, of in rows.items():
        lines = "".join(json.dumps(row | {"n": split}) + "\n" for row in of)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    (tmp_path / "run").mkdir()
    flags = ["--dataset_streaming", "--max_steps=1", f"--output_dir={tmp_path / 'run'}"]
    held_out = load(f"--dataset_name={tmp_path}", *flags)["held-out"]
    assert held_out.rows == 2 and sum(held_out.reasons.values()) == 1


REFERENCES = {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
OURS = {"prompt_ids": [1], "row": 7, "reason": "why", "merged": 2, "detail": 0.5, "texts": "t"}


@pytest.mark.parametrize("more", [REFERENCES, OURS, {"template_options": "o", "labels": 1}])
def test_columns_of_our_names_are_the_datas_and_not_ours(tmp_path, more):
    rows = [pair(f"What {i}?", "A.", "B.") | more for i in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = load(f"--dataset_name={tmp_path}/train.jsonl", "--eval_strategy=no")["train"]
    assert len(train.pairs) == 4 and not train.reasons
    assert train.pairs["row"][:] == [1, 2, 3, 4] and not {*REFERENCES} & {*train.pairs.features}


def test_a_run_says_what_it_set_aside(launched, tmp_path, tiny_model, tiny_data, tiny_flags):
    data = tmp_path / "data"
    data.mkdir()
    lines = (tiny_data / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    (data / "test.jsonl").write_text((tiny_data / "test.jsonl").read_text())
    flags = [*tiny_flags, f"--dataset_name={data}", "--quarantine_limit=0.1"]
    result = launched(*flags)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "16 pairs of 17 rows" in result.stdout
    assert "1 set aside as duplicate" in result.stdout
    folder = tmp_path / "run"
    (line,) = (folder / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 17 and "row 1 of" in json.loads(line)["detail"]
    report = json.loads((folder / "report.json").read_text())
    assert report["data"]["set_aside"] == {"train": {"duplicate": 1}, "held-out": {}}
    assert "1 set aside: duplicate" in (folder / "report.html").read_text()


def test_the_template_that_was_named_is_saved_with_the_policy(tmp_path, tiny_model):
    tokenizer = load_tokenizer(
        parse(["--config", str(RECIPE), "--use_cpu", "--chat_template_path=qwen2_5"])
    )
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
    assert "Alibaba" in tokenizer.chat_template
