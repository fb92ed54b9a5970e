"""make evaluate on real runs: reports, checkpoints, endpoints, benchmarks."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from dpo.evaluation import benchmarks
from dpo.evaluation.contestants import Contestant, find
from dpo.evaluation.judges.judging import judge
from support.browser import PHONE, fits, opened
from support.commands import make
from support.endpoint import KEY, MODEL, comparisons, longer, serving
from support.launched import made
from support.models import other_model, save_reward_model
from support.place import ROOT


def evaluated(run, *given: str, make=made, **variables: object) -> tuple[dict, str]:
    """`make evaluate` of a tiny run: what was written, and what was printed."""
    flags = ["--max_new_tokens=12", "--limit=6", *given]
    stated = [f"{name}={value}" for name, value in variables.items()]
    result = make("evaluate", f"RUN={run}", *stated, f"ARGS={shlex.join(flags)}")
    assert result.returncode == 0, result.stderr[-3000:]
    folder = next(w for w in result.stdout.split() if w.endswith("evaluation.html,"))[:-1]
    path = folder.removesuffix(".html") + ".json"
    with open(path) as file:
        return json.load(file), result.stdout


def test_a_run_is_held_against_its_reference(swept):
    folder, _, _ = swept
    run = folder / "beta=0.1"
    found, said = evaluated(run, make=make, JUDGE="vader")
    report = json.loads((run / "report.json").read_text())
    # The same pairs, scored by training and anew.
    accuracy = report["pairs"]["accuracy"]["mean"]
    assert found["pairs"]["accuracy"]["mean"] == pytest.approx(accuracy)
    margin = report["pairs"]["margin"]["mean"]
    assert found["pairs"]["margin"]["mean"] == pytest.approx(margin, abs=1e-3)
    assert found["prompts"]["count"] == 6 and found["prompts"]["temperature"] == 0.7
    judge = found["judge"]
    assert judge["wins"] + judge["ties"] + judge["losses"] == 6
    assert found["answers"]["kl"]["nats_per_sequence"]["mean"] > 0
    assert "Win rate" in said and "Written:" in said
    lines = (run / "evaluations/reference-vader/answers.jsonl").read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[0])["reward_policy"] is not None
    with opened((run / "evaluations/reference-vader/evaluation.html").as_uri(), PHONE) as page:
        assert page.errors == [] and fits(page)
        assert page.get_by_text("Win rate", exact=True).first.is_visible()


def test_a_checkpoint_is_held_against_what_its_run_started_from(swept):
    run = swept[0] / "beta=0.1"
    (last,) = run.glob("checkpoint-4")
    found, _ = evaluated(last)
    report = json.loads((run / "report.json").read_text())
    assert found["against"] == report["model"] and found["policy"] == str(last)
    margin = report["pairs"]["margin"]["mean"]
    assert found["pairs"]["margin"]["mean"] == pytest.approx(margin, abs=1e-3)
    assert (run / "evaluations/checkpoint-4-reference/evaluation.html").is_file()


def test_a_run_is_held_against_another_model_on_given_prompts_by_an_endpoint(
    swept, tiny_model, tmp_path
):
    file, other = tmp_path / "asked.txt", other_model(tiny_model, tmp_path / "other", 0.5)
    file.write_text("How was the soup?\nAnd the weather?\n")
    given = {"PROMPTS": file, "AGAINST": other, "JUDGE_MODEL": MODEL}
    with serving(longer) as fake:
        found, _ = evaluated(swept[0] / "beta=0.1", "--samples=2", **given, JUDGE=fake.url)
    assert found["against"] == str(other) and found["pairs"]["count"] == 8
    assert found["prompts"]["count"] == 2 and found["prompts"]["samples"] == 2
    judge = found["judge"]
    assert judge["about"]["model"] == MODEL and judge["about"]["name"] == fake.url
    assert judge["wins"] + judge["ties"] + judge["losses"] == 4 and judge["cost"]["requests"] > 2


def test_a_model_that_is_no_run_is_held_against_a_run(swept, tiny_model, tmp_path):
    """On the held-out pairs of that run, with it as the reference, by a reward model."""
    folder, _, _ = swept
    run = folder / "beta=0.1"
    judge, tokenizer = tmp_path / "judge", AutoTokenizer.from_pretrained(tiny_model)
    save_reward_model(judge, tokenizer, max_position_embeddings=1000)
    found, said = evaluated(tiny_model, "--temperature=0", AGAINST=run, JUDGE=judge)
    assert found["judge"]["about"]["name"] == str(judge) and found["judge"]["left_out"] == {}
    assert found["judge"]["reward"]["difference"]["mean"] != 0
    report = json.loads((run / "report.json").read_text())
    margin = found["pairs"]["margin"]["mean"]
    assert margin == pytest.approx(-report["pairs"]["margin"]["mean"], abs=1e-3)
    assert found["answers"]["kl"] is None and "KL of the policy" not in said
    path = next(word for word in said.split() if word.endswith("evaluation.html,"))
    shutil.rmtree(Path(path).parent)


@pytest.mark.parametrize(
    ("given", "says_so"),
    [
        (("RUN=",), "no model is named; the runs here:"),
        (("ARGS=--limit 0",), "argument --limit: '0' is no whole number from 1 on"),
        (("RUN=outputs/none",), "no run and no model at outputs/none; the runs here:"),
        (("RUN=models/SmolLM2-135M-Instruct",), "is no run: name with AGAINST="),
        (
            ("RUN=models/SmolLM2-135M-Instruct", "AGAINST=models/SmolLM2-135M-Instruct"),
            "there are no held-out prompts: name a file of some with PROMPTS=",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_said(given, says_so):
    result = made("evaluate", *given)
    assert result.returncode and says_so in result.stderr


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: !function own.question
doc_to_target: answer
doc_to_choice: ["yes", "no"]
metric_list: [{metric: acc}]
"""


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with a benchmark of one's own, from a file: the others come from the hub."""
    pytest.importorskip("lm_eval", reason="lm-eval is an optional extra, and not installed")
    rows = [{"question": f"Is {n} even?", "answer": n % 2} for n in range(12)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "tiny_choice.yaml").write_text(TASK % (tasks / "rows.jsonl"))
    # As mbpp and squad do; scripts/evaluate.py is on the path as well.
    code = "from evaluate import load\ndef question(row):\n    return row['question']\n"
    (tasks / "own.py").write_text(code)
    return tasks


