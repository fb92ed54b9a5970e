"""LoRA: starting from an adapter, and what a run leaves to load elsewhere."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.data.dataset import prepare
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.models.config_check import check_model
from dpo.recipe.parse import parse
from dpo.training.build import make_trainer
from support.commands import run, run_flags

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained_on(launched, tiny_adapter, tiny_data, tmp_path_factory):
    """A run that began at an adapter: its folder, its flags and what it printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = [*run_flags(tiny_adapter, tiny_data, folder), "--report_to=none", "--use_peft"]
    result = launched(*flags)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, flags, result


def test_an_adapter_is_its_own_reference(trained_on):
    """Were it the base, or an untrained adapter, the first loss would not be ln 2."""
    folder, _, result = trained_on
    assert "LoRA r=4" in result.stdout
    report = json.loads((folder / "report.json").read_text())
    first, *_, last = report["curves"]["train"]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5) and last["loss"] < 0.69
    # What the report says of pairs is what the trainer saw.
    held_out = report["curves"]["held_out"][-1]
    assert report["pairs"]["accuracy"]["mean"] == pytest.approx(held_out["accuracy"])


def test_an_adapter_on_four_bits_is_its_own_reference(launched, tiny_adapter, tiny_data, tmp_path):
    """TRL rounds the trained one to bfloat16; so must its reference be."""
    folder = tmp_path / "run"
    half = ("--use_peft", "--load_in_4bit", "--dtype=bfloat16", "--bf16=false")
    flags = [*run_flags(tiny_adapter, tiny_data, folder), "--report_to=none", *half]
    result = launched(*flags, "--eval_strategy=no")
    assert result.returncode == 0, result.stderr[-3000:]
    first, *_, last = json.loads((folder / "report.json").read_text())["curves"]["train"]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5) and last["loss"] < 0.69


def test_all_of_an_adapter_is_trained(trained_on, tiny_adapter):
    folder, _, _ = trained_on
    before, after = load_file(tiny_adapter / ADAPTER), load_file(folder / ADAPTER)
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).all() for name in before)


def test_adapter_and_merged_policy_load_in_plain_transformers(trained_on):
    """The merged one where there is no peft; both give the log-probabilities of the policy."""
    folder, _, result = trained_on
    assert f"Policy: {folder}, {folder}/merged\n" in result.stdout
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    ids = tokenizer("How was it?", return_tensors="pt").input_ids
    policy = AutoPeftModelForCausalLM.from_pretrained(folder)(ids).logits
    adapter = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(adapter, policy)
    code = (
        "import sys; sys.modules['peft'] = None; import torch, transformers as t\n"
        f"model = t.AutoModelForCausalLM.from_pretrained({str(folder / 'merged')!r})\n"
        f"print(model(torch.tensor({ids.tolist()})).logits.sum().item())"
    )
    merged = run(sys.executable, "-c", code)
    assert float(merged.stdout) == pytest.approx(policy.sum().item(), rel=1e-4), merged.stderr
    assert (folder / "merged/model.safetensors").stat().st_mode & 0o044


def built_with(model: Path, data: Path, tmp_path: Path, *modules: str):
    flags = [*run_flags(model, data, tmp_path / "run"), "--report_to=none", "--use_peft"]
    flags += ["--use_cpu", "--eval_strategy=no", "--lora_target_modules", *modules]
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *flags])
    tokenizer = load_tokenizer(recipe)
    pairs = prepare(recipe, load_rows(recipe), tokenizer)
    return make_trainer(recipe, tokenizer, pairs["train"].pairs, None)


def test_one_module_is_a_module_and_no_pattern(tiny_model, tiny_data, tmp_path):
    model = built_with(tiny_model, tiny_data, tmp_path, "q_proj").model
    assert all("q_proj" in n for n, p in model.named_parameters() if p.requires_grad)


def test_without_save_merged_there_is_the_adapter_alone(launched, tiny_model, tiny_data, tmp_path):
    """A new one, evaluated as it was trained: added to its base in memory."""
    folder = tmp_path / "run"
    flags = [*run_flags(tiny_model, tiny_data, folder), "--report_to=none", "--use_peft"]
    more = ["--learning_rate=0.01", "--save_merged=false", "--model_revision=it-SFT"]
    result = launched(*flags, *more)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "LoRA r=16" in result.stdout and f"Policy: {folder}\n" in result.stdout
    assert (folder / ADAPTER).is_file()
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tiny_model)
    assert settings["revision"] == "it-SFT"
    assert not (folder / "model.safetensors").exists() and not (folder / "merged").exists()
    report = json.loads((folder / "report.json").read_text())
    last = report["curves"]["held_out"][-1]
    assert last["step"] == 4 and last["margin"] > 0.1
    assert report["pairs"]["accuracy"]["mean"] == pytest.approx(last["accuracy"])


def test_another_adapter_on_that_base_is_scored_anew(launched, trained_on, tiny_adapter, tmp_path):
    folder, flags, _ = trained_on
    other = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    shutil.copy(folder / ADAPTER, other / ADAPTER)
    kept = [flag for flag in flags if not flag.startswith(("--model_name", "--output_dir"))]
    for start, found in ((tiny_adapter, True), (other, False)):
        given = [f"--model_name_or_path={start}", f"--output_dir={tmp_path}/{found}", *kept]
        result = launched(*given, "--max_steps=1", "--save_strategy=no")
        assert result.returncode == 0, result.stderr[-3000:]
        assert ("all found in" in result.stdout) == found
        assert "does not agree" not in result.stdout  # under a name of its own from the start


def start_from(adapter: Path, *flags: str):
    recipe = "recipes/smollm2-sentiment.yaml"
    return parse(["--config", recipe, "--use_cpu", f"--model_name_or_path={adapter}", *flags])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "is a LoRA adapter of .*: --use_peft trains it on"),
        (["--use_peft", "--lora_r=8"], "lora_r: the adapter .* brings its own"),
        (["--use_peft", "--use_dora"], "use_dora: the adapter .* brings its own"),
    ],
)
def test_other_plans_for_an_adapter_are_refused(flags, words, tiny_adapter):
    with pytest.raises(SystemExit, match=words):
        check_model(start_from(tiny_adapter, *flags))


def test_an_adapter_whose_base_is_gone_is_refused(tiny_adapter, tmp_path):
    lonely = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    settings = json.loads((lonely / "adapter_config.json").read_text())
    gone = json.dumps(settings | {"base_model_name_or_path": "./gone"})
    (lonely / "adapter_config.json").write_text(gone)
    with pytest.raises(SystemExit, match=r"names \./gone as base_model_name_or_path"):
        check_model(start_from(lonely, "--use_peft"))


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(tiny_adapter, tiny_model, tmp_path):
    bare = tmp_path / "adapter"
    bare.mkdir()
    for name in ("adapter_config.json", ADAPTER):
        shutil.copy(tiny_adapter / name, bare)
    recipe = start_from(bare, "--use_peft")
    check_model(recipe)
    theirs = AutoTokenizer.from_pretrained(tiny_model)
    assert load_tokenizer(recipe).get_vocab() == theirs.get_vocab()
