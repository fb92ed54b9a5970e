"""make export QUANT=: the policy in few bits, as plain transformers reads it."""

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from dpo.core.refusal import Refusal
from dpo.use.export import command, quantised, said
from dpo.use.run import used
from support.commands import at_once
from support.exports import exported, left
from support.tiny import random_model

LAYERS = {"nf4": Linear4bit, "int8": Linear8bitLt}


@pytest.fixture
def run(wide_run) -> Path:
    return wide_run


@pytest.mark.parametrize("quant", LAYERS)
def test_plain_transformers_reads_what_is_quantised(run, quant):
    folder, about, printed = exported(run, f"QUANT={quant}")
    assert folder == run / f"exports/merged-{quant}" and left(run) == [f"merged-{quant}"]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = [type(each) for each in model.modules() if isinstance(each, torch.nn.Linear)]
    assert layers.count(LAYERS[quant]) == 14 and len(layers) == 15  # all but the head
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = model.generate(**tokenizer("It was", return_tensors="pt"), max_new_tokens=4)
    assert said.shape[1] > 2
    checked = about["checked"]
    nats, pairs = checked["nats"], checked["pairs"]
    assert nats["export_from_rounded_policy"]["token"] < quantised.BOUNDS[quant] / 2
    assert nats["rounded_policy_from_policy"]["token"] > 1e-3
    assert pairs["count"] == 8 and pairs["learning_lost"] < pairs["policy_from_reference"]
    assert f"{pairs['ranked_alike']} are ranked as by the policy" in printed
    card = ModelCard.load(folder / "README.md")
    assert {"bitsandbytes", f"{about['bits']}-bit"} <= {*card.data.tags}
    assert "transformers and bitsandbytes:" in card.text


@pytest.mark.parametrize("quant", LAYERS)
def test_a_model_whose_experts_would_stay_whole_is_refused(quant):
    with pytest.raises(Refusal, match=r"^\d+% of this model's weights are in linear layers"):
        quantised.check_shapes(random_model("mixtral"), quant)
    quantised.check_shapes(random_model("llama"), "int8")


@pytest.mark.parametrize("quant", LAYERS)
def test_a_tensor_that_is_another_is_found(run, monkeypatch, quant):
    write = quantised.write

    def harmed(policy, quant, folder, trusted):
        write(policy, quant, folder, trusted)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        weight = tensors["model.layers.1.mlp.down_proj.weight"]
        tensors["model.layers.1.mlp.down_proj.weight"] = weight.roll(1, 0)
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(quantised, "write", harmed)
    with pytest.raises(Refusal, match="log-probabilities of tokens differ by"):
        command.export(used(str(run)), False, "", "", quant=quant)
    assert left(run) == [] and not [*run.glob("exports/.*")]


def scaled(run, by: float) -> None:
    """Have a run learn less, or more."""
    file = run / "adapter_model.safetensors"
    tensors = {k: v * by if "lora_B" in k else v for k, v in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def test_what_quantising_would_undo_is_refused(run):
    scaled(run, 0.02)
    with pytest.raises(Refusal, match=r"nf4 rounds away what was learned: it moves the margin bet"):
        command.export(used(str(run)), False, "", "", quant="nf4")
    assert left(run) == []


def test_what_quantising_undoes_in_part_is_told_aloud(run, capsys):
    about = {"bits": 4, "dtype": "nf4", "checked": {"pairs": {"count": 8, "ranked_alike": 7}}}
    for off, loud in ((0.2, False), (0.6, True)):
        moved = {"export_from_policy": off, "policy_from_reference": 1.0, "learning_lost": 0.1}
        about["checked"]["pairs"] |= moved
        said.say_of_pairs(about)
        assert ("WARNING: nf4 itself moves the margin" in capsys.readouterr().out) == loud


def test_layers_that_not_every_cpu_multiplies_in_4_bits_are_refused(chatty_model):
    model = AutoModelForCausalLM.from_pretrained(chatty_model)
    said = "q_proj has 32 × 32 weights, and CPUs multiply 4 bits in tiles of 32 × 64: give QUANT="
    with pytest.raises(Refusal, match=said):
        quantised.check_shapes(model, "nf4")
    quantised.check_shapes(model, "int8")


def test_an_adapter_on_a_base_of_few_bits_is_not_exported(run, tmp_path):
    config = json.loads((run / "adapter_config.json").read_text())
    base, few = config["base_model_name_or_path"], tmp_path / "few"
    how = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(base, quantization_config=how).save_pretrained(few)
    AutoTokenizer.from_pretrained(base).save_pretrained(few)
    changed = config | {"base_model_name_or_path": str(few)}
    (run / "adapter_config.json").write_text(json.dumps(changed))
    for merge, quant in ((False, ""), (True, ""), (False, "nf4")):
        with pytest.raises(Refusal, match=r"is quantised: such a policy is not exported"):
            command.export(used(str(run)), merge, "", "", quant=quant)


def test_what_does_not_go_together_is_answered_at_once():
    for given, says in (
        (["--quant=q4"], "QUANT=q4 is not written here: choose from int8, nf4 (4 bits)"),
        (["--quant=nf4", "--gguf=f16"], "QUANT= and GGUF=: give one of them"),
        (["--quant=nf4", "--dtype=bf16"], "QUANT= and DTYPE=: give one of them"),
        (["--gguf=q4_K_M"], "llama-quantize makes others, such as q4_K_M, of an f16"),
    ):
        printed, code = at_once("export.py", "--run=x", *given)
        assert code == 1 and says in printed
