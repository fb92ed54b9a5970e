"""The rows that are trained on are those in the files, whatever was cached before."""

import json
import os

import pytest
from conftest import ROOT, pair

from dpo.preferences import load_preferences
from dpo.recipe import parse

CARD = """---
configs:
  - config_name: default
    data_files:
      - {split: train, path: train.jsonl}
      - {split: test, path: test.jsonl}
---
"""


def load(folder):
    recipe = ROOT / "recipes/smollm2-sentiment.yaml"
    return load_preferences(parse(["--config", str(recipe), f"--dataset_name={folder}"]))


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
        for split in load(folder):
            assert split[0]["chosen"][0]["content"] == f"It was {word}."
    other = tmp_path / "other" / "data"
    write(other, "else")
    if card:
        (other / "README.md").write_text(card)
    assert load(other)[0][0]["chosen"][0]["content"] == "It was else."


def test_without_evaluation_nothing_is_held_out(tiny_data):
    recipe = ROOT / "recipes/smollm2-sentiment.yaml"
    flags = [f"--dataset_name={tiny_data}", "--eval_strategy=no"]
    train, held_out = load_preferences(parse(["--config", str(recipe), *flags]))
    assert len(train) == 16 and held_out is None
