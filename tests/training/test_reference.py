"""The reference is scored once, found again by content, and never believed blindly."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import datasets.config
import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from dpo.core import hashing
from dpo.data.schema import REFERENCE_LOGPS
from dpo.evaluation import generations
from dpo.evaluation.contestants import Contestant
from dpo.models import adapters
from dpo.recipe.parse import parse
from dpo.speed.workload import any_tokenizer
from dpo.training import reference
from dpo.training.reference import CHECKED_ROWS
from support.commands import run
from support.launched import forked
from support.place import ROOT
from support.tiny import losses_of, random_model, trainer_of


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """Rows of every batch that the reference is asked to score."""
    rows = []
    plain = DPOTrainer.compute_ref_log_probs

    def counted(self, model, inputs):
        rows.append(len(inputs["input_ids"]) // 2)
        return plain(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", counted)
    return rows


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.safetensors"))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_log_probabilities_are_those_of_the_live_reference(lora, tmp_path):
    cached = trainer_of(tmp_path, "llama", fast=True, lora=lora).train_dataset
    live = trainer_of(tmp_path, "llama", fast=False, lora=lora)
    batch = live.data_collator(list(live.train_dataset))
    model = live.model if lora else live.ref_model
    for column, values in zip(
        REFERENCE_LOGPS, live.compute_ref_log_probs(model, batch), strict=True
    ):
        assert cached[column] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_held_out_pairs_are_scored_at_the_first_evaluation(lora, tmp_path):
    """By what the policy was before it learned; and all that is learned and measured is to the bit
    what it is where their scores are found, dropout too."""
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    settings = {"fast": True, "with_held_out": True, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"max_steps": 4, "objects": {"peft_config": adapter if lora else None}}
    logs, columns = [], []
    for found in (False, True):
        trainer = trainer_of(tmp_path, "llama", **settings)
        assert (REFERENCE_LOGPS[0] in trainer.eval_dataset.column_names) == found
        trainer.train()
        assert trainer.ref_model is None
        keys = ("loss", "eval_loss", "eval_rewards/margins", "grad_norm")
        logs.append([[log.get(key) for key in keys] for log in trainer.state.log_history[:-1]])
        columns.append([trainer.eval_dataset[name] for name in REFERENCE_LOGPS])
    assert logs[0] == logs[1] and columns[0] == columns[1] and len(logs[0]) == 6


def test_a_sweep_scores_nothing_again(tmp_path, scored):
    """Other β, learning rate, seed, output folder, batch; an adapter on the same model."""
    first = trainer_of(tmp_path, "llama", fast=True)
    assert sum(scored) == len(first.train_dataset)
    for changed in (
        {"beta": 0.5, "learning_rate": 1e-5, "output_dir": str(tmp_path / "other"), "seed": 7},
        {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
        {"lora": True},
    ):
        scored.clear()
        again = trainer_of(tmp_path, "llama", fast=True, **changed)
        assert scored == [CHECKED_ROWS]  # the check; no batch to fill the columns with
        for column in REFERENCE_LOGPS:
            assert again.train_dataset[column] == first.train_dataset[column]
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    "changed",
    [{"max_length": 20}, {"truncation_mode": "keep_end"}, {"ld_alpha": 0.5}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_changes_the_answer_makes_another_entry(changed, tmp_path, scored):
    trainer_of(tmp_path, "llama", fast=True)
    scored.clear()
    trainer = trainer_of(tmp_path, "llama", fast=True, **changed)
    assert sum(scored) == len(trainer.train_dataset)
    assert len(entries(tmp_path / "cache")) == 2


@pytest.mark.parametrize(
    "changed",
    [{"lora_alpha": 16}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 9}}],
    ids=lambda changed: next(iter(changed)),
)
def test_an_adapter_that_acts_otherwise_is_another_reference(changed, tiny_adapter, tmp_path):
    """With the same weights, in what is kept of log-probabilities and of answers."""
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    moved = shutil.copytree(tiny_adapter, tmp_path / "moved")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | changed))
    (moved / "adapter_config.json").write_text(json.dumps(config | {"peft_version": "0"}))
    keys, answers = [], []
    for folder in (tiny_adapter, other, moved):
        policy = adapters.trainable(str(folder), False)
        file = folder / "adapter_model.safetensors"
        keys.append(reference.digest_of_weights(policy.config, file))
        answers.append(Contestant("", str(folder)).digest())
    assert keys[0] == keys[2] != keys[1]
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config.json", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
        ("config.json", {"dtype": "bfloat16"}),
        ("generation_config.json", {"eos_token_id": 7}),
    ],
)
def test_answers_are_those_of_a_configuration_too(file, changed, tiny_model, tmp_path):
    """Edited by hand, beside the same weights."""
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "report.json").write_text("of a run, and nothing to its answers")
    before = Contestant("", str(tiny_model)).digest()
    assert Contestant("", str(other)).digest() == before
    config = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps(config | changed))
    assert Contestant("", str(other)).digest() != before


def test_answers_in_either_half_precision_are_kept_apart(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(generations, "KEPT", tmp_path)
    who = Contestant("", str(tiny_model), dtype="float32")
    model, tokenizer = who.load("cpu"), who.tokenizer()
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            generations.draw(who, model, tokenizer, ["Say"], generations.Settings(1, 0.7, 2, 0))
    assert len([*tmp_path.iterdir()]) == 2


def test_numerics_make_another_entry(tmp_path, monkeypatch):
    """The same float32 files: as they are, under autocast, sharded by FSDP, and as DeepSpeed takes
    them, in bfloat16 under its stages and in float32."""
    trainer = trainer_of(tmp_path, "llama", fast=True)
    (state, stages), found = (trainer.accelerator.state, (2, 3)), []

    def key(precision: str, **sharded) -> None:
        monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", precision)
        monkeypatch.setattr(trainer, "is_fsdp_enabled", sharded.get("fsdp", False))
        plugin = SimpleNamespace(zero_stage=sharded["stage"]) if "stage" in sharded else None
        monkeypatch.setattr(type(state), "deepspeed_plugin", plugin)
        found.append(reference.content(trainer, trainer.train_dataset))

    key("no")
    key("bf16")
    key("bf16", fsdp=True)
    for stage in stages:
        key("bf16", stage=stage)
    key("no", stage=2)
    monkeypatch.setattr(reference.torch, "__version__", "1.0")
    key("no", stage=2)
    assert len({json.dumps(about) for about in found}) == len(found)
    assert [about["dtype"] for about in found[2:]] == [
        *("torch.float32", "torch.bfloat16", "torch.bfloat16", "torch.float32", "torch.float32")
    ]
    assert found[0]["device"] == "cpu"


def test_code_beside_the_weights_makes_another_entry(tiny_model, tmp_path):
    """A model's own, that runs where the recipe says so."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    model = SimpleNamespace(config=SimpleNamespace(_name_or_path=str(folder)))
    before = reference.digest_of_weights(model.config)
    assert before == reference.digest_of_weights(model.config)
    (folder / "modeling_own.py").write_text("SCALE = 2")
    assert reference.digest_of_weights(model.config) != before


