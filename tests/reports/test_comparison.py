"""Runs beside each other: what differs, by how much, and what is within noise."""

import fcntl
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from dpo.core import stats
from dpo.reports import results
from dpo.reports.comparison import collect, export, page, samples, table
from dpo.reports.comparison import row as row_
from dpo.reports.comparison.row import Row, Units
from dpo.reports.comparison.terminal import show
from dpo.runs import output_folder
from support.browser import DESKTOP, PHONE, fits, opened
from support.compared import EVIL, a_run, evaluated


def row(runs, name) -> Row:
    return next(row for row in table.table(runs) if row.name == name)


def test_reports_of_either_form_say_the_same(tmp_path):
    """`a_run` writes the form of the time before there was a `format`."""
    given = [a_run(tmp_path / name, [1, -1], [0.1, 0.2], beta=at) for at, name in enumerate("ab")]

    def said() -> list:
        runs = collect.collect(given)
        rows = table.table(runs)
        return [(row.name, row.values, row.between, row.gained) for row in rows]

    old = said()
    for folder in given:
        path = folder / "report.json"
        found = results.upgraded(json.loads(path.read_text())) | {"format": 2}
        path.write_text(json.dumps(found))
    assert said() == old and {"held-out accuracy", "true reward"} <= {row[0] for row in old}


def test_only_what_differs_is_shown_and_names_the_runs(tmp_path):
    given = [
        a_run(tmp_path / "a", [1], logging_steps=1, beta=0.1, max_steps=4, loss_type=["sigmoid"]),
        a_run(tmp_path / "b", [1], logging_steps=2.0, beta=0.3, max_steps=4),
        a_run(tmp_path / "c", [1], logging_steps=2, max_steps=4, loss_type=["ipo", "sft"]),
    ]
    runs = collect.collect(given)
    assert [run.name for run in runs] == [
        *("beta=0.1 loss_type=sigmoid", "beta=0.3 loss_type=sigmoid"),
        "beta=0.1 loss_type=ipo+sft",  # its β is the default, as it is for TRL
    ]
    # What decides what is learned comes first.
    assert list(runs[0].differs) == ["beta", "loss_type", "logging_steps"]
    assert [run.differs["logging_steps"] for run in runs] == ["1", "2", "2"]
    assert collect.surroundings(runs) == {}


def test_a_default_is_that_of_a_run(tmp_path):
    """Not only TRL's: a run scores its reference beforehand unless its recipe says otherwise."""
    given = [a_run(tmp_path / "a", [1], beta=0.1), a_run(tmp_path / "b", [1])]
    assert collect.collect(given)[0].differs == {}
    given = [a_run(tmp_path / "c", [1], precompute_ref_log_probs=False), given[1]]
    first, second = collect.collect(given)
    assert first.differs == {"precompute_ref_log_probs": "False"}
    assert second.differs == {"precompute_ref_log_probs": "True"}


def test_runs_that_state_the_same_are_called_by_their_folders(tmp_path):
    runs = collect.collect([a_run(tmp_path / name, [1], beta=0.1) for name in "ab"])
    assert [run.name for run in runs] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_other_data_or_software_is_a_warning(tmp_path):
    given = [a_run(tmp_path / name, [1], beta=at) for at, name in enumerate("abc")]
    report = json.loads((given[1] / "report.json").read_text())
    report["versions"]["trl"] = "2"
    report["data"]["rows"]["train"] = 5
    (given[1] / "report.json").write_text(json.dumps(report))
    runs = collect.collect(given)
    assert collect.surroundings(runs) == {"trl": ["1", "2", "1"], "rows, train": ["4", "5", "4"]}
    assert collect.warnings(runs)[0] == "trl: 2 (beta=1); 1 (the others)"
    shown = page.page(runs, table.table(runs), "x")
    assert "Not the settings alone: trl: 2 (beta=1); 1 (the others)" in shown


