"""The reference is scored without dropout, whatever the policy is trained with; which has none
itself unless it is asked for."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPTBigCodeConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
    set_seed,
)
from trl.trainer.utils import disable_dropout_in_model

from dpo.data.dataset import prepare
from dpo.data.schema import IDS, REFERENCE_LOGPS
from dpo.data.sources.load import load_rows
from dpo.losses import completion_logps
from dpo.models import adapters
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from dpo.runs import metrics
from dpo.training import stock
from dpo.training.build import make_trainer
from support.commands import run_flags
from support.tiny import SIZES


def with_dropout(kind: str, model: Path, folder: Path) -> tuple[Path, list[str]]:
    """What a run starts from, and its flags: an adapter with dropout that is trained on, or a model
    with dropout that gets an adapter."""
    start = folder / "start"
    flags = ["--use_peft", "--disable_dropout=false", "--share_prefix=false"]
    if kind == "a model":
        shutil.copytree(model, start)
        settings = json.loads((start / "config.json").read_text())
        (start / "config.json").write_text(json.dumps(settings | {"attention_dropout": 0.5}))
        return start, [*flags, "--lora_target_modules", "q_proj", "v_proj"]
    set_seed(1)
    shape = LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj"], init_lora_weights=False)
    shape.task_type = "CAUSAL_LM"
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), shape).save_pretrained(start)
    for path in model.glob("*token*"):
        shutil.copy(path, start)
    shutil.copy(model / "chat_template.jinja", start)
    return start, flags


@pytest.mark.parametrize("kind", ["an adapter", "a model"])
@pytest.mark.parametrize("scored", ["kept", "live"])
def test_the_reference_has_none(kind, scored, tiny_model, tiny_data, tmp_path):
    start, flags = with_dropout(kind, tiny_model, tmp_path)
    flags += [f"--precompute_ref_log_probs={scored == 'kept'}", "--use_cpu", "--bf16=false"]
    flags = [
        *run_flags(start, tiny_data, tmp_path / "run"),
        "--report_to=none",
        "--eval_strategy=no",
        *flags,
    ]
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *flags])
    tokenizer = load_tokenizer(recipe)
    pairs = prepare(recipe, load_rows(recipe), tokenizer)["train"].pairs
    trainer = make_trainer(recipe, tokenizer, pairs, None)

    rows = [*trainer.train_dataset.select(range(4))]
    batch = trainer.data_collator([{name: row[name] for name in IDS} for row in rows])
    plain = [batch[name] for name in ("input_ids", "attention_mask", "completion_mask")]
    expected = completion_logps(adapters.load(str(start)).eval(), *plain).detach().numpy()
    if scored == "kept":
        found = np.concatenate([[row[column] for row in rows] for column in REFERENCE_LOGPS])
        assert found == pytest.approx(expected, abs=1e-3)
        return
    trainer.model.train()
    policies = set()
    for _ in range(2):
        trainer._compute_loss(trainer.model, batch, False)
        seen = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        for name, logps in zip(("chosen", "rejected"), np.split(expected, 2), strict=True):
            reference = seen[f"logps/{name}"] - seen[f"rewards/{name}"] / trainer.beta
            assert reference == pytest.approx(logps.mean(), abs=1e-3)
        policies.add(seen["logps/chosen"])
    assert len(policies) == 2  # the policy has dropout, and goes on having it


OPT = {"vocab_size": 97, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2}
OPT |= {"num_attention_heads": 4, "word_embed_proj_dim": 32}
# Of whose dropout some or all is a number that is handed to a function.
NUMBERS = {
    "llama": LlamaConfig(**SIZES, attention_dropout=0.5),
    "opt": OPTConfig(**OPT, dropout=0.5),
    "opt, layers": OPTConfig(**OPT, layerdrop=0.9),
    "gpt_bigcode": GPTBigCodeConfig(vocab_size=97, n_embd=32, n_head=4, n_layer=2, attn_pdrop=0.5),
    "qwen3": Qwen3Config(**SIZES, head_dim=8, attention_dropout=0.5),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_policy_has_none_unless_asked(kind):
    model = AutoModelForCausalLM.from_config(NUMBERS[kind]).train()
    ids = torch.arange(2, 34)[None]
    disable_dropout_in_model(model)  # TRL's own
    stock.no_dropout(model)
    found = model(ids).logits
    assert torch.equal(found, model(ids).logits) and torch.equal(found, model.eval()(ids).logits)


def test_a_trained_policy_has_none(tiny_model, tiny_data, tmp_path):
    start, _ = with_dropout("a model", tiny_model, tmp_path)
    flags = [*run_flags(start, tiny_data, tmp_path / "run"), "--report_to=none", "--use_cpu"]
    flags += ["--bf16=false", "--eval_strategy=no"]
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *flags])
    tokenizer = load_tokenizer(recipe)
    pairs = prepare(recipe, load_rows(recipe), tokenizer)["train"].pairs
    make_trainer(recipe, tokenizer, pairs, None).train()
    losses = [line["loss"] for line in metrics.read(tmp_path / "run") if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
