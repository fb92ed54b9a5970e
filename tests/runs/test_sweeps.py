"""What a sweep is made of: points, values in one spelling, GPUs dealt out, runs asked to stop."""

import fcntl
import re
import sys

import pytest
import torch
import yaml

import sweep
from dpo.core.refusal import Refusal
from dpo.core.signals import EXIT_CODE
from dpo.runs import sweeps
from dpo.runs.output_folder import LOCK
from dpo.runs.sweeps import DONE, LEFT, points, resolved
from sweep import places, sweep_file

RECIPE = "smollm2-sentiment"


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # as sweep.py reads recipes where no GPU is


def test_a_value_is_kept_whole_and_has_one_spelling(on_cpu, tmp_path):
    given = "learning_rate=0.000001,1e-6,1.2345678e-6 seed=20231218 loss_type=hinge"
    one, other = resolved(RECIPE, given, tmp_path, [])
    assert one.name == "learning_rate=1e-06,seed=20231218,loss_type=hinge"
    assert other.recipe.training.learning_rate == 1.2345678e-6
    assert other.recipe.training.seed == 20231218
    assert other.recipe.training.output_dir == str(tmp_path / other.name)


def test_a_point_wins_over_what_all_runs_share(on_cpu, tmp_path):
    (run,) = resolved(RECIPE, "beta=0.3", tmp_path, ["--beta=0.5", "--output_dir=elsewhere"])
    assert run.recipe.training.beta == 0.3
    assert run.recipe.training.output_dir == str(tmp_path / "beta=0.3")


@pytest.mark.parametrize("key", ["output_dir", "logging_steps", "restart", "config", "report_to"])
def test_what_does_not_change_what_is_learned_is_not_swept(key, tmp_path):
    with pytest.raises(SystemExit, match=f"SWEEP: {key} does not change what is learned"):
        resolved(RECIPE, f"{key}=a,b", tmp_path, [])


@pytest.mark.parametrize(
    "sweep, said",
    [
        ("betta=0.1,0.2", "SWEEP: unknown argument 'betta': did you mean: beta"),
        ("beta=0.1,abc", "SWEEP: argument --beta: invalid float value: 'abc'"),
        ("beta=0.1,0.2,0.1", "SWEEP: beta=0.1,0.2,0.1: a value stands twice"),
        ("beta=0.1 beta=0.2", "SWEEP: beta stands twice"),
    ],
)
def test_a_wrong_sweep_is_blamed_on_itself(on_cpu, tmp_path, sweep, said):
    with pytest.raises(SystemExit, match=f"^{re.escape(said)}"):
        resolved(RECIPE, sweep, tmp_path, [])


