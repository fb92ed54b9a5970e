"""make learn: each experiment whole, in small, and that a second one trains nothing anew."""

import importlib
import json
import shlex
from pathlib import Path

import pytest

from dpo.learn import improbable, noise
from dpo.runs import output_folder
from support.commands import make
from support.launched import made

RUNS = {"length": 6, "improbable": 6}  # two seeds of three losses; two ways and four runs


def learned(what: str, folder: Path, *flags: str, through=made) -> tuple[dict, str]:
    """What an experiment writes, and all that it prints."""
    docs = folder / "docs"
    words = ["--small", f"--output={folder / 'out'}", f"--docs={docs}", "--", *flags]
    result = through("learn", f"WHAT={what}", f"ARGS={shlex.join(words)}")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    found = json.loads((docs / f"{what}.json").read_text())
    assert importlib.import_module(f"dpo.learn.{what}").table(found) in result.stdout
    assert f"Written: {docs}/{what}.json, {docs}/{what}.png" in result.stdout
    return found, result.stdout + result.stderr


def reports(folder: Path) -> dict[Path, int]:
    """When the report of each run was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob(output_folder.REPORT)}


@pytest.fixture
def on_tiny(tiny_model, tmp_path) -> list[str]:
    return [f"--model_name_or_path={tiny_model}", f"--reference_cache={tmp_path / 'cache'}"]


def test_wrong_labels_through_make(on_tiny, tmp_path):
    """Six runs of two steps."""
    found, _ = learned("noise", tmp_path, *on_tiny, through=make)
    assert found["labels"]["30%"]["swapped"] == 150 and found["settings"]["prompts_asked"] == 4
    assert found["settings"]["held_out_pairs"] == 8
    before, out = reports(tmp_path), tmp_path / "out"
    assert len(before) == len(found["runs"]) == 6
    assert not [*out.rglob("*.safetensors")]  # removed once they are measured
    (folder,) = out.glob("noise-small-*")  # and the flags
    of_flipped = folder / "swapped-30/loss_type=robust,seed=2" / output_folder.REPORT
    mine = noise.runs.numbers(json.loads(of_flipped.read_text()))
    (run,) = [r for r in found["runs"] if (r["rate"], r["loss"], r["seed"]) == (0.3, "robust", 2)]
    assert {name: run[name] for name in mine} == mine
    picture = tmp_path / "docs/noise.png"
    picture.unlink()
    again, printed = learned("noise", tmp_path, *on_tiny)
    assert "started" not in printed and reports(tmp_path) == before
    assert again["runs"] == found["runs"] and picture.is_file()


def test_the_closed_form_through_make(tmp_path):
    """Four runs of a model of eight words."""
    found, printed = learned("closed_form", tmp_path)
    assert "train_runtime" not in printed
    moved = [run["kl"] for run in found["runs"]]
    assert len(moved) == 4 and min(moved) > 0.001  # it trained
    log = tmp_path / "out/closed_form-small/log"
    before = log.stat().st_size
    again, _ = learned("closed_form", tmp_path)
    assert again["runs"] == found["runs"] and log.stat().st_size == before
    other, _ = learned("closed_form", tmp_path, "--beta=8")
    assert [point["beta"] for point in other["points"]] == [8]
    for run, near in zip(found["runs"][1::2], other["runs"], strict=True):
        assert near["seed"] == run["seed"] and near["before"] < run["before"]


def test_the_gradient_through_make(on_tiny, tmp_path):
    """One run of two steps, four pairs at each."""
    flags = [*on_tiny, "--learning_rate=0.01"]
    found, _ = learned("gradient", tmp_path, *flags)
    assert [p["step"] for p in found["pairs"]] == [0] * 4 + [1] * 4 + [2] * 4
    weights = [p["weight"] for p in found["pairs"]]
    assert weights[:4] == [0.5] * 4 and max(abs(w - 0.5) for w in weights[8:]) > 0.01
    assert found["off"] < 1e-4
    out = tmp_path / "out"
    assert not [*out.rglob("*.safetensors"), *out.rglob("checkpoint-*")]
    again, printed = learned("gradient", tmp_path, *flags)
    assert "started" not in printed and again["pairs"] == found["pairs"]


@pytest.mark.parametrize("name", RUNS)
def test_policies_measured_along_their_runs_through_make(name, launched, on_tiny, tmp_path):
    """A few runs of two or four steps, and again."""
    found, _ = learned(name, tmp_path, *on_tiny, through=launched.made)
    before = reports(tmp_path)
    assert len(before) == RUNS[name]
    assert not [*(tmp_path / "out").rglob("*.safetensors")]  # removed once they are measured
    again, printed = learned(name, tmp_path, *on_tiny)
    assert "started" not in printed and "Answers of" not in printed
    assert reports(tmp_path) == before
    assert all(again[part] == found[part] for part in found if part != "made")
    assert again["made"]["minutes"] == found["made"]["minutes"] > 0
    if name == "improbable":
        steps = [(point["pairs"], point["way"], point["step"]) for point in found["points"]]
        mine, ways = (improbable.SIGMOID, improbable.BESIDE), [*found["before"]]
        ways = [(name, way) for name in ways for way in mine] + [("in capitals", improbable.BEFORE)]
        assert steps == [(*way, step) for way in ways for step in (2, 4)]
        plain, capitals = found["before"].values()
        assert plain["chosen"] != capitals["chosen"] and len(found["answers"]) == 4
    else:
        assert [run["seed"] for run in found["runs"]] == [1, 1, 1, 2, 2, 2]
        assert found["settings"]["prompts_asked"] == 4