def test_large_files_are_hashed_once_and_believed_only_as_they_were(tmp_path, monkeypatch):
    """Each change keeps the size, as a run that is trained anew does."""
    hashed = []
    plain = hashing.digest_of
    monkeypatch.setattr(hashing, "digest_of", lambda path: hashed.append(path) or plain(path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hashing, "LARGE", 1000)
    monkeypatch.setattr(hashing, "SETTLED", 50_000_000)
    file, small = tmp_path / "model.safetensors", tmp_path / "config.json"
    file.write_bytes(b"1" * 1000)
    small.write_bytes(b"1")

    def found() -> str:
        hashed.clear()
        (digest, _) = hashing.digests_of([file, small])
        assert digest == plain(file)
        return "anew" if file in hashed else "kept"

    assert [found(), found()] == ["anew", "anew"]  # it may change again within the same tick
    time.sleep(0.06)
    assert [found(), found(), found()] == ["anew", "kept", "kept"] and hashed == [small]
    state = file.stat()
    file.write_bytes(b"2" * 1000)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as rsync leaves it
    assert found() == "anew"
    time.sleep(0.06)
    assert [found(), found()] == ["anew", "kept"]
    (tmp_path / "beside").write_bytes(b"3" * 1000)
    os.replace(tmp_path / "beside", file)
    assert found() == "anew"
    time.sleep(0.06)
    found()
    hashing.kept_in().write_text("half of a")
    assert [found(), found()] == ["anew", "kept"]
    hashing.kept_in().unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert found() == "anew"


def test_other_weights_at_the_same_place_are_noticed(tmp_path):
    before = trainer_of(tmp_path, "llama", fast=True, weights=0).train_dataset
    after = trainer_of(tmp_path, "llama", fast=True, weights=1).train_dataset
    assert len(entries(tmp_path / "cache")) == 2
    assert before[REFERENCE_LOGPS[0]] != after[REFERENCE_LOGPS[0]]


def test_a_hub_model_is_known_by_its_commit():
    model = random_model("llama")
    model.config._name_or_path = "someone/something"
    assert reference.digest_of_weights(model.config) is None
    model.config._commit_hash = "c0ffee"
    assert reference.digest_of_weights(model.config) == "c0ffee"


def test_a_model_made_in_memory_is_scored_and_not_kept(tmp_path, monkeypatch, capsys):
    """No file of weights is its own, nor one that happens to lie where the run was started."""
    random_model("llama").save_pretrained(tmp_path / "another")
    monkeypatch.chdir(tmp_path / "another")
    rows = trainer_of(tmp_path, "llama", fast=True).train_dataset
    made = {"model": random_model("llama"), "processing_class": any_tokenizer()}
    trainer = trainer_of(tmp_path, "llama", fast=True, cache=tmp_path / "its own", objects=made)
    assert "not kept, since the model was made in memory" in capsys.readouterr().out
    assert not (tmp_path / "its own").exists()
    for column in REFERENCE_LOGPS:
        assert trainer.train_dataset[column] == rows[column]


def test_the_reference_that_is_given_is_the_one_that_is_kept(tmp_path, capsys):
    """And not found in the place of the policy's."""
    random_model("llama", 1).save_pretrained(tmp_path / "first")
    first = {"ref_model": AutoModelForCausalLM.from_pretrained(tmp_path / "first")}
    own = trainer_of(tmp_path, "llama", fast=True).train_dataset
    other = trainer_of(tmp_path, "llama", fast=True, objects=first).train_dataset
    again = trainer_of(tmp_path, "llama", fast=True).train_dataset
    assert "moved to" not in capsys.readouterr().out
    assert own[REFERENCE_LOGPS[0]] == again[REFERENCE_LOGPS[0]] != other[REFERENCE_LOGPS[0]]


def test_the_same_weights_at_another_place_are_known(tmp_path, scored):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scored.clear()
        trainer_of(tmp_path / name, "llama", fast=True, cache=tmp_path / "cache")
    assert scored == [CHECKED_ROWS]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def of_other_rows(path: Path) -> None:
    save_file({name: np.zeros(3, np.float32) for name in REFERENCE_LOGPS}, path)


def of_another_model(path: Path) -> None:
    save_file({name: values - 0.1 for name, values in load_file(path).items()}, path)


@pytest.mark.parametrize("spoil", [cut_off, of_other_rows, of_another_model])
def test_a_wrong_entry_is_set_aside_and_made_anew(spoil, tmp_path, scored, capsys):
    first = trainer_of(tmp_path, "llama", fast=True).train_dataset
    (path,) = entries(tmp_path / "cache")
    spoil(path)
    spoiled = path.read_bytes()
    again = trainer_of(tmp_path, "llama", fast=True).train_dataset
    assert "damaged or does not agree" in capsys.readouterr().out
    assert path.with_suffix(".set-aside").read_bytes() == spoiled
    for column in REFERENCE_LOGPS:
        assert again[column] == first[column] == load_file(path)[column].tolist()


def test_a_run_shorter_than_an_epoch_scores_its_own_pairs(tmp_path, scored):
    short = trainer_of(tmp_path, "llama", fast=True, max_steps=1)
    assert sum(scored) == 4  # 1 step × 2 pairs × 2 accumulated, of 8 rows
    assert np.isnan(short.train_dataset[REFERENCE_LOGPS[0]]).sum() == 4
    losses_of(short)
    scored.clear()
    longer = trainer_of(tmp_path, "llama", fast=True, max_steps=10)
    assert sum(scored) == CHECKED_ROWS + 4  # the rest joins the same entry
    assert not np.isnan(longer.train_dataset[REFERENCE_LOGPS[0]]).any()
    assert len(entries(tmp_path / "cache")) == 1


def test_an_unscored_pair_is_never_trained_on(tmp_path):
    trainer = trainer_of(tmp_path, "llama", fast=True, max_steps=1)
    trainer.args.max_steps = 2
    with pytest.raises(RuntimeError, match="the reference did not score"):
        trainer.get_train_dataloader()


def test_an_entry_says_what_it_is_of(tmp_path):
    trainer_of(tmp_path, "llama", fast=True)
    (path,) = entries(tmp_path / "cache")
    header = path.read_bytes()
    about = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert about["dtype"] == "torch.float32" and about["max_length"] == "24"
    assert {"rows", "weights", "attention", "template"} <= about.keys()
    assert path.stat().st_mode & 0o044  # readable by others, as umask says
    assert [path] == [*path.parent.iterdir()]  # nothing half written beside it


SCORE = """
import sys
from pathlib import Path
from support.tiny import trainer_of
print(trainer_of(Path(sys.argv[1]), "llama", fast=True, cache=Path(sys.argv[2])).train_dataset[:])
raise SystemExit
"""


def test_two_runs_at_once_share_one_entry(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    given = [(str(folder), str(tmp_path / "cache")) for folder in folders]
    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(forked, "train", *each, first=SCORE) for each in given]
    rows = []
    for done in (each.result() for each in runs):
        assert done.returncode == 0, done.stderr[-3000:]
        rows.append(done.stdout.splitlines()[-1])
    assert rows[0] == rows[1] and "ref_chosen_logps" in rows[0]
    (path,) = entries(tmp_path / "cache")
    assert reference.read(path, 8) is not None


def test_make_clean_cache_forgets_them(tmp_path):
    default = parse(["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu"]).run.reference_cache
    kept = tmp_path / default / "entry.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    result = run("make", "-C", tmp_path, "-f", ROOT / "Makefile", "clean-cache")
    assert result.returncode == 0 and not kept.parent.exists()


def test_a_disk_that_takes_no_entry_costs_no_run(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    trainer = trainer_of(tmp_path, "llama", fast=True, max_steps=2)
    assert "8 scored, and not kept, since" in capsys.readouterr().out
    assert len(losses_of(trainer)) == 2
