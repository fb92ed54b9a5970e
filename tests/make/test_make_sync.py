"""What the W&B run of a training holds, read back from its offline files; and how it is sent."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from dpo.runs import metrics, output_folder
from dpo.runs.tracking import again
from support.commands import make, run, run_flags, running
from support.launched import made


def records(part: Path) -> list[dict]:
    """What an offline W&B run holds, as W&B's own reader says it."""
    (file,) = part.glob("*.wandb")
    said = run(Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", file)
    return [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]


def of(kind: str, part: Path) -> list[dict]:
    return [record[kind] for record in records(part) if record["type"] == kind]


def config_of(part: Path) -> dict:
    found: dict = {}
    for record in records(part):
        update = record.get("config") or record.get("run", {}).get("config") or {}
        found |= update.get("update", {})
    return found


@pytest.fixture(scope="module")
def part(swept) -> Path:
    (found,) = (swept[0] / "beta=0.3").glob("wandb/offline-run-*")
    return found


def test_a_run_says_who_it_is_and_what_it_is_made_of(part, swept):
    runs = of("run", part)
    assert runs[0]["run_group"] == "sweep" and runs[0]["project"] == "dpo-recipes"
    assert runs[0]["display_name"].startswith("smollm2-sentiment ")
    assert "beta=0.3" in runs[0]["display_name"]
    assert {"model", "data", "sigmoid", "cpu"} <= {t for r in runs for t in r.get("tags", [])}
    config = config_of(part)
    assert config["recipe"]["beta"] == 0.3 and config["recipe"]["name"] == "smollm2-sentiment"
    assert config["versions"]["trl"] == "1.16.0" and config["global_batch"] == 4
    assert len(config["data"]["fingerprint"]) == 64
    assert config["data"]["rows"] == {"train": 16, "held-out": 8}
    report = json.loads((swept[0] / "beta=0.3/report.json").read_text())
    assert config["commit"] == report["commit"]


def test_held_out_metrics_a_table_that_grows_and_the_report(part, swept):
    logged = of("history", part)
    text = json.dumps(logged)
    assert "eval/rewards/accuracies" in text and "train/loss" in text
    tables = sorted(part.glob("files/media/table/completions_*.json"), key=os.path.getmtime)
    rows = [json.loads(table.read_text())["data"] for table in tables]
    assert [len(each) for each in rows] == [6, 12]  # three greedy and three sampled, twice
    assert {row[0] for row in rows[1]} == {2, 4}
    assert json.loads(tables[0].read_text())["columns"] == metrics.COLUMNS
    kept = metrics.completions(swept[0] / "beta=0.3")
    assert [[row[name] for name in metrics.COLUMNS] for row in kept] == rows[1]
    assert "report-smollm2-sentiment" in json.dumps(records(part))


def test_completions_are_in_the_report(swept):
    report = json.loads((swept[0] / "beta=0.3/report.json").read_text())
    assert {row["step"] for row in report["completions"]} == {2, 4}
    assert {row["decoding"] for row in report["completions"]} == {"greedy", "sampled"}
    first, last = report["completions"][0], report["completions"][6]
    assert first["prompt"] == last["prompt"] == "How was test 0?"
    assert first["reference"] == last["reference"]
    assert any(row["policy"] != row["reference"] for row in report["completions"])
    assert "While it trained" in (swept[0] / "beta=0.3/report.html").read_text()


def test_a_killed_run_goes_on_in_wandb_too(launched, tiny_model, tiny_data, tmp_path):
    """One id in both parts; completions as of a run that was not killed."""
    folder = tmp_path / "run"
    flags = [*run_flags(tiny_model, tiny_data, folder), "--max_steps=40", "--eval_steps=20"]
    with running(folder, "checkpoint-20", "--accelerate_config", "cpu", "--", *flags) as process:
        for child in (*process.children(recursive=True), process):
            child.kill()
    result = launched(*flags)
    assert result.returncode == 0, result.stderr[-3000:]
    parts = sorted(folder.glob("wandb/offline-run-*"))
    ids = {part.name.rsplit("-", 1)[1] for part in parts}
    assert len(parts) == 2 and ids == {(folder / output_folder.WANDB_ID).read_text()}
    steps = [row["step"] for row in metrics.completions(folder)]
    assert steps == [20] * 6 + [40] * 6
    assert [*folder.glob("wandb/artifacts/staging/*")]  # of tables and report, to be sent from here

    (folder / "report.json").unlink()  # as a kill in the evaluation leaves it
    assert "Trained already" in launched(*flags).stdout
    third = sorted(folder.glob("wandb/offline-run-*"))[2]
    assert third.name.endswith((folder / output_folder.WANDB_ID).read_text())
    assert "report-smollm2-sentiment" in json.dumps(records(third))
    assert config_of(third)["beta"] == 0.1


KILLED = """
import os, pathlib, signal, sys, time
sys.path.insert(0, "scripts")
from dpo.recipe import parse
from dpo.runs import tracking
folder = pathlib.Path(sys.argv[1])
flags = ["--use_cpu", "--bf16=false", f"--output_dir={folder}"]
tracking.configure(parse.parse(["--config", "recipes/smollm2-sentiment.yaml", *flags]), folder)
import wandb
wandb.init()
wandb.log({"told": 1})
tracking.alert("drift", "far from the reference")
time.sleep(3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_does_not_take_what_an_offline_run_has_told(tmp_path):
    run(sys.executable, "-c", KILLED, tmp_path / "run")
    (part,) = tmp_path.glob("run/wandb/offline-run-*")
    assert [told["item"]["told"] for told in of("history", part)] == [1]
    assert [alert["title"] for alert in of("alert", part)] == ["drift"]


STAND_IN = """#!{python}
import pathlib, sys
with open({log!r}, "a") as log:
    print(*sys.argv[1:], sep="\\n", file=log)
for path in sys.argv[3:]:
    file, = pathlib.Path(path).glob("*.wandb")
    if "bad" not in path:
        file.with_suffix(".wandb.synced").touch()
"""


def test_what_is_waiting_is_sent_by_run_and_a_failure_ends_no_other(tmp_path, wandb_server):
    """W&B's own program is a stand-in that notes what it is given, and fails on one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/wandb").write_text(
        STAND_IN.format(python=sys.executable, log=f"{tmp_path}/log")
    )
    (tmp_path / "bin/wandb").chmod(0o755)
    for name, run_id in (("a", "id1"), ("a", "id1b"), ("b", "bad"), ("c", "id3")):
        part = tmp_path / f"outputs/{name}/wandb/offline-run-2026_{run_id}-{run_id[:3]}"
        part.mkdir(parents=True)
        (part / "run.wandb").write_bytes(b"x")
    sent = tmp_path / "outputs/c/wandb/offline-run-2026_id3-id3/run.wandb.synced"
    sent.touch()
    script = (
        "import runpy, sys; from pathlib import Path; from dpo.runs import output_folder; "
        f"output_folder.RUNS = Path({str(tmp_path / 'outputs')!r}); "
        f"sys.executable = {str(tmp_path / 'bin/python')!r}; sys.argv = ['sync.py']; "
        "runpy.run_path('scripts/sync.py', run_name='__main__')"
    )
    result = run(sys.executable, "-c", script, PYTHONPATH="scripts", **wandb_server.environment())
    assert "Sent: 1 of 2" in result.stdout and result.returncode == 1
    assert "not sent: bad" in result.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:2] == ["sync", "--yes"]
    assert [Path(line).name for line in lines[2:4]] == [
        "offline-run-2026_id1-id1",
        "offline-run-2026_id1b-id1",
    ]
    assert not any("id3" in line for line in lines)


