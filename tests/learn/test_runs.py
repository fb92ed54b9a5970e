"""The short runs of experiments: what they are given, and how they end."""

import json

import pytest

from dpo.core.refusal import Refusal
from dpo.core.signals import EXIT_CODE
from dpo.learn import runs
from dpo.runs import output_folder, sweeps


def run_in(folder, ends: str, monkeypatch) -> sweeps.Run:
    """A run whose training, here, ends so at once, and leaves what a run leaves."""
    run = runs.run_of(folder, {"loss_type": "ipo", "seed": 3}, runs.flags_of(2, 4))
    (run.folder / "checkpoint-1").mkdir(parents=True)
    for name in (
        "model.safetensors",
        "checkpoint-1/model.safetensors",
        "checkpoint-1/optimizer.pt",
    ):
        (run.folder / name).write_bytes(b"weights")
    (run.folder / output_folder.REPORT).write_text(json.dumps({"format": 2, "steps": 2}))
    run.log.write_text("it began\nwhat went wrong: do this\n")

    def carry_out(asked, how, places, flags):
        assert asked == [run] and how == ["--gpus", "1"]
        run.state = ends
        return False

    monkeypatch.setattr(sweeps, "carry_out", carry_out)
    return run


def test_weights_go_when_they_are_measured(tmp_path, monkeypatch):
    run = run_in(tmp_path, sweeps.DONE, monkeypatch)
    assert run.name == "loss_type=ipo,seed=3"
    runs.train(run, [])
    runs.remove_weights(run.folder)
    assert runs.report_of(run.folder)["steps"] == 2
    left = {path.name for path in run.folder.rglob("*")}
    assert left == {output_folder.REPORT}


def test_weights_stay_where_a_run_has_not_ended(tmp_path, monkeypatch):
    run = run_in(tmp_path, sweeps.LEFT, monkeypatch)
    with pytest.raises(SystemExit) as left:
        runs.train(run, [])
    assert left.value.code == EXIT_CODE
    run.state = sweeps.FAILED
    monkeypatch.setattr(sweeps, "carry_out", lambda *how: False)
    with pytest.raises(Refusal, match=r"loss_type=ipo,seed=3: what went wrong: do this \(.*log\)"):
        runs.train(run, [])
    assert (run.folder / "checkpoint-1/optimizer.pt").exists()


def test_figures_are_those_of_the_report():
    report = {
        "judge": {"reward": {"policy": {"mean": 0.5}, "against": {"mean": 0.3}}},
        "answers": {
            "mean_tokens": {"policy": {"mean": 25.5}, "against": {"mean": 27.0}},
            "kl": {"nats_per_sequence": {"mean": 3.1}, "nats_per_token": {"mean": 0.1}},
        },
        "pairs": {"accuracy": {"mean": 0.7}},
    }
    policy = {"reward": 0.5, "accuracy": 0.7, "kl": 3.1, "tokens": 25.5}
    assert runs.numbers(report) == policy and {*policy} == {*runs.METRICS}
    assert runs.numbers(report, "against") == {"reward": 0.3, "tokens": 27.0}
    spent = [{"seconds": {"train": 60, "evaluate": 30}}, {"seconds": {"train": 30}}]
    assert runs.minutes(spent) == 2
    assert runs.minutes(spent, [{"step": 2, "seconds": 45}, {"seconds": 15}]) == 3


def test_what_was_asked_otherwise_is_found_anew(tmp_path):
    path, found, seconds = tmp_path / "one.json", iter([{"a": 1}, {"a": 2}]), []
    for prompts, expected in ((1, 1), (1, 1), (2, 2), (2, 2)):
        each = runs.kept(path, {"prompts": prompts}, lambda: next(found))
        seconds.append(each.pop("seconds"))
        assert each == {"a": expected}
    assert seconds[0] == seconds[1] > 0 and seconds[2] == seconds[3]


@pytest.mark.parametrize("text", ["", '{"asked": {"prom', "[]", "{}", "null"])
def test_what_is_kept_and_not_whole_is_named(text, tmp_path):
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(Refusal, match=rf"{path} is not whole: remove it"):
        runs.kept(path, {}, dict)
