"""make export: what is written is the policy, and what is not is refused and leaves nothing."""

import json
import resource
import shutil
from pathlib import Path
from unittest.mock import Mock

import gguf
import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    set_seed,
)

from dpo.core.refusal import Refusal
from dpo.use.export import check, command, gguf_file
from dpo.use.run import used
from support.commands import at_once
from support.exports import ADDED, exported, left
from support.launched import made
from support.place import EMBEDDED_MODEL


def test_a_merged_adapter_answers_as_the_run_does(run):
    folder, about, said = exported(run, "MERGE=1")
    assert folder == run / "exports/merged-float32" and left(run) == ["merged-float32"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = len(model.get_input_embeddings().weight)
    assert ADDED in tokenizer.get_vocab() and rows == len(tokenizer)
    ids = torch.tensor([tokenizer("It was good.")["input_ids"]])
    policy = AutoPeftModelForCausalLM.from_pretrained(run)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy(ids).logits, rtol=1e-4, atol=1e-4)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert check.listed(model.generation_config.eos_token_id) == [end]
    nats, ended = about["checked"]["nats"], about["checked"]["ended"]
    assert nats["export_from_policy"]["token_max"] < 1e-5 < nats["policy_from_reference"]["token"]
    assert about["checked"]["answers"] == 16 and ended["export"] == ended["policy"] > 4
    assert "16 answers" in said and "Next: AutoModelForCausalLM" in said


def test_an_adapter_alone_is_exported_as_it_was_trained(run):
    folder, about, said = exported(run)
    assert {path.name for path in folder.iterdir()} == {*about["files"], "export.json"}
    assert [path.name for path in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert about["base"] in said and GenerationConfig.from_pretrained(folder).eos_token_id
    assert about["checked"]["nats"]["export_from_policy"]["token"] < 1e-4


def test_half_a_dtype_is_the_policy_rounded(run):
    folder, about, _ = exported(run, "MERGE=1", "DTYPE=bf16", f"TO={run.parent / 'out'}")
    assert folder == run.parent / "out"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    nats = about["checked"]["nats"]
    assert nats["export_from_rounded_policy"]["token_max"] < 1e-6
    rounding = nats["rounded_policy_from_policy"]["token"]
    assert 1e-4 < rounding == pytest.approx(nats["export_from_policy"]["token"])


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(run):
    folder, first, _ = exported(run, "MERGE=1")
    assert exported(run, "MERGE=1")[1]["finished"] >= first["finished"]
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("# A card of mine\n")
    result = made("export", f"RUN={run}", "MERGE=1")
    said = "holds what no export has written (README.md, notes.txt)"
    assert result.returncode and said in result.stderr
    assert (folder / "notes.txt").is_file() and (folder / "model.safetensors").is_file()
    with pytest.raises(Refusal, match=r"notes.txt is a file: give another TO="):
        command.check_free(folder / "notes.txt/inside")


def test_two_exports_of_one_place_do_not_mix(tmp_path):
    with command.beside(tmp_path / "a") as part:
        (part / "one").touch()
        with (
            pytest.raises(Refusal, match="a is being written by another make export"),
            command.beside(tmp_path / "a"),
        ):
            pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["one"]


def test_an_export_goes_where_a_link_leads(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    folder, _ = command.export(used(str(run)), True, "", str(tmp_path / "link"))
    assert (tmp_path / "link/model.safetensors").is_file() and folder == tmp_path / "there"


def heads_apart(policy):
    policy.lm_head.weight.data += 0.01 * torch.randn_like(policy.lm_head.weight)


def no_ends(policy):
    policy.generation_config.eos_token_id = 1


@pytest.mark.parametrize(
    ("harm", "says"),
    [(heads_apart, "log-probabilities of tokens differ"), (no_ends, r"end at \[1\],")],
)
def test_an_export_that_is_not_the_policy_is_refused_and_not_left(run, monkeypatch, harm, says):
    write = command.write

    def harmed(run, policy, *rest):
        harm(policy)
        write(run, policy, *rest)

    monkeypatch.setattr(command, "write", harmed)
    with pytest.raises(Refusal, match=says):
        command.export(used(str(run)), True, "", "")
    assert left(run) == [] and not [*run.glob("exports/.*")]


def test_weights_that_are_lost_are_refused(run, monkeypatch):
    write = command.write

    def harmed(run, policy, *rest):
        policy.model.norm.weight = None
        write(run, policy, *rest)

    monkeypatch.setattr(command, "write", harmed)
    with pytest.raises(Refusal, match=r"missing keys \['model.norm.weight'\]"):
        command.export(used(str(run)), True, "", "")
    assert left(run) == []


def test_a_dtype_that_rounds_away_what_was_learned_is_refused(run, monkeypatch):
    monkeypatch.setattr(check, "SHARE", 0.0)
    with pytest.raises(Refusal, match=r"bfloat16 rounds away what was learned.*more bits"):
        command.export(used(str(run)), True, "bfloat16", "")
    assert left(run) == []


@pytest.fixture(scope="module")
def with_all_tokens(lora, tmp_path_factory) -> Path:
    """A run as one of a model with the embedded model's tokenizer, whole: the converter knows
    tokenizers by what they make of a text. Its policy differs from its reference by noise."""
    home = tmp_path_factory.mktemp("all-tokens")
    run = Path(shutil.copytree(lora, home / "run"))
    base, tokenizer = home / "base", AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    config = AutoConfig.from_pretrained(EMBEDDED_MODEL)
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2})
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8})
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for folder in (base, run):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.data += 0.02 * torch.randn_like(parameter)
    for adapter in run.glob("adapter_*"):
        adapter.unlink()
    stated = yaml.safe_load((run / "recipe.yaml").read_text())
    changed = {"model_name_or_path": str(base), "use_peft": False}
    text = yaml.safe_dump(stated | changed)
    (run / "recipe.yaml").write_text(f"# begun on 2026-01-01\n{text}")
    return run


