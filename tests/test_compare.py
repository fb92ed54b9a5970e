"""Runs beside each other: what differs, by how much, and what is within noise."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from browser import DESKTOP, PHONE, fits, opened, pictures
from conftest import make

from dpo import comparison, comparison_page

EVIL = "<script>alert(1)</script> | \x1b[31m"


def a_run(folder, margins, rewards=None, steps=(2, 4), **settings):
    """The folder of a finished run with these margins on held-out pairs, and rewards of answers."""
    folder.mkdir(parents=True)
    stated = {"recipe": "r", "model_name_or_path": "m", **settings, "output_dir": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stated))
    margins = np.array(margins)
    point = {f"rewards/{key}": 0.1 for key in ("margins", "accuracies", "chosen", "rejected")}
    lines = [
        {"step": step, "loss": 0.7 - step / 100, **point, "seconds": 1.0} for step in range(1, 5)
    ]
    lines += [
        {"step": step, "eval_loss": 0.6 - step / 100, "seconds": 1.0}
        | {f"eval_{key}": value for key, value in point.items()}
        for step in steps
    ]
    lines += [{"step": 4, "eval_drift_nats_per_token": 0.1, "eval_drift_tokens": 9.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    right = (margins > 0).mean()
    report = {
        "preference_accuracy": {"after": right, "low": right - 0.1, "high": right + 0.1},
        "margin": {"after": margins.mean(), "low": 0.0, "high": 1.0},
        "margins": margins.tolist(),
        "alerts": [],
        "versions": {"trl": "1"},
        "machine": "CPU",
        "data": {"name": "d", "rows": {"train": 4}, "set_aside": {"train": {}}},
        "seconds": {"train": 60.0, "evaluate": 30.0},
        "peak_memory_gb": 1.0,
        "samples": [
            {"prompt": f"{EVIL} {i}", "before": EVIL, "after": f"{folder.name} says {EVIL}"}
            | {"reward_before": 0.1, "reward_after": 0.2}
            for i in range(3)
        ],
    }
    if rewards is not None:
        report["answers"] = {"after": np.array(rewards)[:, None].tolist()}
        report["true_reward"] = {"after": float(np.mean(rewards)), "difference": 0.1}
        report["true_reward"] |= {"low": 0.0, "high": 0.2}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def row(runs, name):
    return next(row for row in comparison.rows(runs) if row.name == name)


def test_only_what_differs_is_shown_and_names_the_runs(tmp_path):
    given = [
        a_run(tmp_path / "a", [1], beta=0.1, max_steps=4, logging_steps=1),
        a_run(tmp_path / "b", [1], beta=0.3, max_steps=4, logging_steps=2),
        a_run(tmp_path / "c", [1], beta=0.2, max_steps=4, logging_steps=2),
    ]
    runs = comparison.collect(given)
    assert [run.name for run in runs] == ["beta=0.1", "beta=0.3", "beta=0.2"]
    assert runs[0].differs == {"beta": "0.1", "logging_steps": "1"}
    assert comparison.surroundings(runs) == {}
    # What a run leaves at its default is no difference from one that states it.
    given = [a_run(tmp_path / "d", [1], beta=0.1), a_run(tmp_path / "e", [1])]
    assert comparison.collect(given)[0].differs == {}


def test_other_data_or_software_is_a_warning(tmp_path):
    given = [a_run(tmp_path / name, [1], beta=0.1) for name in "ab"]
    report = json.loads((given[1] / "report.json").read_text())
    report["versions"]["trl"] = "2"
    (given[1] / "report.json").write_text(json.dumps(report))
    assert comparison.surroundings(comparison.collect(given)) == {"trl": ["1", "2"]}


def test_a_real_difference_is_told_from_noise(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.normal(0.2, 1, size=400)
    noise = first + rng.normal(0, 0.3, size=400)  # other margins, no better
    better = first + 0.5  # a quarter and more of the wrong ones come right
    rewards = rng.normal(0, 1, size=400)
    given = [
        a_run(tmp_path / "a", first, rewards, beta=1),
        a_run(tmp_path / "b", noise, rewards + rng.normal(0, 0.5, 400), beta=2),
        a_run(tmp_path / "c", better, rewards + 0.2, beta=3),
    ]
    runs = comparison.collect(given)
    accuracy, reward = row(runs, "held-out accuracy"), row(runs, "true reward")
    right = [(values > 0).mean() for values in (first, noise, better)]
    for at in (1, 2):
        assert accuracy.differences[at].mean == pytest.approx(right[at] - right[0])
    assert comparison_page.WITHIN_NOISE in comparison_page.against_first(accuracy.differences[1])
    assert comparison_page.WITHIN_NOISE not in comparison_page.against_first(
        accuracy.differences[2]
    )
    # Every prompt gained the same: the pairing leaves no noise, where two means would drown in it.
    assert reward.differences[2].low == pytest.approx(0.2, abs=1e-6)
    assert accuracy.best() == 2 and reward.best() == 2
    assert row(runs[:2], "held-out accuracy").best() is None


def test_other_pairs_are_not_paired(tmp_path):
    given = [a_run(tmp_path / "a", [1, 1]), a_run(tmp_path / "b", [1, 1, -1])]
    assert row(comparison.collect(given), "held-out accuracy").differences == [None, None]


def test_a_run_that_has_not_ended_is_shown_as_far_as_it_came(tmp_path):
    given = [a_run(tmp_path / "a", [1], beta=1), a_run(tmp_path / "b", [1], beta=2)]
    (given[1] / "report.json").unlink()
    shutil.copytree(given[0], tmp_path / "c")
    (tmp_path / "c/report.json").unlink()
    (tmp_path / "c/metrics.jsonl").unlink()
    runs = comparison.collect([*given, tmp_path / "c"])
    assert row(runs, "state").values == ["finished", "not finished, step 4", "not trained"]
    assert row(runs, "best held-out loss").values[1] == "0.5600 at step 4"
    comparison_page.write(runs, tmp_path / "out", "three")


def test_what_models_say_is_text_on_a_phone_and_a_desktop(tmp_path):
    given = [a_run(tmp_path / f"a{n}", [1, -1], [0.1, 0.2], beta=n) for n in range(1, 13)]
    page, table = comparison_page.write(comparison.collect(given), tmp_path / "out", "twelve")
    assert "<script" not in page.read_text()
    assert "| `beta` | 1 | 2 |" in table.read_text()
    for width in (PHONE, DESKTOP):
        with opened(page.as_uri(), width) as shown:
            assert shown.errors == []
            assert fits(shown)
            assert min(pictures(shown)) > 1000
            assert shown.get_by_text("a3 says <script>alert(1)</script>").count() == 3


@pytest.mark.sight
@pytest.mark.parametrize(
    ("given", "says_so"),
    [
        (("RUNS=outputs/none",), "RUNS: no run at outputs/none"),
        (("RECIPE=none",), "no run of RECIPE=none"),
    ],
)
def test_what_is_no_run_is_refused_with_those_there_are(given, says_so):
    result = make("compare", *given)
    assert result.returncode and says_so in result.stderr


@pytest.mark.sight
def test_a_wandb_report_needs_a_login():
    result = make("compare", "RUNS=a b", "ARGS=--wandb", WANDB_API_KEY=None, NETRC="/dev/null")
    assert "a W&B report needs a login: wandb login" in result.stderr


def test_a_wandb_report_holds_the_table_and_the_runs_curves(tmp_path, monkeypatch):
    """As it would be sent; the server is not asked."""
    from wandb_workspaces.reports.v2 import interface

    from dpo import wandb_page

    monkeypatch.setattr(interface, "_get_api", lambda: SimpleNamespace(default_entity="me"))
    monkeypatch.setattr(
        interface, "execute_graphql", lambda *_, **__: {"project": {"internalId": "1"}}
    )

    given = [a_run(tmp_path / "a", [1], beta=1), a_run(tmp_path / "b", [1], beta=2)]
    made = wandb_page.of(comparison.collect(given), "two", project="p", entity="me")
    sent = json.dumps(made._to_model().model_dump(mode="json", by_alias=True))
    assert "held-out accuracy" in sent and "eval/rewards/accuracies" in sent
    assert str(tmp_path / "a") in sent and "output_dir" in sent


@pytest.mark.sight
def test_real_runs_are_compared_through_make(swept, tmp_path):
    folder, _, _ = swept
    names = f"RUNS={folder}/beta=0.1 {folder}/beta=0.3"
    result = make("compare", names, f"ARGS=--output {tmp_path}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "beta=0.1" in result.stdout and f"Written: {tmp_path}/comparison.html" in result.stdout
    for width in (PHONE, DESKTOP):
        with opened((tmp_path / "comparison.html").as_uri(), width) as page:
            assert page.errors == []
            assert fits(page) and min(pictures(page)) > 1000
            assert page.get_by_text("against the first").count() == 2
