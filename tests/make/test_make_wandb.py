"""What a run sends to W&B, as a server takes it: the stand-in of support/wandb_server.py."""

import json
import re

import pytest

from dpo.runs import metrics, output_folder
from support.commands import make, run_flags
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


def test_an_evaluation_is_told_to_the_run_it_is_of(online):
    server, folder, _ = online
    given = (f"RUN={folder}", "JUDGE=vader", "ARGS=--limit 4 --max_new_tokens 8")
    before = dict(next(iter(server.runs.values())).summary)
    result = make("evaluate", *given, **server.environment())
    assert result.returncode == 0, result.stderr[-2000:]
    (run,) = server.runs.values()
    assert run.id in result.stdout and not server.unknown
    found = json.loads((folder / "evaluations/reference-vader/evaluation.json").read_text())
    rate = found["judge"]["win_rate"]
    of = "evaluate/reference-vader/"
    told = [run.summary[f"{of}win_rate{end}"] for end in ("", "_low", "_high")]
    assert told == [rate["mean"], rate["low"], rate["high"]]
    assert {f"{of}kl_nats_per_sequence", f"{of}answer_tokens", f"{of}true_reward"} < set(
        run.summary
    )
    # What the training has told is there as it was.
    assert {key: run.summary[key] for key in before if key[0] != "_"} == {
        key: value for key, value in before.items() if key[0] != "_"
    }
    assert run.exit == 0
    (page,) = server.artifacts["evaluation-run-reference-vader"]
    assert page["files"]["evaluation.html"].startswith(b"<!doctype html>")


def test_what_a_server_did_not_take_of_an_evaluation_waits_for_sync(online):
    server, folder, _ = online
    given = (f"RUN={folder}", "JUDGE=vader", "ARGS=--limit 3 --max_new_tokens 8")
    result = make("evaluate", *given, **server.environment(WANDB_BASE_URL="http://127.0.0.1:9"))
    assert result.returncode == 0 and "W&B does not have 1 of its evaluations" in result.stdout
    result = make("sync", f"RUN={folder}", **server.environment())
    assert result.returncode == 0 and "Sent: 1 of 1" in result.stdout, result.stdout
    (run,) = server.runs.values()
    found = json.loads((folder / "evaluations/reference-vader/evaluation.json").read_text())
    assert run.summary["evaluate/reference-vader/win_rate"] == found["judge"]["win_rate"]["mean"]
    result = make("sync", f"RUN={folder}", **server.environment())
    assert "Nothing is waiting" in result.stdout


def test_a_run_shows_how_fast_it_trains_and_what_it_is_made_of(online):
    server, folder, _ = online
    (run,) = server.runs.values()
    for name in ("pairs_per_second", "tokens_per_second", "mfu", "peak_memory_gb", "grad_norm"):
        assert len(run.column(f"train/{name}")) == 4, name
    (made,) = server.artifacts["recipe-smollm2-sentiment"]
    assert {"smollm2-sentiment.yaml", "cpu.yaml", "resolved.yaml"} <= set(made["files"])
    assert made["files"]["resolved.yaml"] == (folder / "recipe.yaml").read_bytes()
    assert not any(isinstance(v, str) and re.fullmatch("<[A-Z_]+>", v) for v in run.config.values())
    assert run.config["hub_token"] is None
    assert run.summary["eval/preference_accuracy_low"] <= run.summary["eval/preference_accuracy"]
