"""Checkpoints are whole or not there, noticed when they are damaged, and taken by runs they fit."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo.recipe.parse import parse
from dpo.runs import checkpoints, keeping
from dpo.training.resume import REFERENCE, TakeUp, to_go_on_from
from support.commands import TIMES
from support.tiny import trainer_of

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def trainer_in(folder: Path, **arguments):
    return trainer_of(folder, "llama", fast=True, **(SAVING | arguments))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The output folder of six steps, with a checkpoint after every second one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer_in(folder).train()
    return folder / "run"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*checkpoint*"))


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    """Where transformers writes is not where it lies then; were it so, the pinned version would
    have changed beneath us."""
    before, finish = [], checkpoints.finish

    def finish_and_look(beside, checkpoint, about):
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= {
            path.name for path in beside.iterdir()
        }
        before.append(names(checkpoint.parent))
        finish(beside, checkpoint, about)

    monkeypatch.setattr(checkpoints, "finish", finish_and_look)
    umask = os.umask(0o027)
    try:
        trainer_in(tmp_path, max_steps=4).train()
    finally:
        os.umask(umask)
    assert before == [[], ["checkpoint-2"]]
    checkpoint = tmp_path / "run/checkpoint-4"
    assert not (tmp_path / "run" / checkpoints.BESIDE).exists()
    assert {path.stat().st_mode & 0o777 for path in checkpoint.iterdir()} == {0o640}
    manifest = checkpoints.checked(checkpoint)
    assert manifest["step"] == 4 and manifest["processes"] == 1
    assert manifest["files"].keys() | {checkpoints.MANIFEST} == set(os.listdir(checkpoint))


def test_each_process_flushes_and_hashes_its_share_of_a_checkpoint():
    """ZeRO's shards beside the policy, or an optimizer and a policy of one file each: every file is
    one process's, and none has more than its share and a file."""
    for sizes in ([52, 52, 52, 52, 50, 40, 1, 1, 0], [8, 4, 0, 0], [0, 0], []):
        for processes in (1, 2, 3, 4):
            shares = [checkpoints.share_of(sizes, rank, processes) for rank in range(processes)]
            assert sorted(at for share in shares for at in share) == [*range(len(sizes))]
            loads = [sum(sizes[at] for at in share) for share in shares]
            assert max(loads) <= sum(sizes) / processes + max(sizes, default=0)
    assert [checkpoints.share_of([8, 1, 8], rank, 2) for rank in (0, 1)] == [[0, 1], [2]]


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "deleted": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_noticed(damage, run, tmp_path, capsys):
    """The newest whole checkpoint is taken, the broken one named and kept."""
    for name in os.listdir(run / "checkpoint-6"):
        folder = shutil.copytree(run, tmp_path / name)
        file = folder / "checkpoint-6" / name
        if DAMAGES[damage]:
            file.write_bytes(DAMAGES[damage](file.read_bytes()))
        else:
            file.unlink()
        assert checkpoints.newest(folder) == folder / "checkpoint-4", name
        said = capsys.readouterr().out
        assert f"{folder}/checkpoint-6 is broken: " in said and name in said
        assert names(folder) == ["broken-checkpoint-6", "checkpoint-2", "checkpoint-4"]


def test_what_was_being_written_or_deleted_is_no_checkpoint(run, tmp_path):
    """However many of its files were there already."""
    files = sorted((run / "checkpoint-6").iterdir(), key=lambda path: path.stat().st_mtime)
    for count in range(len(files)):
        folder = tmp_path / str(count)
        for left in (f"{checkpoints.BESIDE}/checkpoint-6", f"{checkpoints.DELETED}checkpoint-1"):
            (folder / left).mkdir(parents=True)
            for path in files[:count]:
                shutil.copy(path, folder / left)
        shutil.copytree(run / "checkpoint-2", folder / "checkpoint-2")
        assert checkpoints.newest(folder) == folder / "checkpoint-2"
        checkpoints.sweep(folder)
        assert os.listdir(folder) == ["checkpoint-2"]


