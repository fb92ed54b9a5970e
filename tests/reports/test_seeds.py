"""Runs of several seeds as one: which are grouped, what they come to, and which are left out."""

import json

import numpy as np
import pytest

from dpo.core.stats import t_interval
from dpo.reports.comparison import collect, export, seeds, table, terminal
from dpo.reports.comparison.seeds import groups, over
from support.compared import a_run

PAIRS = np.random.default_rng(0).normal(0.2, 1, 60)
REWARDS = np.random.default_rng(1).random(60) - 0.5


def swept(folder, gains: dict[float, list[float]], seeds_of=(1, 2, 3), **settings):
    """The folders of runs, by β and seed, whose rewards are higher by these."""
    return [
        a_run(folder / f"{beta}-{seed}", PAIRS, REWARDS + gain, beta=beta, seed=seed, **settings)
        for beta, of in gains.items()
        for seed, gain in zip(seeds_of, of, strict=True)
    ]


def rewards(runs):
    return next(row for row in table.table(runs) if row.name == "true reward")


def test_runs_that_differ_in_their_seed_alone_are_one(tmp_path):
    given = swept(tmp_path, {0.1: [0, 0, 0], 0.3: [0, 0, 0]})
    given.append(a_run(tmp_path / "alone", PAIRS, REWARDS, beta=0.5, seed=1))
    # What says how a run is carried out makes no other group; the seed that is not stated is 42.
    given.append(a_run(tmp_path / "default", PAIRS, REWARDS, beta=0.3, logging_steps=7))
    found = groups(collect.collect(given))
    assert [(group.name, [*group.runs]) for group in found] == [
        ("beta=0.1", ["1", "2", "3"]),
        ("beta=0.3", ["1", "2", "3", "42"]),
    ]
    # Where nothing but the seed differs, the recipe names the group.
    (one,) = groups(collect.collect(given[:3]))
    assert (one.name, [*one.runs.values()]) == ("r", [0, 1, 2])
    assert groups(collect.collect(given[2:4])) == []  # seed 3 of one, seed 1 of the other


def test_a_mean_over_seeds_has_students_interval_and_both_kinds_of_noise_are_told(tmp_path):
    gains = [0.1, 0.2, 0.6]
    runs = collect.collect(swept(tmp_path, {0.1: gains}))
    (group,) = groups(runs)
    of, row = over(group, rewards(runs)), rewards(runs)
    expected = t_interval(np.array(gains) + REWARDS.mean())
    assert (of.mean, of.interval.low, of.interval.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert of.deviation == pytest.approx(np.std(gains, ddof=1))
    said = seeds.verdicts([group], [row])["true reward"]
    assert said.startswith(
        f"{expected.mean:.3f} ({expected.low:.3f} to {expected.high:.3f}) over 3"
    )
    assert "(seed=1)" in said and "(seed=3)" in said and "deviation is 0.265" in said
    # An accuracy has an interval of its own in each run: 0.1 to either side, as `a_run` says.
    accuracy = next(row for row in table.table(runs) if row.name == "held-out accuracy")
    assert over(group, accuracy).own == pytest.approx(0.1)
    assert "does not know of it, ± 0.100" in seeds.verdicts([group], [accuracy])[accuracy.name]


def test_groups_are_paired_by_seed_where_both_have_the_seeds(tmp_path):
    """Seeds differ by 0.5, and by β by 0.05 each time: paired, it is seen."""
    runs = collect.collect(swept(tmp_path, {0.1: [0, 0.5, 1], 0.3: [0.05, 0.54, 1.06]}))
    found = groups(runs)
    said = seeds.verdicts(found, [rewards(runs)])["true reward"]
    assert said == (
        "beta=0.3 is better than beta=0.1 by 0.050 (+0.025 to +0.075) over 3 seeds, paired by seed"
    )
    ((metric, a, b, by, how),) = seeds.differences(found, [rewards(runs)])
    assert (metric, a.name, b.name) == ("true reward", "beta=0.1", "beta=0.3")
    assert by.mean == pytest.approx(-0.05) and how == "over 3 seeds, paired by seed"
    # With a seed more the mean of one is higher: what both have is what counts.
    more = [run.folder for run in runs]
    more += swept(tmp_path / "more", {0.1: [9]}, seeds_of=(9,))
    both = collect.collect(more)
    assert seeds.verdicts(groups(both), [rewards(both)])["true reward"] == said
    # Of other seeds they cannot be paired, and 0.05 drowns in what seeds differ by.
    others = swept(tmp_path / "others", {0.3: [0.05, 0.54, 1.06]}, seeds_of=(4, 5, 6))
    runs = collect.collect([run.folder for run in runs[:3]] + others)
    said = seeds.verdicts(groups(runs), [rewards(runs)])["true reward"]
    assert "over 3 and 3 seeds, not paired: they are other ones: within the noise of seeds" in said


def test_a_seed_that_is_not_finished_is_left_out_by_name(tmp_path, capsys):
    given = swept(tmp_path, {0.1: [0, 0.5, 9], 0.3: [0, 0.1, 0.2]})
    (given[2] / "report.json").unlink()
    given.append(a_run(tmp_path / "again", PAIRS, REWARDS + 9, beta=0.3, seed=2))
    runs = collect.collect(given)
    first, second = groups(runs)
    assert [*first.runs] == ["1", "2"] and first.left_out == ["seed=3 (not finished, step 4)"]
    assert second.left_out == [f"seed=2 once more ({tmp_path / 'again'})"]
    assert over(first, rewards(runs)).mean == pytest.approx(REWARDS.mean() + 0.25)
    # The two that both have are what is paired.
    ((*_, how),) = seeds.differences([first, second], [rewards(runs)])
    assert how == "over 2 seeds, paired by seed"
    terminal.show_groups(runs, table.table(runs))
    said = capsys.readouterr().out
    assert "left out" in said and "seed=3 (not finished" in said and "seeds are few" in said
    # Where one alone is left, there is no interval.
    (given[1] / "report.json").unlink()
    runs = collect.collect(given)
    assert over(groups(runs)[0], rewards(runs)).interval is None
    assert "there are too few seeds" in seeds.verdicts(groups(runs), [rewards(runs)])["true reward"]


def test_a_band_stands_at_the_steps_that_all_seeds_have(tmp_path):
    given = swept(tmp_path, {0.1: [0, 0, 0]})
    for at, folder in enumerate(given):
        path = folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line | {"loss": 0.5 + at / 10} if "loss" in line else line for line in lines]
        lines = lines[1:] if at == 2 else lines  # the first step
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = collect.collect(given)
    (group,) = groups(runs)
    steps, values = seeds.along(group, runs, "loss", "train")
    assert steps == [2, 3, 4] and values.shape == (3, 3)
    assert values.mean(axis=0) == pytest.approx([0.6] * 3)
    steps, _ = seeds.along(group, runs, "eval_drift_tokens", "held_out")
    assert steps == [4]


