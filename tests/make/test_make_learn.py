"""make learn: each experiment whole, in small, and that a second one trains nothing anew."""

import json
import shlex

from dpo.learn import closed_form, gradient, noise
from dpo.runs import output_folder
from support.commands import make
from support.launched import made


def test_wrong_labels_through_make(tiny_model, tmp_path):
    """Six runs of two steps."""
    flags = [f"--model_name_or_path={tiny_model}", f"--reference_cache={tmp_path / 'cache'}"]
    docs, out = tmp_path / "docs", tmp_path / "out"
    words = ["--small", f"--output={out}", f"--docs={docs}", "--", *flags]
    given = ("WHAT=noise", f"ARGS={shlex.join(words)}")
    result = make("learn", *given)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    found = json.loads((docs / "noise.json").read_text())
    assert noise.table(found) in result.stdout
    assert f"Written: {docs}/noise.json, {docs}/noise.png" in result.stdout
    assert found["labels"]["30%"]["swapped"] == 150 and found["settings"]["prompts_asked"] == 4
    assert found["settings"]["held_out_pairs"] == 8
    reports = {path: path.stat().st_mtime_ns for path in out.rglob(output_folder.REPORT)}
    assert len(reports) == len(found["runs"]) == 6
    assert not [*out.rglob("*.safetensors")]  # removed once they are measured
    of_flipped = out / "noise-small/swapped-30/loss_type=robust,seed=2" / output_folder.REPORT
    mine = noise.runs.numbers(json.loads(of_flipped.read_text()))
    (run,) = [r for r in found["runs"] if (r["rate"], r["loss"], r["seed"]) == (0.3, "robust", 2)]
    assert {name: run[name] for name in mine} == mine
    (docs / "noise.png").unlink()
    again = made("learn", *given)
    assert again.returncode == 0 and "started" not in again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob(output_folder.REPORT)} == reports
    assert json.loads((docs / "noise.json").read_text())["runs"] == found["runs"]
    assert (docs / "noise.png").is_file()


def test_the_closed_form_through_make(tmp_path):
    """Four runs of a model of eight words."""
    docs, out = tmp_path / "docs", tmp_path / "out"
    words = ["--small", f"--output={out}", f"--docs={docs}"]
    given = ("WHAT=closed_form", f"ARGS={shlex.join(words)}")
    result = make("learn", *given)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    found = json.loads((docs / "closed_form.json").read_text())
    assert closed_form.table(found) in result.stdout and "train_runtime" not in result.stdout
    assert f"Written: {docs}/closed_form.json, {docs}/closed_form.png" in result.stdout
    moved = [run["kl"] for run in found["runs"]]
    assert len(moved) == 4 and min(moved) > 0.001  # it trained
    log = out / "closed_form-small/log"
    before = log.stat().st_size
    again = made("learn", *given)
    assert again.returncode == 0 and log.stat().st_size == before
    assert json.loads((docs / "closed_form.json").read_text())["runs"] == found["runs"]


def test_the_gradient_through_make(tiny_model, tmp_path):
    """One run of two steps, four pairs at each."""
    flags = [f"--model_name_or_path={tiny_model}", f"--reference_cache={tmp_path / 'cache'}"]
    flags += ["--learning_rate=0.01"]
    docs, out = tmp_path / "docs", tmp_path / "out"
    words = ["--small", f"--output={out}", f"--docs={docs}", "--", *flags]
    given = ("WHAT=gradient", f"ARGS={shlex.join(words)}")
    result = make("learn", *given)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    found = json.loads((docs / "gradient.json").read_text())
    assert gradient.table(found) in result.stdout
    assert [p["step"] for p in found["pairs"]] == [0] * 4 + [1] * 4 + [2] * 4
    weights = [p["weight"] for p in found["pairs"]]
    assert weights[:4] == [0.5] * 4 and max(abs(w - 0.5) for w in weights[8:]) > 0.01
    assert found["off"] < 1e-4
    assert not [*out.rglob("*.safetensors"), *out.rglob("checkpoint-*")]
    again = made("learn", *given)
    assert again.returncode == 0 and "started" not in again.stdout + again.stderr
    assert json.loads((docs / "gradient.json").read_text())["pairs"] == found["pairs"]