@pytest.fixture
def all_tokens(with_all_tokens, tmp_path) -> Path:
    """Such a run whose exports are a test's own."""
    return Path(shutil.copytree(with_all_tokens, tmp_path / "run"))


@pytest.fixture(scope="module")
def as_f32(with_all_tokens) -> tuple[Path, dict]:
    """Its export as GGUF in float32, and what is told of that."""
    to = str(with_all_tokens.parent / "f32")
    return command.export(used(str(with_all_tokens)), False, "", to, "f32")


needs_converter = pytest.mark.skipif(
    not gguf_file.PLACE.is_dir(), reason="make export GGUF= installs the converter"
)


@needs_converter
def test_a_gguf_file_is_the_policy(all_tokens, as_f32, monkeypatch):
    """It is read once, by a class that transformers asks gguf for: were it not, the pinned version
    would have changed beneath us."""
    reading = Mock(wraps=gguf.GGUFReader)
    monkeypatch.setattr(gguf, "GGUFReader", reading)
    folder, about = command.export(used(str(all_tokens)), False, "", "", "q8_0")
    assert reading.call_count == 1
    assert folder == all_tokens / "exports/gguf-q8_0"
    for outtype, written in (("f32", as_f32[1]), ("q8_0", about)):
        assert [*written["files"]] == ["README.md", f"run-{outtype}.gguf"]
        off = written["checked"]["nats"]["export_from_policy"]["token"]
        assert (off < 1e-5) == (outtype == "f32") and off < 0.02


@needs_converter
def test_a_gguf_file_of_another_model_is_refused(all_tokens, as_f32, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(all_tokens)
    model.model.layers[0].self_attn.q_proj.weight.data *= 1.5
    model.save_pretrained(all_tokens)
    (other,) = as_f32[0].glob("*.gguf")
    monkeypatch.setattr(gguf_file, "convert", lambda _, __, file: shutil.copy(other, file))
    with pytest.raises(Refusal, match="log-probabilities of tokens differ"):
        command.export(used(str(all_tokens)), False, "", "", "f32")
    assert left(all_tokens) == []


@needs_converter
def test_a_tokenizer_that_the_converter_does_not_know_is_refused(run):
    with pytest.raises(Refusal, match="convert_hf_to_gguf cannot convert this model: "):
        command.export(used(str(run)), False, "", "", "f16")
    assert left(run) == []


def test_without_the_converter_it_is_said_what_to_install(run, monkeypatch, tmp_path):
    monkeypatch.setattr(gguf_file, "PLACE", tmp_path)
    with pytest.raises(Refusal, match=r"GGUF= needs convert_hf_to_gguf.*requirements-gguf.txt"):
        command.export(used(str(run)), False, "", "", "f16")
    said, code = at_once("export.py", f"--run={run}", "--gguf=q2")
    assert code == 1 and "choose from f32, f16, bf16, q8_0" in said


def test_a_disk_that_is_full_is_one_line(run):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(Refusal, match=r"cannot be written: .*File too large.*Make room$"):
            command.export(used(str(run)), True, "", "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(run) == []


def test_what_is_gone_or_not_ended_is_said(run, tmp_path):
    for given, says in (
        (("DTYPE=bf16",), "an adapter is exported as it was trained: DTYPE= goes with MERGE=1"),
        (("MERGE=1", f"TO={run / 'README.md'}"), "is a file: give another TO="),
        (("MERGE=1", f"TO={run}"), "holds what no export has written"),
        (("MERGE=1", "TO=/proc/none/x"), "/proc/none/x cannot be made"),
    ):
        result = made("export", f"RUN={run}", *given)
        assert result.returncode == 1 and says in result.stderr, result.stderr[-2000:]
    report = run / "report.json"
    report.rename(tmp_path / "kept")
    assert "has not ended" in made("export", f"RUN={run}").stderr
    (tmp_path / "kept").rename(report)
    config = json.loads((run / "adapter_config.json").read_text())
    gone = config | {"base_model_name_or_path": str(tmp_path / "gone")}
    (run / "adapter_config.json").write_text(json.dumps(gone))
    said = made("export", f"RUN={run}").stderr
    assert said.startswith(f"{tmp_path / 'gone'}, from which {run} was trained") and "back" in said
    assert left(run) == []


def test_what_is_misspelt_is_answered_at_once():
    said, code = at_once("export.py", "--run=outputs/none", "--dtype=int3")
    assert code == 1 and "DTYPE=int3" in said and "float32, bfloat16, float16, fp32" in said
    said, code = at_once("export.py", "--run=outputs/none")
    assert code == 1 and "no run and no model at outputs/none; the runs here:" in said


def test_a_mount_point_is_not_taken_and_an_export_in_its_way_is_not_lost(tmp_path, monkeypatch):
    folder = tmp_path / "exports"
    folder.mkdir()
    (folder / "export.json").write_text('{"files": {}}')
    with pytest.raises(OSError, match="busy"), command.beside(folder):

        def busy(path, target):
            raise OSError(16, "Device or resource busy")

        monkeypatch.setattr(Path, "rename", busy)
    assert (folder / "export.json").is_file() and [*tmp_path.iterdir()] == [folder]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    with pytest.raises(Refusal, match=f"mount point, .*TO={folder}/name"):
        command.check_free(folder)
