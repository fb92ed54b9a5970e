"""What a run sends to W&B, as a server takes it: the stand-in of support/wandb_server.py."""

import json
import re
import shlex
import shutil
import time

import pytest

from dpo.reports import wandb_report
from dpo.runs import metrics, output_folder
from dpo.runs.tracking import again
from support.commands import make, run, run_flags, running
from support.ended import suite_of
from support.launched import made
from support.wandb_server import ENTITY, Fault, Run, Server

# A tiny run would be over before W&B was told its first step.
SLOWER = """
import sys, time
sys.path.insert(0, "scripts")
from dpo.runs.metrics import WriteMetrics
WriteMetrics.on_step_end = lambda *_, **__: time.sleep(1)
"""


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
    (page,) = server.artifacts[f"evaluation-{run.id}-reference-vader"]
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


def test_a_published_suite_is_told_too(online):
    server, folder, _ = online
    place = folder / "evaluations/reference-alpaca_eval"
    place.mkdir(parents=True)
    (place / "alpaca_eval.json").write_text(json.dumps(suite_of(folder)))
    result = make("sync", f"RUN={folder}", **server.environment())
    assert result.returncode == 0 and "Sent: 1 of 1" in result.stdout, result.stdout
    (run,) = server.runs.values()
    assert run.summary["evaluate/reference-alpaca_eval/alpaca_eval/win_rate"] == 40
    (page,) = server.artifacts[f"evaluation-{run.id}-reference-alpaca_eval"]
    assert [*page["files"]] == ["alpaca_eval.json"]


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


def test_the_address_stands_in_the_terminal_at_the_start_and_at_the_end(online):
    server, _, said = online
    (run,) = server.runs.values()
    address = f"W&B  {server.url}/{ENTITY}/dpo-recipes/runs/{run.id}"
    assert said.count(address) == 2
    assert said.index(address) < said.index("step 1/4") < said.rindex(address)


def test_a_run_that_was_sent_waits_for_nothing(online):
    server, folder, _ = online
    result = made("sync", f"RUN={folder}", **server.environment())
    assert result.returncode == 0 and "Nothing is waiting" in result.stdout


def steps(of: Run, curve: str) -> list[int]:
    return [row["train/global_step"] for row in of.history if curve in row]


def test_a_run_that_is_killed_online_goes_on_there_with_every_step_once(
    launched, tiny_model, tiny_data, tmp_path, wandb_server
):
    """Killed at once after a checkpoint, when W&B was told of less than that."""
    folder = tmp_path / "run"
    flags = [*run_flags(tiny_model, tiny_data, folder), "--max_steps=40", "--eval_steps=20"]
    environment = {k: v for k, v in wandb_server.environment().items() if v}
    environment |= {"WANDB_MODE": "online", "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    with running(folder, "checkpoint-20", "--accelerate_config", "cpu", "--", *flags,
                 **environment) as process:  # fmt: skip
        for child in (*process.children(recursive=True), process):
            child.kill()
    (run,) = wandb_server.runs.values()
    before = steps(run, "train/loss")
    assert run.exit is None and len(before) < 40
    result = launched(*flags, **wandb_server.environment())
    assert result.returncode == 0, result.stderr[-3000:]
    assert [*wandb_server.runs] == [(folder / output_folder.WANDB_ID).read_text()]
    assert steps(run, "train/loss") == [*range(1, 41)]
    assert steps(run, "eval/loss") == [20, 40] and run.exit == 0
    last = json.loads(run.files[run.column("completions")[-1]["path"]])
    assert len(last["data"]) == len(metrics.completions(folder))
    assert again.parts(tmp_path) == {}


def test_an_offline_part_is_told_when_the_run_goes_on_online(
    launched, tiny_model, tiny_data, tmp_path, wandb_server
):
    folder = tmp_path / "run"
    flags = [*run_flags(tiny_model, tiny_data, folder), "--max_steps=40", "--eval_steps=20"]
    with running(folder, "checkpoint-20", "--accelerate_config", "cpu", "--", *flags) as process:
        for child in (*process.children(recursive=True), process):
            child.kill()
    assert not wandb_server.runs
    result = launched(*flags, **wandb_server.environment())
    assert result.returncode == 0, result.stderr[-3000:]
    (run,) = wandb_server.runs.values()
    assert steps(run, "train/loss") == [*range(1, 41)] and steps(run, "eval/loss") == [20, 40]
    assert run.summary["train/global_step"] == 40
    assert [*folder.glob("wandb/offline-run-*/*.synced")]
    assert "Nothing is waiting" in made("sync", f"RUN={folder}").stdout


