"""A model's folder that is damaged, or of another kind, is refused in a line before anything heavy
starts."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import random_model
from test_bad_input import RECIPE, refusal

from dpo import shape
from dpo.model_files import check_config, check_weights, tokenizer_of
from dpo.recipe import parse

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 269060552\n"


def edit(file: Path, **changed) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def sharded(folder: Path, lose: str) -> None:
    """The model in several files, of which one is then lost."""
    random_model("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    next(folder.glob(lose)).unlink()


def config(**changed) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changed)


def newer_tokenizer(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edit(folder / "tokenizer.json", model=model | {"type": "BPE9", "merges": {"new": "format"}})


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


WEIGHTS = {
    "a pointer of git-lfs": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        r"model\.safetensors holds no weights: it is the pointer that git leaves .*git lfs pull",
    ),
    "cut off": (lambda folder: half(folder / "model.safetensors"), "cut off or damaged"),
    "empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"cut off or damaged .* 0 bytes: copy or download it again",
    ),
    "no safetensors": (
        lambda folder: (folder / "model.safetensors").write_text("<html>not found</html>"),
        "cut off or damaged",
    ),
    "a shard is missing": (
        lambda folder: sharded(folder, "model-00002-*"),
        r"index\.json names weights that are not there: model-00002-",
    ),
    "an index that is none": (
        lambda folder: (
            sharded(folder, "model-00001-*"),
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {'),
        ),
        r"index\.json cannot be read: .*copy or download it again",
    ),
}
CONFIGS = {
    "unknown": (config(model_type="qwen9"), r"\(qwen9\) is unknown to transformers .* a newer"),
    "no type": (config(model_type=None), "its config.json has no model_type|is unknown"),
    "not there": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "cut off": (lambda folder: half(folder / "config.json"), r"config\.json cannot be read: "),
    "a value": (config(hidden_size="many"), "cannot be read: .*hidden_size.* mend its config.json"),
    "encoder-decoder": (
        config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "is a T5ForConditionalGeneration, an encoder-decoder: a causal language model is trained",
    ),
    "a reward model": (
        config(architectures=["LlamaForSequenceClassification"]),
        "is a LlamaForSequenceClassification, a classifier or reward model: ",
    ),
    "a backbone": (
        config(architectures=["LlamaModel"]),
        "is a LlamaModel, a model without a head that predicts words",
    ),
    "masked words": (
        config(model_type="bert", architectures=["BertForMaskedLM"]),
        "is a BertForMaskedLM, a model that fills in masked words",
    ),
    "vision": (
        config(model_type="llava", architectures=["LlavaForConditionalGeneration"]),
        "is a LlavaForConditionalGeneration, a model of more than text",
    ),
    "no architecture": (
        config(architectures=None),
        'names no `architectures`: .* such as "LlamaForCausalLM"',
    ),
}
TOKENIZERS = {
    "none": (no_tokenizer, r"has no tokenizer \(tokenizer\.json.*: copy the tokenizer's files"),
    "newer": (newer_tokenizer, "cannot be loaded: .*or of a newer format than transformers"),
    "cut off": (lambda f: half(f / "tokenizer.json"), r"tokenizer\.json cannot be read: "),
    "a pointer": (
        lambda f: (f / "tokenizer.json").write_text(POINTER),
        r"tokenizer\.json is not there yet: .*git lfs pull",
    ),
    "settings cut off": (
        lambda f: half(f / "tokenizer_config.json"),
        r"tokenizer_config\.json cannot be read: ",
    ),
}


@pytest.fixture
def copied(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def line(check: Callable, what: Path | str) -> str:
    with pytest.raises(SystemExit) as stop:
        check(what)
    assert "\n" not in stop.value.code and str(what) in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_that_are_not_whole(copied, what):
    check_weights(copied)
    WEIGHTS[what][0](copied)
    assert re.search(WEIGHTS[what][1], line(check_weights, copied))


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_of_another_kind(copied, what):
    check_config(str(copied))
    CONFIGS[what][0](copied)
    assert re.search(CONFIGS[what][1], line(check_config, str(copied)))


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_read(copied, what):
    TOKENIZERS[what][0](copied)
    assert re.search(TOKENIZERS[what][1], line(tokenizer_of, str(copied)))


@pytest.mark.parametrize(
    "what", [WEIGHTS["cut off"], CONFIGS["cut off"], CONFIGS["encoder-decoder"], TOKENIZERS["none"]]
)
def test_a_run_refuses_them(monkeypatch, copied, tiny_flags, what):
    """Before the rows are tokenised."""
    change, words = what
    change(copied)
    message = refusal(monkeypatch, *tiny_flags, f"--model_name_or_path={copied}", "--use_cpu")
    assert re.search(words, message)


LORA = "--use_peft --lora_target_modules"
ADAPTERS = {
    f"{LORA} query_key_value": "lora_target_modules is query_key_value: .*of down_proj, gate_proj",
    f"{LORA} q_proj v_prj": "lora_target_modules is v_prj: LlamaForCausalLM has none of that name",
    f"{LORA} q_proj,v_proj": "is q_proj,v_proj: .* give some, with blanks between them, of down",
    f"{LORA} .*_attn": r"lora_target_modules is \.\*_attn: .*The model's linear layers: ",
    f"{LORA} q_proj --lora_modules_to_save score": "lora_modules_to_save is score: .* of lm_head",
    f"{LORA} q_proj --lora_target_parameters experts.up": "experts.up: .*of none: lora_target_mod",
    "--attn_implementation flash_attention_2": "is flash_attention_2: .*sdpa always are",
    "--attn_implementation kernels-community/flash-attn3": "attn_implementation is kernels-comm",
    "--attn_implementation flesh": "attn_implementation is flesh: .*choose one that is here: eager",
    "--attn_implementation flex_attention": "it trains on GPUs alone",
}
FIT = (
    f"{LORA} q_proj",  # of one name TRL makes a pattern
    f"{LORA} self_attn.q_proj",
    f"{LORA} all-linear",
    f"{LORA} .*_proj",
    f"{LORA} q_proj --lora_modules_to_save lm_head",
    "--attn_implementation eager",
    "--use_peft",  # peft knows the modules of a Llama
)


def checked(tiny_model, flags: str) -> None:
    model = f"--model_name_or_path={tiny_model}"
    shape.check(parse(["--config", str(RECIPE), "--use_cpu", model, *flags.split()]))


@pytest.mark.parametrize("flags", ADAPTERS)
def test_what_the_model_cannot_have(tiny_model, flags):
    with pytest.raises(SystemExit) as stop:
        checked(tiny_model, flags)
    assert re.search(ADAPTERS[flags], stop.value.code) and stop.value.code.startswith("ARGS: ")


@pytest.mark.parametrize("flags", FIT)
def test_what_the_model_can_have(tiny_model, flags):
    checked(tiny_model, flags)
