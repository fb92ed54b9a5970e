"""A model whose files are not whole, or that is too small for its data, is refused: policy and
reference would be wrong alike, and no comparison of the two would see it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)
from trl.trainer.utils import create_model_from_path

from dpo.core.files import write_whole
from dpo.core.refusal import Refusal
from dpo.data import fits
from dpo.evaluation.contestants import Contestant, find, policy_of, reference_of
from dpo.models import adapters, loading
from dpo.recipe.parse import parse
from dpo.runs.output_folder import settings
from support.refusing import RECIPE, refusal
from support.tiny import random_model

MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--per_device_train_batch_size 99", "16 pairs, fewer than the 99 of a step"),
        ("--gradient_accumulation_steps 40", "16 pairs, fewer than the 320 of a step"),
        ("--max_steps 4 --warmup_steps 4", "warmup_steps 4, and the run has 4: the learning rate"),
        ("--max_steps -1 --num_train_epochs 2 --warmup_steps 150", "150, and the run has 4: "),
        ("--max_steps 4 --warmup_steps 3", ""),
        ("--per_device_train_batch_size 16 --warmup_steps 0.9", ""),
    ],
)
def test_a_run_too_short_for_what_is_stated_says_so(flags, said, capsys):
    fits.say_short(parse(["--config", str(RECIPE), "--use_cpu", *flags.split()]), 16)
    found = capsys.readouterr().out
    assert said in found and bool(said) == bool(found)


def with_other_weights(folder: Path, change, file: str = MODEL) -> Path:
    weights = change(load_file(folder / file))
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


def a_model(folder: Path, change=lambda weights: weights) -> Path:
    random_model("llama").save_pretrained(folder / "model")
    return with_other_weights(folder / "model", change)


def without(*names: str):
    return lambda weights: {
        key: value for key, value in weights.items() if not any(name in key for name in names)
    }


BROKEN = {
    "a layer": (without("layers.1."), "missing: model.layers.1."),
    "one weight": (without("layers.2.mlp.up_proj"), "missing: model.layers.2.mlp.up_proj.weight."),
    "the head": (without("lm_head"), "missing: lm_head.weight"),
    "the embedding": (without("embed_tokens"), "missing: model.embed_tokens.weight"),
    "a prefix": (lambda w: {f"module.{k}": v for k, v in w.items()}, "unexpected: module."),
    "a value head": (lambda w: w | {"v_head.weight": torch.ones(1)}, "unexpected: v_head.weight"),
    "a layer too many": (
        lambda w: w | {k.replace("layers.0", "layers.9"): v.clone() for k, v in w.items()},
        "unexpected: model.layers.9.",
    ),
    "a shape": (lambda w: w | {"lm_head.weight": torch.ones(90, 32)}, "mismatched: lm_head"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("how", ["evaluated", "trained", "four bits"])
def test_files_that_are_not_whole(what, how, tmp_path):
    change, message = BROKEN[what]
    folder = str(a_model(tmp_path, change))
    with pytest.raises(SystemExit, match=f"not those of LlamaForCausalLM: .*{message}"):
        if how == "evaluated":
            adapters.load(folder)
        else:
            quantised = BitsAndBytesConfig(load_in_4bit=True) if how == "four bits" else None
            with loading.whole():  # as build.py has TRL load
                create_model_from_path(
                    folder, quantization_config=quantised, ignore_mismatched_sizes=True
                )


def test_a_model_of_another_kind(tmp_path):
    config = AutoConfig.from_pretrained(a_model(tmp_path))
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rewards")
    LlamaModel(config).save_pretrained(tmp_path / "backbone")
    for name in ("rewards", "backbone"):
        with pytest.raises(SystemExit, match="which predicts no words"), loading.whole():
            create_model_from_path(str(tmp_path / name))
        with pytest.raises(SystemExit, match=r"missing: lm_head.weight"):
            adapters.load(str(tmp_path / name))


def test_what_is_tied_or_of_no_importance_may_be_missing_or_there(tmp_path):
    def old(weights):
        return weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}

    folder = a_model(tmp_path, old)
    adapters.load(str(folder))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    with_other_weights(folder, without("lm_head"))
    assert "lm_head.weight" not in load_file(folder / MODEL)
    adapters.load(str(folder))


def test_a_head_of_its_own_stays_one(tmp_path):
    """Where the config says that it is the embedding, as merged models have it."""
    folder = a_model(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    head = load_file(folder / MODEL)["lm_head.weight"]
    adapters.load(str(folder)).save_pretrained(tmp_path / "saved")
    again = adapters.load(str(tmp_path / "saved"))
    assert not again.config.tie_word_embeddings and torch.equal(again.lm_head.weight, head)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k.replace("q_proj", "k_proj"): v for k, v in w.items()},
        without("layers.1."),
        lambda w: {k.replace("base_model.model.", ""): v for k, v in w.items()},
        lambda w: w | {"base_model.model.score.weight": torch.ones(1)},
    ],
    ids=["other modules", "a layer", "a prefix", "more"],
)
def test_an_adapter_that_is_not_whole(change, tmp_path):
    base = a_model(tmp_path)
    shape = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(adapters.load(str(base)), shape)
    model.base_model.model.config._name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    adapters.load(adapter)
    adapters.trainable(adapter, False)
    with_other_weights(Path(adapter), change, ADAPTER)
    for load in (adapters.load, lambda name: adapters.trainable(name, False)):
        with pytest.raises(SystemExit, match="not those of its adapter on LlamaForCausalLM"):
            load(adapter)


def test_a_run_refuses_them(monkeypatch, tiny_model, tiny_flags, tmp_path):
    """Through train.py, before a step."""
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    with_other_weights(broken, without("layers.1."))
    message = refusal(monkeypatch, *tiny_flags, f"--model_name_or_path={broken}", "--use_cpu")
    assert "broken are not those of LlamaForCausalLM: missing: model.layers.1." in message


def smaller(model: Path, folder: Path, **config) -> Path:
    """The same files, and a configuration that says otherwise."""
    copy = Path(shutil.copytree(model, folder / "smaller"))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | config))
    return copy


def test_an_embedding_smaller_than_the_tokenizer(monkeypatch, tiny_model, tiny_flags, tmp_path):
    copy = Path(shutil.copytree(tiny_model, tmp_path / "more"))
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(copy)
    message = refusal(monkeypatch, *tiny_flags, f"--model_name_or_path={copy}", "--use_cpu")
    assert f"has {len(tokenizer) - 1} rows in its embedding and its tokenizer" in message
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="rows in its embedding"):
        find(str(copy)).load("cpu")


@pytest.mark.parametrize("used", [False, True])
def test_a_special_token_without_a_row_may_be_there_if_nothing_uses_it(used, tiny_model):
    """As Gemma 3 1B has one for images."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config, rows = AutoConfig.from_pretrained(tiny_model), len(tokenizer) - 1
    ids = [3, rows if used else rows - 1]
    pairs = Dataset.from_list([{"prompt_ids": [5], "chosen_ids": ids, "rejected_ids": [7]}])
    highest = fits.highest_token(pairs)
    if not used:
        return fits.check_rows(config, tokenizer, "a", highest)
    with pytest.raises(SystemExit, match=f"a has {rows} rows in its embedding"):
        fits.check_rows(config, tokenizer, "a", highest)