OUTAGES = {"dropped": Fault(0, after=1), "500": Fault(500, after=1), "401": Fault(401, after=1)}
OUTAGES |= {"silent": Fault(delay=600, after=1)}


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_holds_a_run_up_little_and_make_sync_sends_the_rest(
    outage, launched, tiny_model, tiny_data, tmp_path, wandb_server
):
    folder = tmp_path / "run"
    flags = [*run_flags(tiny_model, tiny_data, folder), "--max_steps=8", "--eval_steps=2"]
    wandb_server.fault = OUTAGES[outage]
    interval = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    started = time.monotonic()
    result = launched(*flags, **wandb_server.environment(**interval), first=SLOWER)
    assert result.returncode == 0, result.stderr[-3000:]
    assert time.monotonic() - started < 100
    (run,) = wandb_server.runs.values()
    assert len(run.history) < 8 and run.exit is None
    assert "make sync" in result.stdout and (folder / "report.html").is_file()
    wandb_server.fault = Fault()
    result = made("sync", f"RUN={folder}", **wandb_server.environment())
    assert "Sent: 1 of 1" in result.stdout, result.stdout + result.stderr
    assert steps(run, "train/loss") == [*range(1, 9)]
    assert steps(run, "eval/loss") == [2, 4, 6, 8]
    assert run.exit == 0 and run.summary["eval/preference_accuracy"]
    last = json.loads(run.files[run.column("completions")[-1]["path"]])
    assert len(last["data"]) == len(metrics.completions(folder))
    (report,) = wandb_server.artifacts["report-smollm2-sentiment"]
    assert report["state"] == "COMMITTED"
    assert "Nothing is waiting" in made("sync", f"RUN={folder}").stdout


@pytest.mark.parametrize(
    "fault", [Fault(401), Fault(500), Fault(0), Fault(403, only="UpsertBucket")]
)
def test_a_server_that_refuses_at_the_start_leaves_a_run_that_make_sync_sends(
    fault, launched, tiny_model, tiny_data, tmp_path, wandb_server
):
    folder = tmp_path / "run"
    flags = run_flags(tiny_model, tiny_data, folder)
    wandb_server.fault = fault
    started = time.monotonic()
    result = launched(*flags, **wandb_server.environment())
    assert result.returncode == 0, result.stderr[-3000:]
    assert time.monotonic() - started < 60
    assert "offline" in result.stdout and "make sync" in result.stdout
    assert not wandb_server.runs and [*folder.glob("wandb/offline-run-*")]
    refused = made("sync", f"RUN={folder}", **wandb_server.environment())
    assert refused.returncode and "Traceback" not in refused.stderr
    wandb_server.fault = Fault()
    result = made("sync", f"RUN={folder}", **wandb_server.environment())
    assert "Sent: 1 of 1" in result.stdout, result.stdout + result.stderr
    (run,) = wandb_server.runs.values()
    assert steps(run, "train/loss") == [1, 2, 3, 4] and run.exit == 0
    assert wandb_server.artifacts["report-smollm2-sentiment"][0]["state"] == "COMMITTED"


