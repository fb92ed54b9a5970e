"""The local page, opened and clicked through: what it shows is what runs have written."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

from playwright.sync_api import Error

from dpo.runs import metrics
from dpo.runs.dashboard import Followed
from dpo.training.monitoring import completions
from support.browser import opened
from support.commands import make
from support.place import ROOT

POINT = {"rewards/margins": 0.1, "epoch": 0.5}
EVIL = "<img src=x onerror='window.evil=1'> **bold** ![x](http://127.0.0.1:9/x.png)"


def write(folder, steps, loss=0.7):
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"step": n, "loss": loss, **POINT, "seconds": float(n)} for n in steps]
    (folder / "metrics.jsonl").write_text("".join(map(metrics.line, entries)))


class Tables:
    """Stands in for trackio's, and holds what it is given."""

    def __init__(self):
        self.runs, self.calls = {}, 0
        self.system, self.alerts, self.configs = {}, {}, {}

    def init_db(self, project):
        pass

    def delete_run(self, project, name):
        for table in (self.runs, self.system, self.alerts):
            table.pop(name, None)

    def bulk_log_system(self, project, name, rows, timestamps):
        assert len(rows) == len(timestamps)
        self.system.setdefault(name, []).extend(rows)

    def bulk_alert(self, project, name, titles, texts, levels, steps, timestamps):
        self.alerts.setdefault(name, []).extend(zip(steps, titles, texts, strict=True))

    def bulk_log(self, project, name, rows, steps, timestamps, config):
        assert len(rows) == len(steps) == len(timestamps)
        self.calls += 1
        self.configs[name] = config
        self.runs.setdefault(name, []).extend(zip(steps, rows, strict=True))


def test_lines_that_a_resumed_run_writes_again_are_there_once(tmp_path):
    tables = Tables()
    follow = Followed(tmp_path, tables, dict)
    write(tmp_path / "sweep/beta=0.1", range(1, 9))
    follow.catch_up()
    follow.catch_up()
    assert tables.calls == 1  # nothing was written in between
    write(tmp_path / "sweep/beta=0.1", range(1, 6), loss=0.7)  # goes on from step 4
    follow.catch_up()
    assert [step for step, _ in tables.runs["sweep/beta=0.1"]] == [1, 2, 3, 4, 5]
    with (tmp_path / "sweep/beta=0.1/metrics.jsonl").open("a") as file:
        file.write(metrics.line({"step": 6, "eval_loss": 0.5, "eval_none": None, "seconds": 6.0}))
        file.write('{"step": 7, "lo')  # in the middle of a write
    follow.catch_up()
    assert tables.runs["sweep/beta=0.1"][-1] == (6, {"eval/loss": 0.5})
    assert tables.runs["sweep/beta=0.1"][0] == (
        1,
        {"train/loss": 0.7, "train/rewards/margins": 0.1},
    )
    shutil.move(tmp_path / "sweep", tmp_path / "aside")
    follow.catch_up()
    assert tables.runs.keys() == {"aside/beta=0.1"}


def test_a_run_is_shown_with_its_alerts_its_results_and_its_settings(tmp_path):
    """As it goes on, has ended, was evaluated; and not where it was moved aside."""
    run, tables = tmp_path / "run", Tables()
    write(run, range(1, 5))
    write(tmp_path / "run.20260101-120000", range(1, 5))
    rates = {"pairs_per_second": 2.0, "mfu": 0.3, "peak_memory_gb": None}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(metrics.line({"step": 5, "loss": 0.5, "seconds": 5.0} | rates))
    (run / "recipe.yaml").write_text("recipe: mine\nlearning_rate: 2.0e-05\n")
    metrics.keep_alerts(str(run), [{"kind": "drift", "step": 3, "says": "far"}])
    follow = Followed(tmp_path, tables, lambda report: report["numbers"])
    follow.catch_up()
    assert tables.runs.keys() == {"run"}
    assert tables.alerts == {"run": [(3, "drift", "far")]}
    assert tables.system == {"run": [{"pairs_per_second": 2.0, "mfu": 0.3}]}
    config = tables.configs["run"]
    assert (config["beta"], config["learning_rate"], config["seed"]) == (0.1, 2e-5, 42)
    assert "optim" not in config  # nothing is said of what only a run itself knows

    (run / "report.json").write_text(json.dumps({"numbers": {"true_reward": 0.7}}))
    (run / "evaluations/reference-vader").mkdir(parents=True)
    evaluation = run / "evaluations/reference-vader/evaluation.json"
    evaluation.write_text(json.dumps({"numbers": {"win_rate": 0.8}}))
    follow.catch_up()
    assert tables.runs["run"][-2:] == [
        (5, {"result/true_reward": 0.7}),
        (5, {"evaluated reference-vader/win_rate": 0.8}),
    ]
    assert tables.alerts == {"run": [(3, "drift", "far")]} and len(tables.runs["run"]) == 7
    metrics.keep_alerts(str(run), [])  # the run goes on from before the alert
    evaluation.write_text("{")  # in the middle of a write
    follow.catch_up()
    assert "run" not in tables.alerts and len(tables.runs["run"]) == 6