def test_groups_stand_in_every_file(tmp_path):
    given = swept(tmp_path, {0.1: [0, 0.5, 1], 0.3: [0.05, 0.54, 1.06]})
    runs = collect.collect(given)
    written = {path.name: path.read_text() for path in export.write(runs, tmp_path / "out", "x")}
    found = json.loads(written["comparison.json"])
    assert [group["name"] for group in found["groups"]] == ["beta=0.1", "beta=0.3"]
    assert found["groups"][0]["metrics"]["true reward"]["by_seed"].keys() == {"1", "2", "3"}
    between = [of for of in found["group_differences"] if of["metric"] == "true reward"]
    assert [of["mean"] for of in between] == pytest.approx([-0.05]) and not between[0][
        "within_noise"
    ]
    assert "paired by seed" in found["verdicts_over_seeds"]["true reward"]
    head, *lines = written["comparison_seeds.csv"].splitlines()
    assert head.startswith("group,seeds,left_out,metric,mean,low,high,deviation")
    assert sum(line.startswith("beta=0.3,1 2 3,,true reward,") for line in lines) == 1
    assert "## Over seeds" in written["comparison.md"] and "Student" in written["comparison.md"]
    assert written["comparison.tex"].count(r"\begin{tabular}") == 2
    assert "is better than beta=0.1 by 0.050" in written["comparison.html"]
    # One that has none of them leaves none of an earlier one there.
    export.write(collect.collect(given[:1]), tmp_path / "out", "x")
    assert not (tmp_path / "out/comparison_seeds.csv").exists()


def test_seeds_that_happen_to_agree_have_no_interval(tmp_path):
    """Of ten pairs accuracy is a count, and two seeds often come to the same one."""
    for beta, right in ((0.1, 6), (0.3, 7)):
        for seed in (1, 2):
            margins = [1] * right + [-1] * (10 - right)
            a_run(tmp_path / f"{beta}-{seed}", margins, beta=beta, seed=seed)
    runs = collect.collect(sorted(tmp_path.iterdir()))
    rows = table.table(runs)
    row = next(row for row in rows if row.name == "held-out accuracy")
    both = groups(runs)
    assert over(both[0], row).interval is None and seeds.differences(both, [row]) == []
    said = seeds.verdicts(both, [row])[row.name]
    assert "higher than beta=0.1 by 0.100: it is the same for every seed" in said
    cells = [cell for _, cells in seeds.lines(both, rows) for cell in cells]
    assert "0.600 (the same for all 2 seeds)" in cells


def test_a_seed_that_was_measured_on_other_pairs_is_in_no_mean(tmp_path):
    folders = [
        a_run(
            tmp_path / str(s), [1, -1, 1], [0.1, 0.2, 0.3 * s], digest="d" if s > 1 else "x", seed=s
        )
        for s in (1, 2, 3)
    ]
    runs = collect.collect(folders)
    (group,) = groups(runs)
    assert [*group.runs] == ["2", "3"]
    assert group.left_out == ["seed=1 (measured on other pairs or prompts)"]


def test_of_many_groups_the_highest_is_held_against_all(tmp_path):
    for beta, gain in ((0.1, 0), (0.2, 0.4), (0.3, 0.45), (0.4, 0.5), (0.5, 0.9)):
        for seed in (1, 2, 3):
            gained = [*(REWARDS + gain + 0.01 * seed * beta)]
            a_run(tmp_path / f"{beta}-{seed}", [1, -1], gained, beta=beta, seed=seed)
    runs = collect.collect(sorted(tmp_path.iterdir()))
    said = seeds.verdicts(groups(runs), [rewards(runs)])["true reward"]
    assert said.startswith("beta=0.5 is highest, ") and said.endswith("better than all 4 others")
    assert seeds.MANY in seeds.note(groups(runs))
