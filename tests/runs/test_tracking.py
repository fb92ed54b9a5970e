"""W&B asks nothing: online with a key, offline without."""

import os
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest
from transformers.integrations import WandbCallback

from dpo.recipe.parse import parse
from dpo.runs import metrics, tracking
from dpo.runs.tracking import configure, names, server
from support.monitored import easy, trainer_on
from support.wandb_server import KEY, Fault

RECIPE = "smollm2-sentiment"


@pytest.fixture(autouse=True)
def environment_put_back() -> Iterator[None]:
    """`configure` sets the environment for good; here what it set goes when the test ends."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def all_patience(monkeypatch) -> None:
    """Each test is a run of its own."""
    monkeypatch.setattr(tracking, "patience", server.Patience())


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def decide(monkeypatch, tmp_path, report_to=("wandb",), **environment):
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name, value in {"NETRC": str(tmp_path / "netrc"), **environment}.items():
        monkeypatch.setenv(name, value)
    flags = ("--use_cpu", "--bf16=false", "--beta=0.3", f"--output_dir={tmp_path / 'run'}")
    recipe = parse(["--config", f"recipes/{RECIPE}.yaml", *flags])
    training = recipe.training
    training.report_to = list(report_to)
    line = configure(recipe, tmp_path / "run")
    return line, os.environ.get("WANDB_MODE"), os.environ.get("WANDB_NAME")


def test_without_a_key_it_runs_offline_and_says_how_to_send(monkeypatch, tmp_path):
    line, mode, name = decide(monkeypatch, tmp_path)
    assert mode == "offline" and name == f"{RECIPE} beta=0.3"
    assert line == "offline; after `wandb login`, send it with: make sync"


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_with_a_key_it_goes_to_the_project_and_group(monkeypatch, tmp_path, source, wandb_server):
    key = KEY
    (tmp_path / "netrc").write_text(
        f"machine {wandb_server.url.removeprefix('http://')}\n  login user\n  password {key}\n"
        if source == "netrc"
        else ""
    )
    (tmp_path / "netrc").chmod(0o600)
    environment = {"WANDB_API_KEY": key} if source == "environment" else {}
    environment["WANDB_BASE_URL"] = wandb_server.url
    line, mode, _ = decide(monkeypatch, tmp_path, **environment)
    assert mode is None
    assert line == f"project dpo-recipes, group {RECIPE}"
    assert os.environ["WANDB_PROJECT"] == "dpo-recipes"
    assert key not in line


def test_what_the_user_has_set_is_kept(monkeypatch, tmp_path, wandb_server):
    given = {"WANDB_PROJECT": "mine", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": wandb_server.url}
    line, _, _ = decide(monkeypatch, tmp_path, **given)
    assert line == f"project mine, group {RECIPE}"


def test_a_project_that_is_stated_is_taken(monkeypatch, tmp_path):
    recipe = parse(["--config", f"recipes/{RECIPE}.yaml", "--use_cpu", "--project=mine"])
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    configure(recipe, tmp_path / "run")
    assert os.environ["WANDB_PROJECT"] == "mine"


def test_a_recipe_that_does_not_report_is_left_alone(monkeypatch, tmp_path):
    assert decide(monkeypatch, tmp_path, report_to=()) == (None, None, None)


@pytest.mark.parametrize("where", ["closed", "silent"])
def test_with_a_key_and_no_network_it_is_offline_within_seconds(
    monkeypatch, tmp_path, where, silent
):
    url = silent if where == "silent" else "http://127.0.0.1:9"
    started = time.monotonic()
    line, mode, _ = decide(monkeypatch, tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL=url)
    assert time.monotonic() - started < server.REACHED + 3
    assert mode == "offline"
    assert line.startswith(f"offline, since {url} gave no answer in 5 s") and "make sync" in line


class Starts(WandbCallback):
    def setup(self, *args, **kwargs):
        pass


class Raises(Starts):
    def on_log(self, *args, **kwargs):
        raise ConnectionError("the server hung up\nand more")


class RefusesSetup(WandbCallback):
    def setup(self, *args, **kwargs):
        raise PermissionError("no such project")


class Hangs(Starts):
    def on_log(self, *args, **kwargs):
        time.sleep(600)


class HangsInSetup(WandbCallback):
    def setup(self, *args, **kwargs):
        time.sleep(600)


FAULTS = {
    Raises: "the server hung up",
    RefusesSetup: "no such project",
    Hangs: "no answer in 1 s",
    HangsInSetup: "no answer in 1 s",
}


@pytest.mark.parametrize("tracker", FAULTS)
def test_a_tracker_that_fails_is_off_and_the_run_goes_on(
    tracker, tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(server, "PATIENCE", 1)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trainer = trainer_on(tmp_path, tiny_model, easy(16, 0), easy(8, 1), "--max_steps=3")
    trainer.add_callback(tracker)
    tracking.bound(trainer)
    started = time.monotonic()
    trainer.train()
    assert trainer.state.global_step == 3 and time.monotonic() - started < 60
    lines = [line for line in capsys.readouterr().out.splitlines() if "off for the rest" in line]
    assert lines == [
        f"{tracker.__name__} is off for the rest of the run ({FAULTS[tracker]}): see metrics.jsonl"
    ]
    assert sum("loss" in line for line in metrics.read(tmp_path / "run")) == 3


def test_an_alert_and_an_end_that_hang_are_left_behind(monkeypatch, capsys):
    def hang(*_, **__):
        time.sleep(600)

    run = SimpleNamespace(summary={}, settings=SimpleNamespace(mode="offline"), url=None)
    stuck = SimpleNamespace(run=run, alert=hang, finish=hang)
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    monkeypatch.setitem(tracking.sys.modules, "wandb", stuck)
    tracking.alert("drift", "far")
    tracking.finish({"data": 1})
    said = "W&B did not take all (no answer in 0.2 s): send it afterwards with make sync"
    assert said in capsys.readouterr().out
    monkeypatch.setattr(tracking, "patience", server.Patience())

    def fail(exit_code: int):  # as W&B leaves it
        stuck.run = None
        raise RuntimeError("gone")

    stuck.finish = fail
    tracking.finish({})
    assert "W&B did not take all (gone)" in capsys.readouterr().out


def named(folder, *flags: str) -> str:
    given = ("--config", f"recipes/{RECIPE}.yaml", "--use_cpu", "--bf16=false", *flags)
    return names.of_run(parse([*given, f"--output_dir={folder}"]))


def test_a_name_has_what_a_sweep_varies_first_and_the_ends_of_paths(tmp_path):
    name = named(tmp_path / "beta=0.1,seed=7", "--beta=0.1", "--seed=7", "--dataset_name=/a/b/c")
    assert name == f"{RECIPE} beta=0.1 seed=7 dataset_name=c"


def test_long_names_are_cut_and_told_apart(tmp_path):
    long = [named(tmp_path, f"--dataset_name=/a/{'pairs' * 40}{n}") for n in (1, 2)]
    assert len({*long}) == 2 and all(len(name) <= 128 and RECIPE in name for name in long)
    assert names.fitted("short") == "short"


@pytest.mark.parametrize("given", ["a/b:c?d#e%f\\g", "x" * 300, "plain"])
def test_a_project_and_an_artifact_are_named_as_wandb_takes_them(given, monkeypatch, wandb_server):
    monkeypatch.setenv("WANDB_PROJECT", given)
    wandb_server.gql_UpsertBucket({"name": "1", "project": names.project()})
    report = {"artifactCollectionName": names.artifact(f"report-β {given}")}
    wandb_server.gql_CreateArtifact({"input": report | {"artifactTypeName": "report"}})
    assert given != "plain" or (names.project(), report["artifactCollectionName"]) == (
        "plain",
        "report---plain",
    )


def test_tags_are_ends_of_paths_in_64_characters_and_none_is_empty():
    assert names.tags(["a/b", "/", "", "c/b", "d" * 99]) == ["b", "d" * 64]


@pytest.mark.parametrize("variable", [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_what_is_disabled_is_said_to_be_off(monkeypatch, tmp_path, variable):
    line, mode, _ = decide(monkeypatch, tmp_path, **dict([variable]))
    assert line.startswith("off,") and mode == "disabled"


def test_the_users_name_wins_over_the_recipes(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_NAME", "mine")
    recipe = parse(["--config", f"recipes/{RECIPE}.yaml", "--use_cpu", "--run_name=theirs"])
    configure(recipe, tmp_path / "run")
    assert os.environ["WANDB_NAME"] == recipe.training.run_name == "mine"


@pytest.mark.parametrize("status", [401, 403, 500, 0])
def test_a_server_that_refuses_is_said_within_seconds(monkeypatch, tmp_path, wandb_server, status):
    wandb_server.fault = Fault(status)
    environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": wandb_server.url}
    started = time.monotonic()
    line, mode, _ = decide(monkeypatch, tmp_path, **environment)
    assert mode == "offline" and time.monotonic() - started < server.REACHED + 3
    why = {500: "answers 500", 0: "gave no answer"}.get(status, f"refuses the key ({status})")
    assert line.startswith(f"offline, since {wandb_server.url} {why}")


def test_a_run_that_begins_anew_is_another_in_wandb_and_one_that_goes_on_is_not(tmp_path):
    first = tracking.kept_id(tmp_path)
    assert tracking.kept_id(tmp_path) != first
    (tmp_path / "checkpoint-2").mkdir()
    assert tracking.kept_id(tmp_path) == tracking.kept_id(tmp_path)