def test_a_real_difference_is_told_from_noise(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.normal(0.2, 1, size=400)
    noise = first + rng.normal(0, 0.3, size=400)  # other margins, no better
    better = first + 0.5  # a quarter and more of the wrong ones come right
    rewards = rng.normal(0, 1, size=400)
    given = [
        a_run(tmp_path / "a", first, rewards, beta=1),
        a_run(tmp_path / "b", noise, rewards + rng.normal(0.15, 0.8, 400), beta=2),
        a_run(tmp_path / "c", better, rewards + 0.2, beta=3),
    ]
    runs = collect.collect(given)
    accuracy, reward = row(runs, "held-out accuracy"), row(runs, "true reward")
    right = [(values > 0).mean() for values in (first, noise, better)]
    none, noisy, real = accuracy.differences()
    assert none is None
    assert noisy.mean == pytest.approx(right[1] - right[0])
    assert real.mean == pytest.approx(right[2] - right[0])
    assert row_.against(noisy).endswith("within noise")
    assert "noise" not in row_.against(real)
    # Every prompt gained the same: the pairing leaves no noise, where two means would drown in it.
    assert reward.differences()[2].low == pytest.approx(0.2, abs=1e-6)
    assert accuracy.best() == 2 and reward.best() is None  # b's rewards may be as high as c's
    found = row_.verdicts(runs, table.table(runs))
    assert found["held-out accuracy"].startswith("beta=3 is best, beyond noise")
    assert found["true reward"] == (
        "beta=3 is highest, within noise of beta=2; better than the reference, beyond noise: none"
    )
    two = row_.verdicts(runs[:2], table.table(runs[:2]))
    assert two["held-out accuracy"].startswith("all within noise of the highest")


def test_runs_are_held_against_each_other_prompt_by_prompt(tmp_path):
    """Four times the same forty pairs know no more than forty; a report that does not say which
    pairs are of one prompt is of the same ones."""
    rng = np.random.default_rng(3)
    few = rng.normal(0.2, 1, size=(2, 40))
    kinds = {"few": (1, True), "many": (4, True), "as pairs": (4, False)}
    width = {}
    for name, (times, numbered) in kinds.items():
        given = [
            a_run(tmp_path / name / str(at), np.tile(margins, times), beta=at)
            for at, margins in enumerate(few)
        ]
        if numbered:
            report = json.loads((given[1] / "report.json").read_text())
            report["prompt_numbers"] = [*range(40)] * times
            (given[1] / "report.json").write_text(json.dumps(report))
        difference = row(collect.collect(given), "held-out accuracy").differences()[1]
        width[name] = difference.high - difference.low
    assert width["many"] == pytest.approx(width["few"])
    assert width["as pairs"] < 0.6 * width["few"]


def test_the_best_is_better_than_all_others_and_not_than_the_first_alone():
    rng = np.random.default_rng(1)
    base = rng.normal(size=300)
    near = [base, base + 1, base + 1 + rng.normal(0, 0.5, size=300)]
    assert Row("x", [], units=[Units(0, values) for values in near]).best() is None
    assert (
        Row("x", [], units=[Units(0, values) for values in (base, base + 1, base - 1)]).best() == 1
    )


def test_as_few_runs_as_chance_allows_differ_beyond_noise():
    """Two runs that are equally good: of 200 such pairs about one in twenty is called different."""
    rng, beyond = np.random.default_rng(2), 0
    for _ in range(200):
        right = (rng.normal(size=(2, 150)) + rng.normal(size=150) > -0.7).astype(float)
        difference = stats.paired(right, resamples=1000)[1][0]
        beyond += not row_.within_noise(difference)
    assert 3 <= beyond <= 20


def test_other_pairs_are_not_paired(tmp_path):
    """Of another number, or as many others, as another seed holds them out."""
    given = [
        *(a_run(tmp_path / "a", [1, 1], beta=1), a_run(tmp_path / "b", [1, 1, -1], beta=2)),
        a_run(tmp_path / "c", [1, 1], digest="others", beta=3),
    ]
    runs = collect.collect(given)
    accuracy = row(runs, "held-out accuracy")
    assert accuracy.differences() == [] and accuracy.best() is None
    found = row_.verdicts(runs, [accuracy])["held-out accuracy"]
    assert "not measured on the same pairs" in found
    assert collect.surroundings(runs)["held-out pairs"] == ["d", "d", "others"]


def test_win_rates_are_paired_over_the_prompts_that_were_judged(tmp_path):
    given = [a_run(tmp_path / name, [1], beta=at) for at, name in enumerate("abcd")]
    won = np.tile([1.0, 0.0], 50)
    evaluated(given[0], won)
    evaluated(given[1], np.where(np.arange(100) % 4 == 1, 1.0, won))  # 25 lost ones are won
    evaluated(given[2], np.full(100, 1.0), against="another")
    left_out = won.copy()
    left_out[:2] = np.nan
    runs = collect.collect(given)
    rates = row(runs, "win rate, reference-vader")
    assert rates.values[0] == "0.500 (0.500 to 0.500)" and rates.values[3] == ""
    assert rates.differences()[1].mean == pytest.approx(0.25)
    assert rates.differences()[2:] == [None, None]  # against another model, and not evaluated
    found = row_.verdicts(runs, [rates])[rates.name]
    assert found.endswith("better than m or another, beyond noise: beta=1, beta=2")
    assert row(runs, "ifeval, acc, reference-vader").values[0] == "0.5000 ± 0.0196 (against 0.2500)"
    assert row(runs, "KL, nats a sequence, reference-vader").values[3] == ""
    shutil.rmtree(given[1] / "evaluations")
    evaluated(given[1], left_out, temperature=0)
    assert row(collect.collect(given), rates.name).differences() == []  # drawn otherwise
    shutil.rmtree(given[1] / "evaluations")
    evaluated(given[1], left_out)
    difference = row(collect.collect(given), rates.name).differences()[1]
    few = 1 - 98 / (98 + 1.96**2)  # the 98 that were judged in both, and say the same
    assert (difference.low, difference.high) == pytest.approx((-few, few))


def test_best_along_the_run_and_last(tmp_path):
    runs = collect.collect([a_run(tmp_path / "a", [1])])
    assert row(runs, "held-out loss, best").values == ["0.5000 at step 2"]
    assert row(runs, "held-out loss, last").values == ["0.6000 at step 4"]
    assert row(runs, "answer, tokens").values == ["25.0 (+5.0)"]
    assert row(runs, "alerts").values == ["none"]


def test_a_run_that_has_not_ended_is_shown_as_far_as_it_came(tmp_path):
    given = [a_run(tmp_path / name, [1], beta=at) for at, name in enumerate("abcde")]
    for folder in given[1:]:
        (folder / "report.json").unlink()
    (tmp_path / "b.log").write_text("out of memory")
    (given[2] / "metrics.jsonl").unlink()
    (given[3] / "trainer_state.json").write_text("{}")
    with (given[4] / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        runs = collect.collect(given)
        assert row(runs, "state").values == [
            *("finished", f"not finished, step 4: see {tmp_path}/b.log", "not finished, step 0"),
            *("trained, not evaluated", "going on, step 4"),
        ]
    assert row(runs, "held-out loss, best").values[1] == "0.5000 at step 2"
    assert row(runs, "minutes").values[:2] == ["1.5 (training 1.0)", "1.0 so far"]
    assert collect.surroundings(runs) == {}
    export.write(runs, tmp_path / "out", "five")
    # Nothing at all is there to draw.
    shown, *_ = export.write(collect.collect([given[2]]), tmp_path / "out", "none")
    assert "<img" not in shown.read_text()


def test_the_same_prompts_stand_beside_each_other(tmp_path):
    given = [a_run(tmp_path / name, [1], beta=at) for at, name in enumerate("ab")]
    for folder in given:
        evaluated(folder, [1.0, 0.0])
    report = json.loads((given[1] / "report.json").read_text())
    report["samples"] = [report["samples"][2], report["samples"][0] | {"before": "otherwise"}]
    (given[1] / "report.json").write_text(json.dumps(report))
    found = samples.samples(collect.collect(given))
    first, last = found["After training"]
    assert [name for name, *_ in first["references"]] == [
        f"what beta={at} is held against" for at in (0, 1)
    ]
    assert first["answers"] == [(f"beta={n}", f"{'ab'[n]} says {EVIL}", 0.2) for n in (0, 1)]
    assert last["references"] == [("reference", EVIL, 0.1)]
    (one, _) = found["make evaluate, reference-vader"]
    assert one["answers"] == [("beta=0", "a!", None), ("beta=1", "b!", None)]


def test_what_models_and_settings_say_is_text_on_a_phone_and_a_desktop(tmp_path, capsys):
    given = [
        a_run(tmp_path / f"a{n}", [1, -1], [0.1, 0.2], beta=n, note=f"$x_{n} {EVIL}" * (n == 3))
        for n in range(1, 13)
    ]
    runs = collect.collect(given)
    show(runs, f"12 {EVIL}")
    said = capsys.readouterr().out
    assert "\x1b" not in said and "[/bold]" in said  # rich would take it for a style
    shown, marked, *_ = export.write(runs, tmp_path / "out", f"12 {EVIL}")
    assert "<script>alert" not in shown.read_text() and "<script" not in marked.read_text()
    assert "\x1b" not in shown.read_text() + marked.read_text()
    cells = [line.replace("\\|", "").count("|") for line in marked.read_text().splitlines()]
    assert {count for count in cells if count} == {14}  # nothing that is said adds a column
    assert "| beta | 1 | 2 |" in marked.read_text()
    for width in (PHONE, DESKTOP):
        with opened(shown.as_uri(), width) as opened_page:
            assert opened_page.errors == []
            assert fits(opened_page)
            assert opened_page.get_by_text("a3 says <script>alert(1)</script>").count() == 3


def test_runs_of_a_recipe_are_found_its_sweeps_too(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "RUNS", tmp_path)
    for name in ("r", "r.20260101-120000", "r-sweep/beta=10", "r-sweep/beta=5", "others/x"):
        a_run(tmp_path / name, [1])
    other = a_run(tmp_path / "other", [1])
    (other / "recipe.yaml").write_text("recipe: other\n")
    assert output_folder.runs_of("r") == [
        tmp_path / name for name in ("r", "r-sweep/beta=5", "r-sweep/beta=10")
    ]
    with pytest.raises(SystemExit, match="no run of RECIPE=none; there are runs of: other, r"):
        output_folder.runs_of("none")
    (other / "recipe.yaml").write_text("- no settings")
    with pytest.raises(SystemExit, match=r"other/recipe\.yaml holds no settings of a run"):
        output_folder.runs_of("r")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": 1', "is damaged"),
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ('{"preference_accuracy": 3, "true_reward": 1}', "is damaged"),
        ('{"format": 99}', "is of a later version"),
    ],
)
def test_a_report_that_cannot_be_read_is_named(text, says, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(SystemExit, match=rf"^{tmp_path}/report\.json {says}"):
        results.read(tmp_path / "report.json")


def test_what_is_no_run_is_refused_with_those_there_are(tmp_path, monkeypatch):
    a_run(tmp_path / "r", [1])
    monkeypatch.setattr(output_folder, "RUNS", tmp_path)
    with pytest.raises(SystemExit, match=f"no run at {tmp_path}/none; the runs here: {tmp_path}/r"):
        output_folder.folders([f"{tmp_path}/r", f"{tmp_path}/none"])
    assert output_folder.folders([f"{tmp_path}/r", f"{tmp_path}/r/"]) == [tmp_path / "r"]


def test_a_wandb_report_needs_a_login_and_an_answer(monkeypatch):
    from dpo.reports import wandb_report

    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", "/nowhere")
    with pytest.raises(SystemExit, match="a W&B report needs a login: wandb login"):
        wandb_report.check()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match=re.escape("http://127.0.0.1:9 gave no answer")):
        wandb_report.check()


def test_a_wandb_report_holds_the_table_and_the_runs_curves(tmp_path, monkeypatch):
    """As it would be sent; the server is not asked."""
    from wandb_workspaces.reports.v2 import interface

    from dpo.reports import wandb_report

    monkeypatch.setattr(interface, "_get_api", lambda: SimpleNamespace(default_entity="me"))
    monkeypatch.setattr(
        interface, "execute_graphql", lambda *_, **__: {"project": {"internalId": "1"}}
    )

    given = [a_run(tmp_path / "a", [1], beta=1), a_run(tmp_path / "b", [1], beta=2)]
    (tmp_path / "a/wandb-run").write_text("0f0f")
    made = wandb_report.of(collect.collect(given), "two")
    sent = json.dumps(made._to_model().model_dump(mode="json", by_alias=True))
    assert "held-out accuracy" in sent and "eval/rewards/accuracies" in sent
    assert '"0f0f"' in sent and '"train/global_step"' in sent and '"Step"' not in sent
    (table,) = (block.text for block in made.blocks if hasattr(block, "text"))
    assert table.endswith("No curves of beta=2: W&B has no run of it.")
