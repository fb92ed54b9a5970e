"""make score, as a user gives it."""

import json

import pytest

from support.commands import at_once
from support.launched import made
from support.tiny import pair


def test_pairs_are_scored_and_a_part_of_them_is_written(swept, tmp_path):
    run, file = swept[0] / "beta=0.1", tmp_path / "pairs.jsonl"
    rows = [
        pair(f"thing {i}", "Good, so good.", "Bad.") | {"subset": ("donotanswer", "hep-go")[i % 2]}
        for i in range(20)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = made("score", f"RUN={run}", f"FILE={file}", "BY=subset", "SELECT=0.1")
    assert result.returncode == 0, result.stderr[-3000:]
    folder = run / "scores/pairs"
    found = json.loads((folder / "summary.json").read_text())
    assert found["scored"] == found["rows"] == 20 and found["beta"] == 0.1
    assert {*found["reward_bench"]["sections"]} == {"Safety", "Reasoning"}
    assert len((folder / "scores.jsonl").read_text().splitlines()) == 20
    assert len((folder / "smallest-0.1.jsonl").read_text().splitlines()) == 2
    for said in (
        "all pairs",
        "Calibration",
        "RewardBench",
        "20 of 2,985 rows",
        f"Written: {folder}",
        "Next: make new",
    ):
        assert said in result.stdout
    again = made("score", f"RUN={run}", f"FILE={file}", "ARGS=--per_token")
    assert again.returncode == 0 and (run / "scores/pairs-per-token/summary.json").is_file()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--run=outputs/none", "--file=a.jsonl"), "no run and no model at outputs/none"),
        (("--run=a/b", "--file="), "FILE= is missing"),
        (("--run=a/b", "--file=none.jsonl"), "FILE: nothing is at none.jsonl"),
        (("--run=a/b", "--file=none.jsonl", "--select=2"), "2 is no share"),
        (("--run=a/b", "--file=Makefile", "--largest"), "say how many with --select"),
        (("--run=a/b", "--fil=a.jsonl"), "unrecognized arguments"),
    ],
)
def test_what_is_misspelt_or_missing_is_said_at_once(given, says):
    said, code = at_once("score.py", *given)
    assert code and says in said


def test_a_run_that_has_not_ended_is_not_scored(swept, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text((swept[0] / "beta=0.1/recipe.yaml").read_text())
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{json.dumps(pair('it', 'Good.', 'Bad.'))}\n")
    result = made("score", f"RUN={tmp_path / 'run'}", f"FILE={file}")
    assert result.returncode and "has not ended" in result.stderr
