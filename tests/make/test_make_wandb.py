"""What a run sends to W&B, as a server takes it: the stand-in of support/wandb_server.py."""

import json

import pytest

from dpo.runs import metrics, output_folder
from support.commands import run_flags
from support.wandb_server import Server


@pytest.fixture(scope="module")
def online(launched, tiny_model, tiny_data, tmp_path_factory):
    """A run that was online from its start to its end: the server, its folder, what it printed."""
    folder = tmp_path_factory.mktemp("online") / "run"
    flags = run_flags(tiny_model, tiny_data, folder)
    with Server() as server:
        result = launched(*flags, **server.environment(WANDB_NAME="named by hand"))
        assert result.returncode == 0, result.stderr[-3000:]
        assert not server.unknown
        yield server, folder, result.stdout


def test_a_run_is_known_by_its_id_name_group_and_tags(online):
    server, folder, _ = online
    (run,) = server.runs.values()
    assert run.id == (folder / output_folder.WANDB_ID).read_text()
    assert run.project == "dpo-recipes" and run.group == "smollm2-sentiment"
    assert run.name == "named by hand"
    assert set(run.tags) == {"model", "data", "sigmoid", "cpu"}
    assert run.config["recipe"]["name"] == "smollm2-sentiment" and run.config["beta"] == 0.1
    assert run.config["data"]["rows"] == {"train": 16, "held-out": 8}
    assert run.exit == 0


def test_every_logged_step_is_there_once_and_is_the_axis(online):
    server, folder, _ = online
    (run,) = server.runs.values()
    lines = [line for line in metrics.read(folder) if "loss" in line]
    told = [(row["train/global_step"], row["train/loss"]) for row in run.history
            if "train/loss" in row]  # fmt: skip
    assert told == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert len(told) == 4
    axes = json.dumps(run.config["_wandb"]["m"])
    assert "train/global_step" in axes


def test_the_table_grows_and_the_report_is_committed(online):
    server, folder, _ = online
    (run,) = server.runs.values()
    tables = [json.loads(run.files[row["path"]]) for row in run.column("completions")]
    assert [len(table["data"]) for table in tables] == [6, 12]
    (report,) = server.artifacts["report-smollm2-sentiment"]
    assert report["state"] == "COMMITTED" and report["type"] == "report"
    assert report["files"]["report.html"] == (folder / "report.html").read_bytes()
    assert {"report.json", "metrics.jsonl", "completions.jsonl"} < set(report["files"])
    assert run.summary["eval/preference_accuracy"]