@contextmanager
def dashboard(runs):
    """The page of a folder of runs, through make: its address, and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["make", f"VENV={sys.prefix}", "dashboard", f"RUNS={runs}", f"PORT={port}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0
    )
    try:
        said = next(line for line in process.stdout if "http" in line)
        yield SimpleNamespace(
            process=process, said=said, port=port, url=re.search(r"http://\S+", said)[0]
        )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def point_found(page, says: str) -> bool:
    """Whether the mouse, near the right end of the first curve, finds a point that says so."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        box = page.locator("canvas").first.bounding_box()
        for left, down in itertools.product(range(2, 40, 3), range(10, 90, 4)):
            x, y = box["x"] + box["width"] - left, box["y"] + box["height"] * down / 100
            page.mouse.move(x, y)
            tip = page.locator("#vg-tooltip-element.visible")
            if tip.count() and says in " ".join(tip.inner_text().split()):
                return True
    return False


def test_the_page_shows_runs_live_and_asks_nobody_else(swept, tmp_path):
    runs = tmp_path / "outputs"
    for name in ("beta=0.1", "beta=0.3"):
        (runs / name).mkdir(parents=True)
        for file in ("metrics.jsonl", "recipe.yaml", "completions.jsonl", "report.json"):
            shutil.copy(swept[0] / name / file, runs / name)
    metrics.keep_alerts(str(runs / "beta=0.3"), [{"kind": "drift", "step": 2, "says": EVIL}])
    kept = metrics.completions(runs / "beta=0.3")
    kept[-1]["policy"] = EVIL
    completions.write(runs / "beta=0.3", kept)
    logged = [entry for entry in metrics.read(runs / "beta=0.3") if "loss" in entry]
    asked, batches = [], []

    def answered(response):
        if response.url.endswith("/api/get_logs_batch"):
            with contextlib.suppress(Error):  # the page went elsewhere before it had come
                batches.append(response.json())

    with dashboard(runs) as board, opened("about:blank", offline=False) as page:
        assert "2 runs of" in board.said and f"http://127.0.0.1:{board.port}/" in board.url
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", answered)
        page.goto(board.url)
        page.get_by_text("beta=0.3").first.wait_for()
        assert page.get_by_text("beta=0.1").first.is_visible()

        page.get_by_text("Alerts (1)").wait_for()
        headings = page.get_by_text(re.compile(r"^(▼|▶)?\s*(result|eval|train) \(\d+\)$"))
        headings.first.wait_for()
        groups = [re.search(r"\w+", said)[0] for said in headings.all_inner_texts()]
        assert [*dict.fromkeys(groups)] == ["result", "eval", "train"]

        page.get_by_placeholder("Select...").first.click()
        page.get_by_role("option", name="recipe").click()
        page.get_by_text("smollm2-sentiment", exact=True).first.wait_for()
        assert page.get_by_text("(2)", exact=True).is_visible()  # runs of the recipe

        page.get_by_placeholder("e.g., loss|ndcg@10|gpu").fill("train/loss$")
        page.get_by_text("train (1)").wait_for()
        page.locator("canvas").first.wait_for()
        assert point_found(page, "step 4 loss")
        rows = json.dumps(batches[-1])
        assert rows.count('"train/loss"') == 2 * len(logged) == 8

        with (runs / "beta=0.3/metrics.jsonl").open("a") as file:
            file.write(metrics.line(logged[-1] | {"step": 5, "loss": 0.123}))
        deadline = time.monotonic() + 20
        while '"train/loss": 0.123' not in json.dumps(batches[-1]):
            assert time.monotonic() < deadline
            page.wait_for_timeout(200)
        assert point_found(page, "beta=0.3 step 5 loss 0.123")  # without a reload

        page.get_by_text("Media & Tables").click()
        page.get_by_text("beta=0.3, Step: 4").wait_for()
        page.get_by_text(EVIL[:30]).first.wait_for()  # shown as the text that it is
        page.get_by_text("System Metrics").first.click()
        page.get_by_text("pairs_per_second").first.wait_for()
        assert page.evaluate("window.evil") is None

        assert page.errors == []
        assert asked and all(url.startswith(board.url.split("?")[0]) for url in asked)

        taken = make("dashboard", f"RUNS={runs}", f"PORT={board.port}")
        assert taken.returncode and f"port {board.port} is taken" in taken.stderr
        os.killpg(board.process.pid, signal.SIGINT)  # as Ctrl-C does
        board.process.wait(20)
        assert "Closed; the runs are as they were" in board.process.stdout.read()
    assert {path.name for path in (runs / "beta=0.3").iterdir()} == {
        *("metrics.jsonl", "recipe.yaml", "completions.jsonl", "report.json", "alerts.jsonl")
    }