def test_what_a_user_has_put_beside_checkpoints_is_left_alone(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    mine = ("checkpoint-4-good", "checkpoint-best1", "checkpoint-backup-4")
    for name in mine:
        shutil.copytree(folder / "checkpoint-4", folder / name)
    (folder / "checkpoint-9").write_text("a note")
    shutil.copy(folder / "checkpoint-4/model.safetensors", folder)
    elsewhere = shutil.move(folder / "checkpoint-6", tmp_path / "another-disk")
    (folder / "checkpoint-6").symlink_to(elsewhere)
    assert [path.name for path in checkpoints.named(folder)] == [
        f"checkpoint-{n}" for n in (6, 4, 2)
    ]
    assert checkpoints.newest(folder) == folder / "checkpoint-6"
    assert keeping.keep(folder, "use").endswith(", no checkpoint")
    assert {path.name for path in folder.glob("*checkpoint*")} == {*mine, "checkpoint-9"}
    assert (Path(elsewhere) / checkpoints.MANIFEST).is_file()


def test_without_a_whole_one_a_run_begins_anew(run, tmp_path):
    assert checkpoints.newest(tmp_path) is checkpoints.last_whole(tmp_path) is None
    for step in (2, 4, 6):
        shutil.copytree(run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}/optimizer.pt").write_bytes(b"")
    assert checkpoints.newest(tmp_path) is None
    assert len(names(tmp_path)) == 3


def test_a_checkpoint_takes_only_a_run_that_it_fits(run):
    checkpoint = run / "checkpoint-4"
    manifest = checkpoints.read(checkpoint)
    keys = ("settings", "model", "data", "sharding", "processes", "micro_batches")
    about = {key: manifest[key] for key in keys} | {"settings": {"beta": 0.5}}

    def refusal(other_processes=False, **changes) -> str:
        with pytest.raises(SystemExit) as refused:
            checkpoints.check_fits(copy, about | changes, other_processes)
        assert str(copy) in refused.value.code and "--restart" in refused.value.code
        return refused.value.code

    copy = run.parent / "copy"
    copy.mkdir()

    def written(**changes):
        content = manifest | {"settings": {"beta": 0.5}} | changes
        text = json.dumps({"sha256": checkpoints._seal(content), **content})
        (copy / checkpoints.MANIFEST).write_text(text)

    written()
    checkpoints.check_fits(copy, about, False)
    assert "beta (0.5, now 0.1), seed (its default, now 7)" in refusal(
        settings={"beta": 0.1, "seed": 7}
    )
    assert "with other model than this run reads" in refusal(model="another")
    assert "with other data than this run reads" in refusal(data="others")
    assert "by 1 processes, and this run has 2: run on 1, or allow it" in refusal(processes=2)
    written(micro_batches=[4, 1, 1])
    divided = refusal(other_processes=True, micro_batches=[2, 2, 1])
    assert "with [4, 1, 1] pairs a micro-batch" in divided and "has [2, 2, 1]: its loss" in divided
    written()  # older ones do not say, and are taken
    checkpoints.check_fits(copy, about | {"micro_batches": [2, 2, 1]}, False)
    checkpoints.check_fits(copy, about | {"processes": 2}, other_processes=True)
    sharded = {"sharding": "ZeRO-3 on 2 processes", "processes": 2}
    assert "with no shards, and this run has ZeRO-3 on 2 processes" in refusal(True, **sharded)
    written(optimizer=False)
    assert "holds weights alone (save_only_model)" in refusal()


def test_what_a_recipe_learns_is_told_from_how_it_runs():
    """A batch may be taken in other pieces; what is learned of it may not differ."""
    recipe = ["--config", "recipes/smollm2-sentiment.yaml"]

    def learned(*flags: str) -> dict:
        parsed = parse([*recipe, "--use_cpu", *flags])
        return parsed.learned(parsed.stated)

    pieces = ("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4")
    ways = ("--gradient_checkpointing=true", "--save_steps=3", "--logging_steps=1", "--beta=0.1")
    ways += ("--policy_is_reference=false", "--other_processes")
    assert learned(*pieces, *ways) == learned()
    for other in ("--beta=0.2", "--seed=1", "--gradient_accumulation_steps=2", "--use_peft"):
        assert learned(other) != learned(), other


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 10:
            (tmp_path / f"checkpoint-{step}" / checkpoints.MANIFEST).touch()
    checkpoints.rotate(tmp_path, None, None)
    assert len(names(tmp_path)) == 5
    checkpoints.rotate(tmp_path, 2, str(tmp_path / "checkpoint-2"))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2", "checkpoint-8"]
    checkpoints.rotate(tmp_path, 1, None)
    # One that is not whole is not counted, and the last that is stays.
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-8"]


def gone_on(folder: Path, checkpoint: str | None, **arguments):
    trainer = trainer_in(folder, **arguments)
    taken = to_go_on_from(trainer, folder / "run", checkpoint, other_processes=False)
    trainer.add_callback(TakeUp(trainer, taken))
    trainer.train(resume_from_checkpoint=str(taken))
    return trainer


def logged(trainer) -> list[dict]:
    timed = {*TIMES, "train_samples_per_second", "train_steps_per_second"}
    return [
        {key: value for key, value in entry.items() if key not in timed}
        for entry in trainer.state.log_history[:-1]  # the last one is about this process alone
    ]


def test_what_was_not_logged_yet_is_logged_all_the_same(tmp_path):
    """Stopped at step 3 of five that are logged together."""
    how = {"logging_steps": 5, "save_steps": 3, "max_steps": 10}
    whole = trainer_in(tmp_path, **how)
    whole.train()
    weights = load_file(tmp_path / "run/checkpoint-9/model.safetensors")
    for step in (6, 9, 10):
        shutil.rmtree(tmp_path / f"run/checkpoint-{step}")
    resumed = gone_on(tmp_path, None, **how)
    assert len(logged(whole)) == 2 and "num_tokens" in logged(whole)[0]
    assert logged(resumed) == logged(whole)
    again = load_file(tmp_path / "run/checkpoint-9/model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_reference_that_moves_goes_on_from_where_it_was(name, tmp_path):
    """Of tied weights, too. Synchronised at every second step, and stopped between two."""
    how = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}
    how |= {"precompute_ref_log_probs": False, "save_steps": 3, "max_steps": 9}
    whole = trainer_of(tmp_path, name, fast=True, **(SAVING | how))
    start = {name: weight.clone() for name, weight in whole.ref_model.named_parameters()}
    whole.train()
    for step in (6, 9):
        shutil.rmtree(tmp_path / f"run/checkpoint-{step}")
    resumed = trainer_of(tmp_path, name, fast=True, **(SAVING | how))
    taken = to_go_on_from(resumed, tmp_path / "run", None, other_processes=False)
    assert taken.name == "checkpoint-3"
    # Nothing else lies beside the policy, since vLLM would load it over that.
    assert [path.name for path in taken.glob("*.safetensors")] == ["model.safetensors"]
    resumed.add_callback(TakeUp(resumed, taken))
    resumed.train(resume_from_checkpoint=str(taken))
    for model, other in ((whole.model, resumed.model), (whole.ref_model, resumed.ref_model)):
        there = dict(other.named_parameters())
        assert all(torch.equal(weight, there[name]) for name, weight in model.named_parameters())
    assert not all(torch.equal(w, start[n]) for n, w in whole.ref_model.named_parameters())


def test_a_checkpoint_without_the_reference_that_had_moved_is_refused(run, tmp_path):
    shutil.copytree(run / "checkpoint-2", tmp_path / "run/checkpoint-2")
    how = {"sync_ref_model": True, "precompute_ref_log_probs": False}
    trainer = trainer_in(tmp_path, **how)
    with pytest.raises(SystemExit, match=f"without {REFERENCE}.* --restart"):
        to_go_on_from(trainer, tmp_path / "run", None, other_processes=False)


def test_a_run_without_a_step_left_trains_none(tmp_path):
    """Killed when its last checkpoint was written, and the policy was not, within an epoch."""
    whole = trainer_in(tmp_path, max_steps=5)
    whole.train()
    resumed = gone_on(tmp_path, None, max_steps=5)
    assert resumed.state.global_step == 5
    trained = dict(whole.model.named_parameters())
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, trained[name]), name


