"""make embedded-data draws the committed bytes again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import embedded_data
from support.place import EMBEDDED_MODEL, ROOT

FOLDER = ROOT / "recipes/data/sentiment"


CPU = torch.cpu.get_capabilities()


@pytest.mark.skipif(
    not CPU.get("avx512_bf16") or CPU.get("amx_bf16"),
    reason="the committed bytes were drawn with AVX-512 and without AMX; others round otherwise",
)
def test_the_seed_gives_the_same_bytes():
    """The first batch of the test split, drawn again."""
    lines = (FOLDER / "test.jsonl").read_text().splitlines()
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    questions = embedded_data.prompts()["test"][: embedded_data.BATCH_PROMPTS]
    threads = torch.get_num_threads()
    pairs = embedded_data.build(model, tokenizer, questions, embedded_data.SEEDS["test"])
    torch.set_num_threads(threads)
    assert pairs == [json.loads(line) for line in lines[: len(pairs)]] and len(pairs) > 20
