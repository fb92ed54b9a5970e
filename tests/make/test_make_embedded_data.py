"""make embedded-data draws the committed bytes again."""

import contextlib
import json
import os

import pytest
import torch

import embedded_data
from dpo.core.refusal import Refusal
from dpo.evaluation import generations
from support.place import ROOT

FOLDER = ROOT / "recipes/data/sentiment"
CPU = torch.cpu.get_capabilities()
BATCH = 32  # prompts
FIRST = 6  # tokens of an answer


@pytest.mark.skipif(
    not CPU.get("avx512_bf16") or CPU.get("amx_bf16"),
    reason="the committed bytes were drawn with AVX-512 and without AMX; others round otherwise",
)
def test_the_seed_gives_the_same_bytes(tmp_path, monkeypatch):
    """Of the first batch, as far as its 256 answers begin; with FULL=1, which takes minutes, the
    whole of them, and those of the test split too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    asked = {"train": embedded_data.prompts()["train"][:BATCH]}
    if os.environ.get("FULL"):
        asked["test"] = embedded_data.prompts()["test"][:BATCH]
    else:
        monkeypatch.setitem(embedded_data.SETTINGS, "max_new_tokens", FIRST)
    monkeypatch.setattr(generations, "KEPT", tmp_path / "answers")
    with contextlib.suppress(Refusal):  # of answers that are cut no pair comes
        embedded_data.make(asked, tmp_path)
    torch.set_num_threads(threads)
    kept = {
        json.loads(line)["prompt"][0]["content"]: json.loads(line)["answers"]
        for line in (FOLDER / "candidates.jsonl").read_text().splitlines()
    }
    lines = (tmp_path / FOLDER.name / "candidates.jsonl").read_text().splitlines()
    assert len(lines) == sum(map(len, asked.values()))
    for row in map(json.loads, lines):
        both = zip(row["answers"], kept[row["prompt"][0]["content"]], strict=True)
        for mine, theirs in both:
            # Of a character of several tokens the last may lack.
            text = mine["text"].rstrip("\ufffd")
            assert text and theirs["text"].startswith(text)
