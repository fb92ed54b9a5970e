"""Policies that are measured along their runs: once each, kept, and weights removed."""

import json

import pytest

from dpo.core.refusal import Refusal
from dpo.learn import along, runs
from dpo.runs import checkpoints, output_folder, sweeps


class Killed(Exception):
    pass


def run_in(folder, monkeypatch) -> tuple[sweeps.Run, list[int]]:
    """A run whose training, here, leaves checkpoints at once; and how often it was trained."""
    flags = ["--learning_rate=1e-5", *along.flags_of(6, 2)]
    assert "--save_steps=2" in flags
    run, trained = runs.run_of(folder, {"loss_type": "ipo", "seed": 3}, flags), []

    def train(one, given):
        assert one is run and given == flags
        if (run.folder / output_folder.REPORT).is_file():
            return
        assert not checkpoints.named(run.folder)  # weights alone are nothing to go on from
        trained.append(1)
        for step in (2, 4, 6):
            (run.folder / f"checkpoint-{step}").mkdir(parents=True)
        for name in (output_folder.TRAINED, output_folder.REPORT, "model.safetensors"):
            (run.folder / name).touch()

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "timed", lambda find: {**find(), "seconds": 6})
    monkeypatch.setattr(sweeps, "begun", lambda one: (one.folder / output_folder.REPORT).is_file())
    monkeypatch.setattr(along, "policy_of", lambda checkpoint, folder: checkpoint)
    return run, trained


def test_each_checkpoint_is_measured_once_and_removed(tmp_path, monkeypatch):
    run, trained = run_in(tmp_path, monkeypatch)
    (run.folder / "checkpoint-2").mkdir(parents=True)  # of a run that was killed
    seen, flags = [], ["--learning_rate=1e-5", *along.flags_of(6, 2)]

    def measure(checkpoint):
        if len(seen) == 1 and checkpoint.name == "checkpoint-4":
            seen.append("killed")
            raise Killed
        seen.append(checkpoint.name)
        return {"reward": {"mean": checkpoints.step_of(checkpoint) / 10}}

    with pytest.raises(Killed):
        along.measured(run, flags, {"prompts": 4}, measure)
    assert len(checkpoints.named(run.folder)) == 2  # what is measured is gone, and no more
    expected = [{"step": step, "reward": {"mean": step / 10}, "seconds": 6} for step in (2, 4, 6)]
    for _ in range(2):
        assert along.measured(run, flags, {"prompts": 4}, measure) == expected
    assert seen == ["checkpoint-2", "killed", "checkpoint-4", "checkpoint-6"] and len(trained) == 1
    assert not checkpoints.named(run.folder) and (run.folder / "model.safetensors").is_file()
    with pytest.raises(Refusal, match=r"seed=3\.json holds points that were measured otherwise"):
        along.measured(run, flags, {"prompts": 5}, measure)


def test_a_run_that_was_removed_is_measured_anew(tmp_path, monkeypatch):
    run, trained = run_in(tmp_path, monkeypatch)
    old = {"asked": {"prompts": 5}, "points": [{"step": 2}]}
    along.path_of(run).parent.mkdir(parents=True, exist_ok=True)
    along.path_of(run).write_text(json.dumps(old))
    flags = ["--learning_rate=1e-5", *along.flags_of(6, 2)]
    found = along.measured(run, flags, {"prompts": 4}, lambda checkpoint: {"new": True})
    assert found == [{"step": step, "new": True, "seconds": 6} for step in (2, 4, 6)] and trained
    along.path_of(run).unlink()
    with pytest.raises(Refusal, match="holds no weights to measure: remove it"):
        along.measured(run, flags, {"prompts": 4}, lambda checkpoint: {})
    along.path_of(run).write_text('{"asked": {"prom')
    with pytest.raises(Refusal, match=r"seed=3\.json is not whole: remove it"):
        along.measured(run, flags, {"prompts": 4}, lambda checkpoint: {})
