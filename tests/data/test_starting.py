"""make new goes by the data it is given, and by the machine; columns of other names are mapped."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, IterableDataset

from dpo.data import starting
from dpo.data.dataset import prepare
from dpo.data.formats.columns import described, mapping_of, renamed, suggested
from dpo.data.sources.load import load, load_rows
from dpo.data.sources.rows import Rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import make_parser, parse, resolve
from support.models import edit
from support.place import ROOT
from support.tiny import recipe_steps


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "has no weights"),
        (lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq"}), "gptq"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter: name the base"),
        (lambda f: edit(f / "config.json", vocab_size=9), "has 9 rows in its embedding"),
    ],
)
def test_a_model_that_could_not_be_trained_gets_no_recipe(
    change, said, tiny_model, tiny_data, tmp_path
):
    change(shutil.copytree(tiny_model, tmp_path / "model"))
    with pytest.raises(SystemExit, match=said):
        starting.recipe("mine", str(tmp_path / "model"), str(tiny_data))


ROWS = {
    "a question of another name": ["train", {"query": "?", "chosen": "a", "rejected": "b"}],
    "a test split that holds none": ["test", {"prompt": "?", "completion": "a"}],
}


@pytest.mark.parametrize("what", ROWS)
def test_data_that_could_not_be_trained_on_get_no_recipe(what, tiny_model, tiny_data, tmp_path):
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    split, row = ROWS[what]
    (folder / f"{split}.jsonl").write_text(f"{json.dumps(row)}\n" * 30)
    with pytest.raises(SystemExit, match="prompt"):
        starting.recipe("mine", str(tiny_model), str(folder))


def written(folder: Path, rows: list[dict], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mine(i: int) -> dict:
    return {"ask": f"How was {i}?", "good_one": f"It was good {i}.", "bad_one": f"Bad {i}."}


MINE = "prompt=ask chosen=good_one rejected=bad_one"


def says(text: str, role: str = "assistant") -> list[dict]:
    return [{"role": role, "content": text}]


MAPPED = {
    "question and answers": (MINE, mine),
    "as JSON": ('{"prompt": "ask", "chosen": "good_one", "rejected": "bad_one"}', mine),
    "messages": (
        "prompt=ask, chosen=a, rejected=b",
        lambda i: {"ask": says(f"Q{i}?", "user"), "a": says(f"yes {i}"), "b": says("no")},
    ),
    "whole conversations": (
        "chosen=better rejected=worse",
        lambda i: {
            "better": says(f"Q{i}?", "user") + says("yes"),
            "worse": says(f"Q{i}?", "user") + says("no"),
        },
    ),
    "a column a model": (
        "chosen=qwen-2.5-3b-instruct rejected=qwen-2.5-1.5b-instruct",
        lambda i: {
            "prompt": f"Q{i}?",
            "qwen-2.5-0.5b-instruct": says(f"Q{i}?", "user") + says("never"),
            "qwen-2.5-1.5b-instruct": says(f"Q{i}?", "user") + says("no"),
            "qwen-2.5-3b-instruct": says(f"Q{i}?", "user") + says("yes"),
        },
    ),
    "two that change places": (
        "chosen=rejected rejected=chosen",
        lambda i: {"prompt": f"Q{i}?", "chosen": "no", "rejected": f"yes {i}"},
    ),
    "scored answers": (
        "prompt=ask response=said score=stars",
        lambda i: {"ask": f"Q{i // 2}?", "said": f"yes {i}", "stars": i % 2},
    ),
}


def prepared(model: Path, *flags: str) -> dict:
    recipe = parse(
        [
            *("--config", str(ROOT / "recipes/smollm2-sentiment.yaml"), "--use_cpu"),
            *(f"--model_name_or_path={model}", *flags),
        ]
    )
    return prepare(recipe, load_rows(recipe), load_tokenizer(recipe))


@pytest.mark.parametrize("mapping, row", MAPPED.values(), ids=MAPPED)
def test_columns_of_other_names_are_read(mapping, row, tmp_path, tiny_model):
    path = written(tmp_path, [row(i) for i in range(8)])
    flags = [f"--dataset_name={path}", "--eval_strategy=no", f"--column_mapping={mapping}"]
    found = prepared(tiny_model, *flags)
    pairs = found["train"].pairs
    assert len(pairs) == (4 if "response" in mapping else 8)
    assert "yes" in str(pairs[0]["chosen"]) or "good" in str(pairs[0]["chosen"])


def test_a_stream_and_the_held_out_rows_are_mapped_too(tmp_path, tiny_model):
    for split, start in (("train", 0), ("test", 10)):
        written(tmp_path, [mine(start + i) for i in range(4)], f"{split}.jsonl")
    flags = [f"--dataset_name={tmp_path}", f"--output_dir={tmp_path / 'run'}", "--max_steps=1"]
    (tmp_path / "run").mkdir()
    found = prepared(tiny_model, *flags, f"--column_mapping={MINE}", "--dataset_streaming=true")
    assert isinstance(found["train"].pairs, IterableDataset)
    assert len(found["held-out"].pairs) == 4


@pytest.mark.parametrize(
    "mapping, words",
    [
        ("prompt=nowhere", "has no column 'nowhere', only ask, good_one, bad_one, chosen"),
        ("chosen=good_one", "has a column 'chosen' already, beside 'good_one'"),
        ("promt=ask", "nothing reads a column 'promt': one of prompt, question"),
        ("prompt=ask prompt=good_one", "'prompt' stands twice"),
        ("prompt=ask system=ask", "'ask' stands twice"),
        ("prompt", "write prompt=question chosen=good"),
        ('{"prompt": ["ask"]}', "write prompt=question chosen=good"),
        ("{prompt", "write prompt=question chosen=good"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping, words):
    source = Rows("pairs.jsonl", Dataset.from_list([mine(1) | {"chosen": "x"}]))
    with pytest.raises(SystemExit) as refusal:
        renamed(source, mapping_of(mapping))
    assert "column_mapping: " in str(refusal.value) and words in str(refusal.value)


def test_a_mapping_in_a_mixture_is_for_the_data_that_have_its_columns(tmp_path, tiny_model):
    other = [{"question": f"W{i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(3)]
    written(tmp_path, [mine(i) for i in range(4)], "a.jsonl"), written(tmp_path, other, "b.jsonl")
    parts = [
        {"path": "json", "data_files": str(tmp_path / name), "split": "train"}
        for name in ("a.jsonl", "b.jsonl")
    ]
    keys = {
        **{"model_name_or_path": str(tiny_model), "datasets": parts, "eval_strategy": "no"},
        **{"column_mapping": mapping_of(MINE), "preference_layout": "question"},
    }
    recipe = resolve(make_parser(), Path("x.yaml"), "x", keys, ["--use_cpu"])
    found = prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
    assert len(found["train"].pairs) == 7


@pytest.mark.parametrize("rows", [2, 5, 95, 700, 30_000])
def test_steps_follow_the_rows(rows, tmp_path, tiny_model, monkeypatch):
    """Every run logs, evaluates and saves, several times where it has several steps."""
    monkeypatch.setattr(starting, "count", lambda *given: rows)
    path = written(tmp_path, [mine(i) for i in range(5)])
    text = starting.recipe("mine", str(tiny_model), str(path), MINE)
    keys = yaml.safe_load(text)
    parsed = resolve(make_parser(), Path("mine.yaml"), "mine", keys, ["--use_cpu"])
    share = keys["test_split_size"]
    held = max(int(rows * share), 1)
    steps = math.ceil((rows - held) / parsed.global_batch) * int(parsed.training.num_train_epochs)
    assert 1 <= held <= 1000 and held < rows
    assert f"{steps:,} steps in all" in text
    assert keys["eval_steps"] == keys["save_steps"] <= max(steps / 5, 1)
    assert parsed.training.logging_steps <= max(steps / 3, 1)
    assert parsed.global_batch == 32 or steps >= min(10, rows - held)
    assert parsed.training.num_train_epochs == (1 if rows > 20_000 else 3)
    assert keys["column_mapping"] == mapping_of(MINE)
    assert keys["preference_layout"] == "question"  # the model has a chat template


MACHINES = {
    "none": (False, False, {"bf16": False, "gradient_checkpointing": False}),
    "a T4": (True, False, {"fp16": True}),
    "an H100": (True, True, {}),
}


@pytest.mark.parametrize("gpu, bf16, keys", MACHINES.values(), ids=MACHINES)
def test_precision_follows_the_machine(gpu, bf16, keys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: bf16)
    assert (yaml.safe_load("\n".join(starting.machine_keys())) or {}) == keys


@pytest.mark.parametrize("pairs", [1, 0])
def test_data_of_which_nothing_could_be_held_out_are_refused(pairs, tmp_path, tiny_model):
    path = written(tmp_path, [mine(i) for i in range(pairs)])
    with pytest.raises(SystemExit, match=r"fewer than two pairs|no rows"):
        starting.recipe("mine", str(tiny_model), str(path), MINE)


def test_unknown_columns_are_shown_with_how_to_map_them(tmp_path, tiny_model, capsys):
    path = written(tmp_path, [mine(i) | {"n": 3, "tags": ["a"], "x\x1b[31m": None} for i in "ab"])
    with pytest.raises(SystemExit) as refusal:
        starting.recipe("mine", str(tiny_model), str(path))
    assert f'COLUMNS="{MINE}"' in str(refusal.value)
    shown = capsys.readouterr().out
    assert "ask" in shown and "text: How was a?" in shown and "list of texts: ['a']" in shown
    assert "number: 3" in shown and "\x1b" not in shown


@pytest.mark.parametrize(
    "names, mapping",
    [
        (["question", "answer_good", "answer_bad"], "question answer_good answer_bad"),
        (["win", "lose", "instr"], "… win lose"),
        (["rejected_answer", "chosen_answer", "query"], "query chosen_answer rejected_answer"),
        (["a", "b"], "… … …"),
        (["question", "dispreferred", "preferred"], "question preferred dispreferred"),
        (
            ["q", "non_preferred_output", "preferred_output"],
            "… preferred_output non_preferred_output",
        ),
        (
            ["ask", "unpreferred_response", "preferred_response"],
            "ask preferred_response unpreferred_response",
        ),
        (["input", "unaccepted", "accepted"], "input accepted unaccepted"),
        (["query", "not_chosen", "chosen_text"], "query chosen_text not_chosen"),
        (["query", "unchosen", "notRejected"], "query notRejected unchosen"),
        (["prompt", "nonwinner", "winner"], "prompt winner nonwinner"),
        (["prompt", "less_preferred", "more_preferred"], "prompt more_preferred less_preferred"),
        (["prompt", "incorrect", "correct"], "prompt correct incorrect"),
        (["prompt", "position", "post", "good"], "prompt good …"),
        (["window", "chosen_text", "closing"], "… chosen_text …"),
        (["source", "question", "win", "loss_weight"], "question win …"),
        (["user_id", "chosen_model", "userQuestion", "chosenText"], "userQuestion chosenText …"),
        (["chosen_prompt", "task_input", "good", "bad"], "task_input good bad"),
        (["prompt", "response_A", "response_B", "winner"], "prompt … …"),
        (["chosen_or_rejected", "better", "worse"], "… better worse"),
    ],
)
def test_a_guess_at_the_mapping(names, mapping):
    ours = ("prompt", "chosen", "rejected")
    pairs = zip(ours, mapping.split(), strict=True)
    assert suggested(names) == " ".join(f"{a}={b}" for a, b in pairs)


def test_a_long_example_is_cut():
    (line,) = described([{"text": "word " * 50}])
    assert len(line) < 90 and line.endswith(" …")


def test_a_recipe_of_mapped_columns_trains(tmp_path, tiny_model):
    path = written(tmp_path, [mine(i) for i in range(12)])
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(starting.recipe("mine", str(tiny_model), str(path), MINE))
    trainer, _ = recipe_steps(recipe, tmp_path)
    assert trainer.state.global_step == 2 and len(trainer.eval_dataset) == 1
    assert "<|im_start|>" in trainer.processing_class.decode(trainer.train_dataset[0]["prompt_ids"])


@pytest.mark.parametrize(
    "parameters, rate, shards", [(3e8, None, False), (7e9, "5.0e-7", True), (7e10, "2.0e-7", True)]
)
def test_make_new_goes_by_the_models_size(monkeypatch, tiny_data, parameters, rate, shards):
    monkeypatch.setattr(starting, "parameters", lambda model: int(parameters))
    monkeypatch.setattr(starting, "has_chat_template", lambda model: True)
    text = starting.recipe("mine", "someone/model", str(tiny_data))
    assert (f"\nlearning_rate: {rate}" in text) == (rate is not None)
    assert ("CONFIG=zero3" in text) == shards
    assert "\ntest_split_size" not in text  # the data have a test split
    assert {*load(str(tiny_data))} == {"train", "test"}
