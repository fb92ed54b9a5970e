"""W&B asks nothing: online with a key, offline without."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest

from dpo.tracking import configure

RECIPE = "smollm2-sentiment"


@pytest.fixture(autouse=True)
def environment_put_back() -> Iterator[None]:
    """`configure` sets the environment for good; here what it set goes when the test ends."""
    with mock.patch.dict(os.environ):
        yield


def decide(monkeypatch, tmp_path, report_to=("wandb",), **environment):
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name, value in {"NETRC": str(tmp_path / "netrc"), **environment}.items():
        monkeypatch.setenv(name, value)
    training = SimpleNamespace(report_to=list(report_to), run_name=None)
    line = configure(SimpleNamespace(name=RECIPE, training=training), tmp_path / "run")
    return line, os.environ.get("WANDB_MODE"), training.run_name


def test_without_a_key_it_runs_offline_and_says_how_to_send(monkeypatch, tmp_path):
    line, mode, name = decide(monkeypatch, tmp_path)
    assert mode == "offline" and name == "run"
    assert line == (
        f"offline; after `wandb login`, send it with: wandb sync {tmp_path}/run/wandb/offline-run-*"
    )


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_with_a_key_it_goes_to_the_project_and_group(monkeypatch, tmp_path, source):
    key = "0123456789" * 4
    (tmp_path / "netrc").write_text(
        f"machine api.wandb.ai\n  login user\n  password {key}\n" if source == "netrc" else ""
    )
    (tmp_path / "netrc").chmod(0o600)
    environment = {"WANDB_API_KEY": key} if source == "environment" else {}
    line, mode, _ = decide(monkeypatch, tmp_path, **environment)
    assert mode is None
    assert line == f"project dpo-recipes, group {RECIPE}"
    assert os.environ["WANDB_PROJECT"] == "dpo-recipes"
    assert key not in line


def test_what_the_user_has_set_is_kept(monkeypatch, tmp_path):
    line, _, _ = decide(monkeypatch, tmp_path, WANDB_PROJECT="mine", WANDB_API_KEY="0" * 40)
    assert line == f"project mine, group {RECIPE}"


def test_a_recipe_that_does_not_report_is_left_alone(monkeypatch, tmp_path):
    assert decide(monkeypatch, tmp_path, report_to=()) == (None, None, None)
