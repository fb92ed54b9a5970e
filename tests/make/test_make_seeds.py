"""make sweep over seeds: what varies with them, and what does not."""

import json
import shlex

import numpy as np

from support.browser import opened
from support.commands import make, run_flags


def test_seeds_are_trained_apart_measured_alike_and_compared_as_groups(
    launched, tiny_model, tiny_data, tmp_path
):
    folder = tmp_path / "sweep"
    flags = [*run_flags(tiny_model, tiny_data, tmp_path / "x"), "--test_split_size=0.4"]
    flags = [flag for flag in flags if "output_dir" not in flag]
    given = ("SWEEP=seed=1,2", f"OUTPUT={folder}", f"ARGS={shlex.join(flags)}")
    result = launched.made("sweep", *given)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    points = ["seed=1", "seed=2"]
    reports = [json.loads((folder / point / "report.json").read_text()) for point in points]
    # The same held-out pairs, prompts and answers of the reference; other weights.
    assert len({report["pairs"]["digest"] for report in reports}) == 1
    asked = [[row["prompt"] for row in report["samples"]] for report in reports]
    said = [report["judge"]["rewards"]["against"] for report in reports]
    assert asked[0] and all(each == asked[0] for each in asked)
    assert all(each == said[0] for each in said)
    drifts = [json.loads((folder / point / "drift.json").read_text()) for point in points]
    assert all(drift["prompts"] == drifts[0]["prompts"] for drift in drifts)
    assert all(drift["answers"] == drifts[0]["answers"] for drift in drifts)
    margins = [np.array(report["pairs"]["margins"]) for report in reports]
    assert not np.allclose(margins[0], margins[1])
    assert "all found in" in (folder / f"{points[1]}.log").read_text()  # the reference's scores

    found = json.loads((folder / "comparison.json").read_text())
    (group,) = found["groups"]
    assert (group["name"], group["seeds"]) == ("smollm2-sentiment", ["1", "2"])
    over = group["metrics"]["held-out margin"]
    assert np.isclose(over["mean"], np.mean([margins[0].mean(), margins[1].mean()]))
    assert "Over seeds" in result.stdout and "over 2 seeds" in result.stdout
    with opened((folder / "comparison.html").as_uri()) as page:
        assert page.errors == [] and page.locator("table[data-what=group] tbody tr").count() == 1
        assert page.locator(".curves canvas").count() == 14

    # One that is not finished is named, and in no mean.
    (folder / points[1] / "report.json").unlink()
    result = make(
        "compare", f"RUNS={' '.join(f'{folder}/{p}' for p in points)}", f"OUTPUT={tmp_path}"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "left out" in result.stdout
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["groups"][0]["left_out"] == ["seed=2 (trained, not evaluated)"]
    assert [*found["groups"][0]["metrics"]["held-out margin"]["by_seed"]] == ["1"]