def test_a_run_that_goes_on_is_not_sent_yet(tmp_path):
    part = tmp_path / "run/wandb/offline-run-20260101_000000-id1"
    part.mkdir(parents=True)
    (part / "run-id1.wandb").write_bytes(b"x")
    with output_folder.lock(tmp_path / "run"):
        assert again.parts(tmp_path) == {}
    assert again.parts(tmp_path) == {"id1": [part]}


def test_without_a_key_nothing_is_sent(swept):
    result = make("sync", f"RUN={swept[0] / 'beta=0.1'}", WANDB_API_KEY=None, NETRC="/dev/null")
    assert result.returncode and "1 W&B runs are waiting: wandb login" in result.stderr


def test_a_server_that_is_not_there_is_said(swept):
    given = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = made("sync", f"RUN={swept[0] / 'beta=0.1'}", **given)
    assert "http://127.0.0.1:9 gave no answer in 5 s: 1 W&B runs still wait" in result.stderr


def test_what_was_sent_is_not_sent_again(swept, tmp_path):
    evaluations = shutil.ignore_patterns("evaluations")  # of other tests; they wait by themselves
    shutil.copytree(swept[0] / "beta=0.1", tmp_path / "run", ignore=evaluations)
    (part,) = (tmp_path / "run").glob("wandb/offline-run-*")
    (file,) = part.glob("*.wandb")
    file.with_suffix(".wandb.synced").touch()
    result = made("sync", f"RUN={tmp_path / 'run'}")
    assert result.returncode == 0 and "Nothing is waiting" in result.stdout


def test_a_wandb_that_refuses_the_key_does_not_end_a_run(
    launched, tiny_model, tiny_data, tmp_path, refusing
):
    folder = tmp_path / "run"
    flags = run_flags(tiny_model, tiny_data, folder)
    changes = {"WANDB_MODE": None, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": refusing}
    result = launched(*flags, **changes)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"offline, since {refusing} refuses the key (403)" in result.stdout
    assert (folder / "report.html").is_file()
    assert sum("loss" in line for line in metrics.read(folder)) == 4