def test_a_sweep_is_a_group_and_its_report_finds_its_runs(swept, tmp_path, wandb_server):
    """The kept runs of a sweep, sent; then compared in a report that names them by their ids."""
    folder = tmp_path / "sweep"
    shutil.copytree(swept[0], folder)
    runs = [folder / "beta=0.1", folder / "beta=0.3"]
    for each in runs:
        assert "Sent: 1 of 1" in made("sync", f"RUN={each}", **wandb_server.environment()).stdout
    assert {run.group for run in wandb_server.runs.values()} == {"sweep"}
    names = [run.name for run in wandb_server.runs.values()]
    assert all(name.split()[1].startswith("beta=") for name in names)
    given = (f"RUNS={runs[0]} {runs[1]}", f"OUTPUT={tmp_path / 'compared'}", "WANDB=1")
    result = made("compare", *given, **wandb_server.environment())
    assert result.returncode == 0, result.stderr[-2000:]
    (report,) = wandb_server.reports
    assert f"W&B report: {wandb_server.url}/" in result.stdout
    text = json.dumps(report["spec"])
    assert all(f'"{run_id}"' in text for run_id in wandb_server.runs)
    assert text.count('"xAxis": "train/global_step"') == len(wandb_report.PANELS)
    assert "| held-out accuracy |" in text
    wandb_server.fault = Fault(401)
    result = made("compare", *given, **wandb_server.environment())
    assert result.returncode and "refuses the key (401)" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_agent_runs_the_points_of_our_sweep_file(tiny_model, tiny_data, tmp_path, wandb_server):
    folder = tmp_path / "sweep"
    flags = [f for f in run_flags(tiny_model, tiny_data, folder / "x") if "output_dir" not in f]
    given = ("SWEEP=beta=0.3", "WANDB=1", f"OUTPUT={folder}", f"ARGS={shlex.join(flags)}")
    environment = wandb_server.environment(WANDB_DIR=None, CUDA_VISIBLE_DEVICES="")
    assert make("sweep", *given).returncode == 0
    said = run("wandb", "sweep", str(folder / "sweep.yaml"), **environment)
    assert said.returncode == 0, said.stderr
    ((sweep, about),) = wandb_server.sweeps.items()
    result = run("wandb", "agent", f"{ENTITY}/dpo-recipes/{sweep}", **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not about["left"]
    (made_run,) = wandb_server.runs.values()
    assert made_run.sweep == sweep and made_run.config["beta"] == 0.3
    assert made_run.exit == 0 and steps(made_run, "train/loss") == [1, 2, 3, 4]
    assert (folder / "beta=0.3" / output_folder.WANDB_ID).read_text() == made_run.id


def test_two_processes_are_one_run(launched, tiny_model, tiny_data, tmp_path, wandb_server):
    flags = [*run_flags(tiny_model, tiny_data, tmp_path / "run"), "--gradient_accumulation_steps=1"]
    result = launched(*flags, config="ddp", processes=2, **wandb_server.environment())
    assert result.returncode == 0, result.stderr[-3000:]
    (one,) = wandb_server.runs.values()
    assert steps(one, "train/loss") == [1, 2, 3, 4] and one.exit == 0


def test_what_was_sent_afterwards_is_evaluated_where_it_was_sent_to(
    launched, tiny_model, tiny_data, tmp_path, wandb_server
):
    """Offline in a project of its own, sent, and evaluated in a shell that knows nothing of it."""
    folder = tmp_path / "run"
    flags = run_flags(tiny_model, tiny_data, folder)
    assert not launched(*flags, WANDB_MODE="offline", WANDB_PROJECT="alpha").returncode
    evaluated = (f"RUN={folder}", "ARGS=--limit 3 --max_new_tokens 4 --skip_pairs")
    off = make("evaluate", *evaluated, **wandb_server.environment(WANDB_DISABLED="true"))
    assert off.returncode == 0 and not wandb_server.runs
    assert "1 of 1" in make("sync", f"RUN={folder}", **wandb_server.environment()).stdout
    (run,) = wandb_server.runs.values()
    assert run.project == "alpha" and "evaluate/reference-answers/answer_tokens" in run.summary
    assert run.summary["eval/preference_accuracy"] and len(run.column("train/loss")) == 4


def test_a_run_with_wandb_off_stays_here(launched, tiny_model, tiny_data, tmp_path, wandb_server):
    folder = tmp_path / "run"
    flags = run_flags(tiny_model, tiny_data, folder)
    result = launched(*flags, **wandb_server.environment(WANDB_DISABLED="true"))
    assert result.returncode == 0 and "off, as WANDB_MODE or WANDB_DISABLED says" in result.stdout
    evaluated = (f"RUN={folder}", "ARGS=--limit 3 --max_new_tokens 4 --skip_pairs")
    assert make("evaluate", *evaluated, **wandb_server.environment()).returncode == 0
    assert not wandb_server.runs
    assert (
        "Nothing is waiting" in make("sync", f"RUN={folder}", **wandb_server.environment()).stdout
    )