def test_a_killed_data_worker_ends_the_run_with_a_line(tmp_path):
    trainer = trainer_in(tmp_path, dataloader_num_workers=1, save_steps=3)
    collate, this = trainer.data_collator, os.getpid()

    def collate_or_die(rows):
        if trainer.state.global_step >= 4 and os.getpid() != this:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(rows)

    trainer.data_collator = collate_or_die  # workers are forked anew with each epoch
    with pytest.raises(SystemExit, match=r"a data worker was killed after step 4,.*/checkpoint-4"):
        trainer.train()


def test_the_best_checkpoint_is_found_where_it_lies(tmp_path):
    """Its path is not that of where it was written."""
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "loss", "save_total_limit": 1, "learning_rate": 0.5}
    trainer = trainer_in(tmp_path, with_held_out=True, **best)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run" and checkpoints.checked(best)
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    weights, policy = load_file(best / "model.safetensors"), dict(trainer.model.named_parameters())
    assert all(torch.equal(policy[name], weights[name]) for name in weights)


def test_a_checkpoint_that_is_named_must_be_one(run, tmp_path):
    trainer = trainer_in(tmp_path)
    for given in (tmp_path / "True", shutil.copytree(run / "checkpoint-2", tmp_path / "damaged")):
        (tmp_path / "damaged/scheduler.pt").write_bytes(b"")
        with pytest.raises(SystemExit, match=r"cannot be gone on from: .* Give another"):
            to_go_on_from(trainer, tmp_path / "run", str(given), other_processes=False)
