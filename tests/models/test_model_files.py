"""A model's folder that is damaged, or of another kind, is refused in a line before anything heavy
starts."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dpo.models import config_check
from dpo.models.chat_template import load_tokenizer
from dpo.models.model_files import check_config, check_weights, tokenizer_of
from dpo.recipe.parse import parse
from support.commands import once
from support.models import edit
from support.refusing import RECIPE, refusal
from support.tiny import random_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 269060552\n"


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
    "a pad token": (
        config(pad_token_id=60000),
        "has pad_token_id 60000, and vocab_size",
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


# Before the rows are tokenised, whatever reads the folder.
FOLDERS = {
    "another name": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        r"has its weights in consolidated\.safetensors, and transformers reads model\.safetensors",
    ),
    "an index without its name": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00001.safetensors"),
        "has its weights in model-00001-of-00001.safetensors, .*rename the file",
    ),
    "several templates": (
        lambda f: (
            (f / "chat_template.jinja").unlink(missing_ok=True),
            edit(
                f / "tokenizer_config.json",
                chat_template=[{"name": n, "template": "{{ messages }}"} for n in ("rag", "tool")],
            ),
        ),
        "several chat templates and none of the name default: rag, tool: ",
    ),
    **{
        method: (
            config(quantization_config={"quant_method": method, **more}),
            rf"is quantised \({method}\), and such weights are not trained: .*--load_in_4bit",
        )
        for method, more in {
            "fp8": {},
            "mxfp4": {},
            "gptq": {"bits": 4},
            "awq": {"bits": 4},
            "exl2": {},
            "bitsandbytes": {"load_in_4bit": True},
        }.items()
    },
}
NAMES = {
    "{}/model.safetensors": "is a file: name a folder with config.json",
    "{}/model-Q4.gguf": "is a file: GGUF is for inference alone: name a folder",
    "https://huggingface.co/Qwen/Qwen3-0.6B": "is an address: name it as the hub does: Qwen/Qwen3",
    "{}/nothing": "no model folder",
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


@pytest.mark.parametrize("what", FOLDERS)
def test_a_run_refuses_a_folder(monkeypatch, copied, tiny_flags, what):
    change, words = FOLDERS[what]
    change(copied)
    message = refusal(monkeypatch, *tiny_flags, f"--model_name_or_path={copied}", "--use_cpu")
    assert re.search(words, message) and str(copied) in message


@pytest.mark.parametrize("name", NAMES)
def test_a_run_refuses_a_name(monkeypatch, copied, tiny_flags, name):
    (copied / "model-Q4.gguf").write_bytes(b"GGUF")
    given = f"--model_name_or_path={name.format(copied)}"
    assert re.search(NAMES[name], refusal(monkeypatch, *tiny_flags, given, "--use_cpu"))


def test_a_hub_model_that_is_not_here(monkeypatch, tiny_flags):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(monkeypatch, *tiny_flags, "--model_name_or_path=me/policy", "--use_cpu")
    assert "is not in the cache" in message and "HF_HUB_OFFLINE" in message


def test_a_template_of_another_models_folder(tiny_model, copied, tiny_flags):
    (copied / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    flags = once([*tiny_flags, f"--chat_template_path={copied}"])
    tokenizer = load_tokenizer(parse(["--config", str(RECIPE), *flags]))
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


# What becomes of an adapter's folder, or of its base's.
SAVED = {
    "no base": ({"base_model_name_or_path": ""}, "names no base model: state its base_model_name"),
    "moved": (
        {"base_model_name_or_path": "/gone"},
        "names /gone as .* no such folder: put the",
    ),
    "itself": ({"base_model_name_or_path": None}, "which is an adapter itself: merge that"),
    "a classifier": ({"task_type": "SEQ_CLS"}, "has task_type SEQ_CLS: "),
    "unknown": ({"peft_type": "SUPERLORA"}, "is of no adapter that peft .* knows: .*SUPERLORA"),
    "another base": ({"target_modules": ["query_key_value"]}, "does not fit its base .*query_key"),
    "another rank": (
        {"r": 16},
        r"does not fit adapter_config.json .* is \(8, \d+\) there",
    ),
}


@pytest.mark.parametrize("what", SAVED)
def test_a_saved_adapter_that_does_not_fit(monkeypatch, tiny_model, tmp_path, tiny_flags, what):
    folder = tmp_path / "adapter"
    lora = LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora).save_pretrained(folder)
    flags = once([*tiny_flags, f"--model_name_or_path={folder}", "--use_peft", "--use_cpu"])
    config_check.check(parse(["--config", str(RECIPE), *flags]))  # as it is it fits
    changed, words = SAVED[what]
    base = {"base_model_name_or_path": str(folder)} if what == "itself" else {}
    edit(folder / "adapter_config.json", **changed | base)
    message = refusal(monkeypatch, *flags)
    assert re.search(words, message) and str(folder) in message


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
    config_check.check(parse(["--config", str(RECIPE), "--use_cpu", model, *flags.split()]))


@pytest.mark.parametrize("flags", ADAPTERS)
def test_what_the_model_cannot_have(tiny_model, flags):
    with pytest.raises(SystemExit) as stop:
        checked(tiny_model, flags)
    assert re.search(ADAPTERS[flags], stop.value.code) and stop.value.code.startswith("ARGS: ")


@pytest.mark.parametrize("flags", FIT)
def test_what_the_model_can_have(tiny_model, flags):
    checked(tiny_model, flags)
