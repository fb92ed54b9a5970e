"""Whole runs with a reference that is not what their policy starts from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dpo.recipe.parse import parse
from support.browser import PHONE, fits, opened
from support.commands import run_flags
from support.launched import made
from support.models import other_model


@pytest.fixture(scope="module")
def rounds(launched, tiny_model, tiny_data, tmp_path_factory):
    """A run, and one that goes on from its policy with the first model as its reference."""
    home = tmp_path_factory.mktemp("rounds")
    more = ["--report_to=none", "--bf16=false"]
    first = [*run_flags(tiny_model, tiny_data, home / "first"), *more]
    second = run_flags(home / "first", tiny_data, home / "second")
    second += [*more, f"--ref_model_name_or_path={tiny_model}"]
    said = []
    for flags in (first, second):
        result = launched(*flags)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        said.append(result.stdout)
    report = json.loads((home / "second/report.json").read_text())
    return SimpleNamespace(home=home, flags=second, said=said, report=report)


def test_its_report_says_what_it_started_from_and_what_it_is_held_against(rounds, tiny_model):
    first, second = f"{rounds.home}/first", f"{rounds.home}/second"
    report = rounds.report
    assert (report["model"], report["reference"]) == (first, str(tiny_model))
    assert report["against"] == report["answers"]["kl"]["from"] == str(tiny_model)
    says = f"The policy started from {first}; its reference is {tiny_model}."
    assert says in rounds.said[1] and "its reference is" not in rounds.said[0]
    line = f"{tiny_model}, not the policy's start: no loss begins at its constant"
    assert f"reference  {line}" in rounds.said[1] and line not in rounds.said[0]
    for folder, sides in ((first, "before and after"), (second, "reference and policy")):
        with opened(f"file://{folder}/report.html", PHONE) as page:
            assert page.errors == [] and fits(page)
            assert page.get_by_text(f"The same prompts, {sides}").is_visible()
            assert page.get_by_text("its reference is").count() == (folder == second)
            assert page.get_by_text("before", exact=True).count() == 0 or folder == first
    assert json.loads((rounds.home / "first/report.json").read_text())["reference"] is None


def test_its_numbers_are_from_the_reference(rounds, tiny_model):
    """Those of the report by hand, and by make evaluate; what the first round has brought is in
    them."""
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu", *rounds.flags])
    assert recipe.reference == (str(tiny_model), None)
    entries = json.loads((rounds.home / "second/held_out.json").read_text())
    beta = recipe.training.beta
    policy, first = np.array(entries["policy"]), np.array(entries["reference"])
    found = beta * ((policy - first)[0] - (policy - first)[1])
    assert rounds.report["pairs"]["margins"] == pytest.approx(found.tolist(), abs=1e-3)
    before = json.loads((rounds.home / "first/held_out.json").read_text())
    assert np.array(before["reference"]) == pytest.approx(first, abs=1e-3)
    assert np.abs(np.array(before["policy"]) - policy).max() > 0.01
    report = json.loads((rounds.home / "first/report.json").read_text())
    nats = [each["answers"]["kl"]["nats_per_sequence"]["mean"] for each in (report, rounds.report)]
    assert 0 < nats[0] < nats[1]

    result = made("evaluate", f"RUN={rounds.home}/second", "ARGS=--max_new_tokens=12 --limit=6")
    assert result.returncode == 0, result.stderr[-3000:]
    path = rounds.home / "second/evaluations/reference/evaluation.json"
    evaluated = json.loads(path.read_text())
    assert evaluated["against"] == evaluated["answers"]["kl"]["from"] == str(tiny_model)
    for key in ("accuracy", "margin"):
        mean = rounds.report["pairs"][key]["mean"]
        assert evaluated["pairs"][key]["mean"] == pytest.approx(mean, abs=1e-3)


def test_a_run_is_told_apart_by_it(rounds, launched, tiny_model, tmp_path):
    other = other_model(tiny_model, tmp_path / "other")
    result = launched(*rounds.flags, f"--ref_model_name_or_path={other}")
    assert result.returncode == 1
    assert "holds a run with other settings: ref_model_name_or_path" in result.stderr
    again = tmp_path / "again"
    result = launched(*rounds.flags, f"--ref_model_name_or_path={other}", f"--output_dir={again}")
    assert result.returncode == 0, result.stderr[-3000:]
    runs = f"RUNS={rounds.home}/second {again}"
    result = made("compare", runs, f"OUTPUT={tmp_path / 'compared'}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ref_model_name_or_path" in result.stdout