@pytest.mark.parametrize("stream", [False, True])
def test_positions_shorter_than_the_pairs(monkeypatch, tiny_model, tiny_flags, tmp_path, stream):
    """Of rows that are there, by the longest as it is cut; of a stream by max_length."""
    model = smaller(tiny_model, tmp_path, max_position_embeddings=40)
    flags = [*tiny_flags, f"--model_name_or_path={model}", "--use_cpu"]
    flags += ["--dataset_streaming"] * stream
    message = refusal(monkeypatch, *flags)
    assert f"{model} has 40 positions: give --max_length 40 or less" in message


@pytest.mark.parametrize(
    "rope, room",
    [
        (None, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_a_stretched_rope_has_more_positions(rope, room):
    config = LlamaConfig(max_position_embeddings=64)
    if rope:
        config.rope_parameters = rope | {"rope_theta": 10000.0}
    assert fits.positions(config) == room


def test_another_configuration_is_that_of_every_load(tiny_model, tiny_adapter, tmp_path):
    """`model_init_kwargs` may change it, and a reference without the change is another model."""
    flags = ['--model_init_kwargs={"rms_norm_eps": 0.25}', "--use_cpu", "--use_peft"]
    flags.append(f"--model_name_or_path={tiny_model}")
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *flags])
    first, tokenizer = reference_of(recipe), AutoTokenizer.from_pretrained(tiny_model)
    assert first.load("cpu").config.rms_norm_eps == 0.25
    assert first.digest() != replace(first, init={}).digest()  # kept answers are found by it
    run = Path(shutil.copytree(tiny_adapter, tmp_path / "run"))
    write_whole(run / "recipe.yaml", yaml.safe_dump({"recipe": "mine", **settings(recipe)}))
    assert policy_of(run).load("cpu").config.rms_norm_eps == 0.25
    merged = adapters.merge(run, tokenizer, **recipe.init)
    assert AutoConfig.from_pretrained(merged).rms_norm_eps == 0.25


def test_positions_are_those_of_the_configuration_that_is_stated(
    monkeypatch, tiny_model, tiny_flags
):
    more = '--model_init_kwargs={"max_position_embeddings": 40}'
    message = refusal(monkeypatch, *tiny_flags, more, "--use_cpu")
    assert "has 40 positions: give --max_length 40 or less" in message


@pytest.mark.parametrize("name", ["models/gone", "outputs/gone", "./gone"])
def test_a_model_whose_folder_is_gone_is_not_asked_of_the_hub(name, monkeypatch):
    """A stranger's of that name would be taken for the reference."""

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(adapters, "find_adapter_config_file", asked)
    who = Contestant(name, name)
    for use in (who.digest, who.weight_bytes, lambda: who.load("cpu")):
        with pytest.raises(Refusal, match=f"no run and no model at {name}"):
            use()
