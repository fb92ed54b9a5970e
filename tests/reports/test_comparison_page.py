"""A comparison's page as a reader uses it, and the files beside it as other tools read them."""

import csv
import json
import re

import numpy as np
import pytest

from dpo.reports.comparison import collect, export, samples, table, terminal
from dpo.reports.comparison.row import Row, Units, against, powers, same
from support.browser import DESKTOP, PHONE, fits, opened, pictures
from support.compared import a_run

REWARDS = np.random.default_rng(1).random(60) - 0.5


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of six runs: three β, two seeds each, with rewards that rise by the seed and β."""
    folder = tmp_path_factory.mktemp("page")
    given = [
        a_run(folder / f"{beta}-{seed}", [1, -1], REWARDS + seed * beta, beta=beta, seed=seed)
        for beta in (0.5, 0.05, 5)
        for seed in (1, 2)
    ]
    (given[2] / "report.json").unlink()
    export.write(collect.collect(given), folder / "out", "six")
    return folder / "out/comparison.html"


def rows_of(page) -> list[str]:
    body = page.locator("table[data-what=run] tbody tr")
    return [
        row.locator("th").inner_text().replace("\n", " ").strip()
        for row in body.all()
        if row.is_visible()
    ]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_runs_are_sorted_by_a_column_and_filtered_by_a_setting(written, width):
    with opened(written.as_uri(), width) as page:
        runs, heads = page.locator("table[data-what=run]"), "thead th"
        reward = runs.get_by_role("button", name="true reward", exact=True)
        before = rows_of(page)
        assert before[0] == "beta=0.5 seed=1" and len(before) == 6
        reward.click()
        order = ["5 seed=2", "5 seed=1", "0.5 seed=2", "0.5 seed=1", "0.05 seed=2", "0.05 seed=1"]
        assert rows_of(page) == [f"beta={each}" for each in order]  # what has none comes last
        sort = [head.get_attribute("aria-sort") for head in runs.locator(heads).all()]
        assert sort.count("descending") == 1 and sort.count(None) == len(sort) - 1
        reward.click()
        turned = [*order[4::-1], order[5]]
        assert rows_of(page) == [f"beta={each}" for each in turned]
        # By number, not by letter: 5 comes after 0.5, and 0.05 before it.
        runs.get_by_role("button", name="beta", exact=True).click()
        assert rows_of(page)[0].startswith("beta=5 ") and rows_of(page)[5].startswith("beta=0.05 ")
        runs.get_by_role("button", name="beta", exact=True).focus()
        page.keyboard.press("Enter")  # a real button
        assert rows_of(page)[0].startswith("beta=0.05 ")
        page.get_by_label("seed", exact=True).select_option("2")
        assert len(rows_of(page)) == 3 and all(name.endswith("seed=2") for name in rows_of(page))
        page.get_by_label("beta", exact=True).select_option("5")
        assert rows_of(page) == ["beta=5 seed=2"] and "1 of 6" in page.inner_text(".filters")
        page.get_by_label("beta", exact=True).select_option("")
        assert len(rows_of(page)) == 3
        assert fits(page) and page.errors == []
        # The name stays where the numbers scroll.
        wide = runs.locator("xpath=..")
        name, left = runs.locator("tbody th").first, wide.bounding_box()["x"]
        wide.evaluate("each => (each.scrollLeft = 300)")
        assert abs(name.bounding_box()["x"] - left) < 2


def test_curves_of_runs_and_of_groups_are_explored(written):
    with opened(written.as_uri()) as page:
        groups, runs = page.locator(".curves").all()
        assert groups.locator("canvas").count() and runs.locator("canvas").count()
        assert "mean of 2 seeds" in groups.inner_text()
        assert "beta=0.05" not in groups.locator(".legend").inner_text()  # one of its two has ended
        run = runs.get_by_role("button", name="beta=5 seed=2")
        run.click()
        assert run.get_attribute("aria-pressed") == "false"
        assert page.errors == []


def test_pictures_stand_where_scripts_do_not_run(written):
    text = written.read_text()
    still = written.with_name("still.html")
    still.write_text(re.sub(r"script-src [^;]*;", "script-src 'none';", text))
    with opened(still.as_uri()) as page:
        assert page.locator("canvas").count() == 0
        assert len(pictures(page)) == 14 and min(pictures(page)) > 700
        assert page.locator("th button").count() == 0 and len(rows_of(page)) == 6


def test_words_that_differ_are_marked(written):
    pieces = samples.marked("the cat sat on a mat", "the dog sat on a mat today")
    assert pieces == [("the", False), (" cat", True), (" sat on a mat", False)]
    assert samples.marked("a  b\n", "a  b\n") == [("a  b\n", False)]
    assert "".join(piece for piece, _ in samples.marked(" x\n\ny ", "x z")) == " x\n\ny "
    assert samples.marked("all of it is new", "nothing as it was") == [("all of it is new", False)]
    with opened(written.as_uri()) as page:
        marked = page.locator(".sample").first.locator("mark").all_inner_texts()
        # The first run's are those that the reference has not; the others name themselves.
        assert any("0.5-1" in text for text in marked) and any("5-2" in text for text in marked)


def test_a_table_is_no_formula_and_numbers_are_numbers(tmp_path):
    evil = {"note": '=cmd|"/c calc"!A0', "other": "@SUM(1)", "size": -1}
    given = [
        a_run(tmp_path / "a", [1, -1], [0.1, 0.2], beta=0.1, note="x", other="y", size=2),
        a_run(tmp_path / "b", [1, 1], [-0.1, -0.2], beta=0.3, **evil),
        a_run(tmp_path / "c", [1, 1], beta=0.5, note="+1+1", other="\tx", size=3),
    ]
    (given[2] / "report.json").unlink()
    runs = collect.collect(given)
    export.write(runs, tmp_path / "out", "x")
    with (tmp_path / "out/comparison.csv").open(newline="") as file:
        first, second, third = csv.DictReader(file)
    assert second["note"] == '\'=cmd|"/c calc"!A0' and second["other"] == "'@SUM(1)"
    assert third["note"] == "'+1+1" and second["size"] == "-1"
    assert export._cell(" =1+1") == "' =1+1" and export._cell("＝1") == "'＝1"
    assert export._cell("") == "" and export._cell("a=1") == "a=1"
    assert float(second["true_reward"]) == pytest.approx(-0.15)
    assert first["held_out_accuracy_low"] == "0.4" and third["held_out_accuracy"] == ""
    assert third["state"].startswith("not finished")


def test_the_json_holds_all_of_it(tmp_path):
    given = [a_run(tmp_path / name, [1, -1], [0.1, 0.2], beta=at) for at, name in enumerate("ab")]
    report = json.loads((given[1] / "report.json").read_text())
    report["peak_memory_gb"] = float("nan")
    (given[1] / "report.json").write_text(json.dumps(report))
    export.write(collect.collect(given), tmp_path / "out", "two")
    text = (tmp_path / "out/comparison.json").read_text()
    assert "NaN" not in text  # which is no JSON
    found = json.loads(text)
    first, second = found["runs"]
    assert first["settings"]["beta"] == 0 and second["differs"] == {"beta": "1"}
    assert first["metrics"]["held-out accuracy"] == pytest.approx(
        {"mean": 0.5, "low": 0.4, "high": 0.6}
    )
    of = {row["metric"]: row for row in found["differences"]}
    assert of["true reward"]["identical"] and of["true reward"]["mean"] == 0
    assert (of["true reward"]["run"], of["true reward"]["from"]) == ("beta=1", "beta=0")


def test_latex_sets_names_as_they_stand(tmp_path):
    names = r"100%_#&$~^\{}", "β"
    given = [a_run(tmp_path / str(at), [1], [0.1], note=n) for at, n in enumerate(names)]
    text = export.tex(*two(given), names[0])
    assert r"note=100\%\_\#\&\$\textasciitilde{}\textasciicircum{}\textbackslash{}\{\}" in text
    assert text.isascii()
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[%#_~^]", "\n".join(body))
    columns = len(re.search(r"\{(l r*|lr*)\}", body[0])[1])
    ends = [line for line in body if line.endswith(r"\\")]
    assert len(ends) == 3 and {len(re.findall(r"(?<!\\)&", line)) for line in ends} == {columns - 1}


def two(given):
    runs = collect.collect(given)
    return runs, table.table(runs)


def test_identical_runs_differ_by_nothing(tmp_path):
    """Whatever was measured, on however few prompts: rewards from 0 to 1 are no shares."""
    rewards = [0.1, 0.9, 0.5]
    given = [a_run(tmp_path / name, [1, -1, 1], rewards, beta=n) for n, name in enumerate("ab")]
    _, rows = two(given)
    for name in ("held-out accuracy", "true reward"):
        row = next(row for row in rows if row.name == name)
        assert same(row.differences()[1]), name
        assert against(row.differences()[1]) == "0: identical throughout"
    # Others that are right on the same pairs are not the same; the width has its reason.
    given.append(a_run(tmp_path / "c", [2, -2, 2], [0.2, 0.9, 0.5], beta=2))
    row = next(row for row in two(given)[1] if row.name == "held-out accuracy")
    assert "every prompt alike: Wilson's" in against(row.differences()[2])
    assert not same(row.differences()[2])


def test_a_set_that_is_too_small_says_so(tmp_path, capsys):
    rng = np.random.default_rng(4)
    few = [a_run(tmp_path / f"few{n}", rng.normal(0.1, 1, 8), beta=n) for n in range(2)]
    runs, rows = two(few)
    said, too_few = powers(rows)["held-out accuracy"]
    assert too_few and said.startswith("8 prompts show a difference of 0.")
    assert "fewer than 30" in said and "no run came further than" in said
    terminal.show(runs, "few")
    assert "Too few to say much about held-out accuracy: 8 prompts" in capsys.readouterr().out
    export.write(runs, tmp_path / "out", "few")
    assert (
        "Too few to say much about held-out accuracy"
        in (tmp_path / "out/comparison.html").read_text()
    )
    assert json.loads((tmp_path / "out/comparison.json").read_text())["what_can_be_seen"][
        "held-out accuracy"
    ]["too_few"]


def test_what_can_be_seen_is_seen_four_times_in_five(few_resamples):
    """Two runs that differ by just that: how often the interval leaves zero out."""
    rng = np.random.default_rng(6)
    base = rng.normal(0, 1, (2, 200))
    least = Row("x", [], units=[Units(0, values) for values in base]).detectable()
    seen = 0
    for _ in range(200):
        values = rng.normal(0, 1, (2, 200)) + np.array([[least], [0]])
        row = Row("x", [], units=[Units(0, each) for each in values])
        seen += row.between[0][1].low > 0
    assert 0.7 < seen / 200 < 0.9
