"""make embedded-data draws the committed bytes again."""

import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import embedded_data
from support.place import EMBEDDED_MODEL, ROOT

FOLDER = ROOT / "recipes/data/sentiment"
CPU = torch.cpu.get_capabilities()
FIRST = 6  # tokens of an answer


@pytest.fixture
def drawn():
    """What draws for the first batch of the test split: the model, its tokenizer, the questions and
    the seed. The number of threads is put back."""
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    questions = embedded_data.prompts()["test"][: embedded_data.BATCH_PROMPTS]
    threads = torch.get_num_threads()
    yield model, tokenizer, questions, embedded_data.SEEDS["test"]
    torch.set_num_threads(threads)


@pytest.mark.skipif(
    not CPU.get("avx512_bf16") or CPU.get("amx_bf16"),
    reason="the committed bytes were drawn with AVX-512 and without AMX; others round otherwise",
)
def test_the_seed_gives_the_same_bytes(drawn):
    """Of the first batch: as far as its 256 answers begin, or with FULL=1, which takes minutes, all
    of its pairs."""
    pairs = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text().splitlines()]
    if os.environ.get("FULL"):
        again = embedded_data.build(*drawn)
        assert again == pairs[: len(again)] and len(again) > 20
        return
    groups = embedded_data.answers(*drawn, max_new_tokens=FIRST)
    begun = dict(zip(drawn[2], groups, strict=True))
    pairs = [pair for pair in pairs if pair["prompt"][0]["content"] in begun]
    assert len(pairs) > 20
    for pair in pairs:
        # Of a character of several tokens the last may lack.
        group = [a.text.rstrip("\ufffd") for a in begun[pair["prompt"][0]["content"]]]
        assert all(group)  # or every text would begin with one of them
        for key in ("chosen", "rejected"):
            assert pair[key][0]["content"].startswith(tuple(group))
