"""Several processes with a reference that is not what the policy starts from."""

import functools

import pytest
from filelock import FileLock

from support.models import other_model
from support.several import assert_learned_alike, assert_scored_alike, losses_of

PLAIN = ("--share_prefix=false", "--precompute_ref_log_probs=false")
WAYS = [
    ("ddp", "full", "cached"),
    ("zero2", "full", "cached"),
    ("zero3", "full", "cached"),
    ("zero3", "full", "live"),
    ("fsdp2", "full", "cached"),
    ("fsdp2", "full", "live"),
    ("fsdp2", "lora", "cached"),
    ("zero3", "lora", "cached"),
]


@pytest.fixture(scope="module")
def one(learn, launched, tiny_model):
    """The reference, and the folder of one process's run with it, by what is trained: stock TRL's
    way, nothing shared and the reference live."""
    home = launched.kept / "own-reference"
    home.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def one(trained: str):
        folder = home / trained
        with FileLock(home / f"{trained}.lock"):
            if not (folder / "run/report.json").exists():
                of = other_model(tiny_model, folder / "reference")
                learn(folder / "run", trained, "cpu", 1, f"--ref_model_name_or_path={of}", *PLAIN)
        return folder / "reference", folder / "run"

    return one


@pytest.mark.parametrize(("config", "trained", "how"), WAYS)
def test_two_processes_learn_what_one_learns(config, trained, how, one, learn, tmp_path):
    (of, alone), folder = one(trained), tmp_path / "run"
    more = [f"--ref_model_name_or_path={of}", f"--precompute_ref_log_probs={how == 'cached'}"]
    said = learn(folder, trained, config, 2, *more)
    assert f"reference  {of}, not the policy's start" in said and "sharing  on" in said
    assert said.count("scored, and kept in") == (2 if how == "cached" else 0)
    assert abs(losses_of(folder)[0] - 0.6931) > 0.001  # it starts elsewhere
    assert_learned_alike(folder, alone)
    assert_scored_alike(folder, alone)