def test_gpus_are_dealt_to_runs(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert places("", "") == ["0", "1", "2", "3", "4"]
    assert places("zero2", "2") == ["0,1", "2,3"]
    assert places("cpu", "2") == [None]
    with pytest.raises(SystemExit, match="GPUS=6 for each run, but this machine has 5"):
        places("", "6")
    with pytest.raises(SystemExit, match="GPUS=0 is not a number"):
        places("", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,2,5,1")
    assert places("", "2") == ["7,3", "2,5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert places("", "2") == [None]


def test_a_wandb_sweep_has_values_of_their_kind_and_all_that_runs_share(on_cpu, tmp_path):
    given = "use_peft=true,false beta=1e-2,1 loss_type=hinge,sigmoid"
    runs = resolved(RECIPE, given, tmp_path, ["--max_steps=2"])
    file = sweep_file(
        runs, ["--accelerate_config", "ddp", "--gpus", "2"], ["--max_steps=2"], tmp_path
    )
    about = yaml.safe_load(file.read_text())
    assert about["parameters"] == {
        "use_peft": {"values": [True, False]},
        "beta": {"values": [0.01, 1.0]},
        "loss_type": {"values": ["hinge", "sigmoid"]},
    }
    command = " ".join(about["command"])
    assert "--accelerate_config ddp --gpus 2 " in command
    assert command.endswith("--sweep ${args_no_hyphens} -- --max_steps=2")
    # As W&B writes a point of the grid.
    point = [f"{key}={of['values'][0]}" for key, of in about["parameters"].items()]
    (run,) = resolved(RECIPE, " ".join(point), tmp_path, ["--max_steps=2"])
    assert run.name == runs[0].name


def test_a_wandb_sweep_may_search_between_the_values(on_cpu, tmp_path):
    given = "beta=1e-2,1 warmup_steps=0.0,0.1 data_seed=1,3 loss_type=hinge,sigmoid seed=7,9"
    runs = resolved(RECIPE, given, tmp_path, ["--max_steps=2"])
    about = yaml.safe_load(sweep_file(runs, [], [], tmp_path, "bayes").read_text())
    assert about["method"] == "bayes" and about["run_cap"] == len(runs) == 32
    assert about["metric"] == {"name": "eval/preference_accuracy", "goal": "maximize"}
    assert about["parameters"] == {
        "beta": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
        "warmup_steps": {"distribution": "uniform", "min": 0.0, "max": 0.1},
        "data_seed": {"distribution": "int_uniform", "min": 1, "max": 3},
        "loss_type": {"values": ["hinge", "sigmoid"]},
        "seed": {"values": [7, 9]},
    }
    point = "beta=0.1234 warmup_steps=0.05 data_seed=2 loss_type=hinge seed=7"
    assert len(resolved(RECIPE, point, tmp_path, ["--max_steps=2"])) == 1


def test_a_sweep_with_a_run_that_was_asked_to_leave_is_not_done(monkeypatch, tmp_path):
    """As by a signal to that run's launcher alone."""

    def left(runs, *given) -> bool:
        runs[0].state, runs[1].state = LEFT, DONE
        return False

    monkeypatch.setattr(sweeps, "carry_out", left)
    given = ["--recipe", RECIPE, "--sweep", "beta=0.1,0.3", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *given])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    assert ended.value.code == EXIT_CODE


def test_how_runs_are_launched_is_checked_though_all_have_finished(on_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("dpo.runs.launch.gpus_here", lambda: 4)
    monkeypatch.setattr(sweeps, "finished", lambda run: True)
    for how, words in (
        (
            ["--accelerate_config=single_gpu", "--gpus=2"],
            "CONFIG=single_gpu runs one process: for GPUS=2",
        ),
        (["--accelerate_config=cpu", "--gpus=2"], "CONFIG=cpu runs one process: for GPUS=2"),
        (["--accelerate_config=auto", "--gpus=3"], "3 processes cannot share a global batch of 8"),
    ):
        where = ["sweep.py", f"--recipe={RECIPE}", f"--output={tmp_path}"]
        monkeypatch.setattr(sys, "argv", [*where, "--sweep=beta=0.1", *how, "--", "--bf16=false"])
        with pytest.raises(SystemExit, match=words):
            sweep.main()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_the_grid():
    given = "beta=0.05,0.1 learning_rate=1e-6,5e-7 loss_type=sigmoid"
    assert points(given) == [
        {"beta": beta, "learning_rate": rate, "loss_type": "sigmoid"}
        for beta in ("0.05", "0.1")
        for rate in ("1e-6", "5e-7")
    ]


@pytest.mark.parametrize(
    ("sweep", "says_so"),
    [
        ("", "nothing to sweep"),
        ("beta", "'beta' is not key=value"),
        ("beta=0.1,,0.3", "is not key=value,value"),
        ("beta=0.1 beta=0.3", "beta stands twice"),
        ("output_dir=a,b", "output_dir does not change what is learned"),
        ("bet=0.1", "unknown argument 'bet'"),
        ("beta=high", "invalid float value: 'high'"),
        ("beta=0.1,-1", "SWEEP: beta is -1.0: give a number above 0"),
        ("loss_type=sigmoid,simo", "SWEEP: loss_type is ['simo']"),
    ],
)
def test_a_point_that_is_none_is_refused_before_any_starts(sweep, says_so, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from dpo.runs.sweeps import resolved

    with pytest.raises(SystemExit, match=re.escape(says_so)):
        resolved(RECIPE, sweep, tmp_path / "sweep", [])
    assert not (tmp_path / "sweep").exists()


def test_what_another_process_trains_is_not_begun(on_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "started", None)  # nothing may be
    (run,) = resolved(RECIPE, "beta=0.3", tmp_path, [])
    run.folder.mkdir()
    with (run.folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Refusal, match=f"{run.folder}: another process trains it"):
            sweeps.carry_out([run], [], [None], [])