def test_a_benchmark_that_cannot_be_run_is_said(tasks, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "KEPT", tmp_path / "kept")
    benchmarks.check(["tiny_choice"], str(tasks))
    with pytest.raises(SystemExit, match=r"no task 'tiny_chance': did you mean: .*tiny_choice"):
        benchmarks.check(["tiny_chance"], str(tasks))
    (tasks / "own.py").write_text("import no_such_package")
    model = find(str(tiny_model))
    with pytest.raises(SystemExit, match=r"SUITE=tiny_choice cannot be run: .*no_such_package"):
        benchmarks.beside(model, model, ["tiny_choice"], "cpu", str(tasks), None)


def test_a_benchmark_computes_as_the_run_did(tasks, tiny_model, tmp_path, monkeypatch):
    """lm-eval switches off an autocast that it is not told of."""
    monkeypatch.setattr(benchmarks, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(Contestant, "half", lambda _: torch.bfloat16)
    given = []

    def note(command):
        given.append(yaml.safe_load(Path(command[-1]).read_text()))
        return 1, "noted"

    monkeypatch.setattr(benchmarks, "shown", note)
    with pytest.raises(SystemExit, match="SUITE=tiny_choice cannot be run: noted"):
        benchmarks.run(find(str(tiny_model)), ["tiny_choice"], "cpu", str(tasks), None)
    assert given[0]["model_args"]["mixed_precision_dtype"] == "bfloat16"


def test_a_benchmark_before_and_after_through_make(tasks, swept, monkeypatch):
    """Of a run and its reference; asked for again, they are found, though Python has left compiled
    code beside the task's."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    asked = (swept[0] / "beta=0.1", f"--suite_tasks={tasks}")
    found, said = evaluated(*asked, SUITE="tiny_choice")
    assert "found, not run again" not in said
    acc = found["suite"]["tiny_choice"]["acc"]
    assert 0 <= acc["policy"] <= 1 and acc["stderr_policy"] > 0
    assert {acc["policy"] * 12 % 1, acc["against"] * 12 % 1} <= {0.0}
    assert f"{acc['policy']:.4f} ± {1.96 * acc['stderr_policy']:.4f}" in said
    assert [*tasks.glob("__pycache__/*")]
    again, said = evaluated(*asked, SUITE="tiny_choice")
    assert said.count(": found, not run again") == 2
    assert again["suite"] == found["suite"]


JUDGING = """
import json, sys
from pathlib import Path
from dpo.evaluation.judges.judging import Comparison, judge
url, kept, pairs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
verdicts = judge(url, [Comparison(*pair) for pair in pairs], kept, model="fake-judge", parallel=2)
print(verdicts.preferred.tolist())
"""


def as_in_a_terminal():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has its background jobs ignore Ctrl-C


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_judging_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, capsys, how):
    """With requests under way: what was answered is on disk, and no more is asked, or paid."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    kept = tmp_path / "judgements.jsonl"
    compared, paused = comparisons(30), threading.Event()

    def say(text: str) -> str:
        if len(fake.asked) >= 25 and not paused.is_set():
            paused.set()
            time.sleep(1)  # until the signal
        return f"{KEY}\n{longer(text)}"

    with serving(say) as fake:
        pairs = json.dumps([[c.prompt, c.policy, c.against] for c in compared])
        command = [sys.executable, "-c", JUDGING, fake.url, str(kept), pairs]
        with open(kept.parent / "log", "w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT / "scripts", stdout=log, stderr=log, preexec_fn=as_in_a_terminal
            )
            assert paused.wait(120)
            process.send_signal(how)
            # Of Ctrl-C Python makes 1 where a package runs code as it ends.
            assert process.wait() in ((-how, 1) if how == signal.SIGINT else (-how,))
        said = sum("verdict" in json.loads(line) for line in kept.read_text().splitlines())
        assert 23 <= said <= 25  # two requests were under way
        with fake.one_by_one:
            assert len(fake.asked) <= 27
            fake.asked.clear()
        verdicts = judge(fake.url, compared, kept, model=MODEL, parallel=2)
        assert len(fake.asked) == 60 - said
    assert verdicts.preferred.tolist() == [1, 0] * 15 and verdicts.cost["requests"] == 60
    log = (kept.parent / "log").read_text()
    assert " tokens]" in log
    assert log.endswith("KeyboardInterrupt\n") == (how == signal.SIGINT)
    assert KEY not in kept.read_text() + log + str(capsys.readouterr())
