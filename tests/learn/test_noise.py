"""make learn WHAT=noise: which labels are swapped, what is found again, and what runs come to."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import learn as command
from dpo.core.files import read_lines
from dpo.core.machine import measuring_device
from dpo.core.refusal import Refusal
from dpo.learn import noise, pictures, runs
from dpo.runs.output_folder import lock
from support.commands import at_once
from support.place import ROOT

EMBEDDED = ROOT / "recipes/data/sentiment"
SIZE = noise.Size(rates=(0.0, 0.3), seeds=(1, 2, 3))


def swapped(before: list[dict], after: list[dict]) -> set[int]:
    return {at for at, rows in enumerate(zip(before, after, strict=True)) if rows[0] != rows[1]}


def test_swapped_labels_are_exact_and_nested():
    rows = read_lines(EMBEDDED / "train.jsonl")
    parts = [swapped(rows, noise.flipped(rows, rate)) for rate in noise.Size().rates]
    assert [len(part) for part in parts] == [0, 50, 100, 150]  # of 501
    assert parts[1] < parts[2] < parts[3]
    one = min(parts[1])
    wrong = noise.flipped(rows, 0.1)[one]
    for name in ("", "vader_"):
        assert wrong[f"{name}chosen"] == rows[one][f"{name}rejected"]
        assert wrong[f"{name}rejected"] == rows[one][f"{name}chosen"]
    assert wrong["prompt"] == rows[one]["prompt"] and [*wrong] == [*rows[one]]


def test_held_out_pairs_stay_and_the_labels_are_counted(tmp_path):
    labels = noise.write_data(EMBEDDED, tmp_path, SIZE)
    for rate in (0.0, 0.3):
        folder = noise.data_of(tmp_path, rate)
        assert read_lines(folder / "test.jsonl") == read_lines(EMBEDDED / "test.jsonl")
    noise.write_data(EMBEDDED, tmp_path / "small", noise.SMALL)
    few = read_lines(noise.data_of(tmp_path / "small", 0.3) / "test.jsonl")
    assert few == read_lines(EMBEDDED / "test.jsonl")[:8]
    rows = read_lines(noise.data_of(tmp_path, 0.3) / "train.jsonl")
    against = np.mean([row["vader_chosen"] < row["vader_rejected"] for row in rows])
    assert labels["30%"] == {"pairs": 501, "swapped": 150, "against_score": against}
    # As the data card says of the labels before any is swapped.
    assert "| labels against the score | 9.6% |" in (EMBEDDED / "README.md").read_text()
    assert round(labels["0%"]["against_score"], 3) == 0.096


def test_a_loss_is_told_what_it_is_there_for():
    """robust the rate; ipo a target that is, an answer, the paper's at the recipe's β."""
    assert noise.own_flags("sigmoid", 0.2, 0.1) == []
    assert noise.own_flags("robust", 0.2, 0.1) == ["--label_smoothing=0.2"]
    (flag,) = noise.own_flags("ipo", 0.2, 0.1)
    beta = float(flag.removeprefix("--beta="))
    assert 1 / (2 * beta) * noise.TOKENS == pytest.approx(1 / (2 * 0.1))


def test_runs_compute_in_half_precision_unless_told_otherwise():
    measuring_device()  # a CPU computes in it only if nothing else is meant

    def half(*given: str) -> bool:
        return runs.recipe_of(noise.flags_of(SIZE, [*given])).training.bf16

    assert half() is half("--beta=0.2") is True
    assert half("--bf16=false") is half("--bf16", "false") is False


def test_answers_are_as_long_as_is_said():
    tokens = {
        (str(row["prompt"]), answer["text"]): answer["tokens"]
        for row in read_lines(EMBEDDED / "candidates.jsonl")
        for answer in row["answers"]
    }
    pairs = read_lines(EMBEDDED / "train.jsonl")
    lengths = [
        tokens[str(pair["prompt"]), pair[side][0]["content"]]
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    assert round(np.mean(lengths)) == noise.TOKENS


def run_of(rate: float, loss: str, seed: int, reward: float, accuracy: float = 0.7) -> dict:
    return {"rate": rate, "loss": loss, "seed": seed, "reward": reward} | {
        "accuracy": accuracy,
        "kl": 4.0 + reward,
        "tokens": 25.0 + seed,
    }


def results(**more) -> dict:
    """Of three seeds that differ by much, on which losses differ by little."""
    level = {1: 0.2, 2: 0.5, 3: 0.8}
    found = []
    for rate, loss in noise.pairs_of(SIZE):
        less = {"sigmoid": rate, "robust": rate / 3, "ipo": rate + 0.05}[loss]
        found += [run_of(rate, loss, s, level[s] - less + 0.01 * (s == 2)) for s in (3, 1, 2)]
    given = {"settings": {"rates": SIZE.rates, "losses": SIZE.losses}, "reference": {"reward": 0.1}}
    given |= {"ceiling": 0.9274, "labels": {"0%": {"against_score": 0.0958}}}
    made = noise.over_seeds(SIZE, found) | given | more
    return json.loads(json.dumps(made | {"claims": noise.claims(made)}))


def only(points: list[dict], rate: float, loss: str) -> dict:
    (point,) = [each for each in points if (each["rate"], each["loss"]) == (rate, loss)]
    return point


def test_figures_over_seeds():
    found = results()
    point = only(found["points"], 0.3, "sigmoid")["reward"]
    values = np.array([-0.1, 0.21, 0.5])
    by_hand = 4.303 * values.std(ddof=1) / np.sqrt(3)  # Student's t of two degrees of freedom
    assert point["mean"] == pytest.approx(values.mean())
    assert point["high"] - point["mean"] == pytest.approx(by_hand, rel=1e-3)
    # Paired by seed: what seeds differ by is in both.
    gain = only(found["to_sigmoid"], 0.3, "robust")["reward"]
    assert gain["low"] == pytest.approx(0.2) and gain["high"] == pytest.approx(0.2)
    # robust where nothing is swapped is sigmoid there.
    cost = only(found["to_clean"], 0.3, "robust")["reward"]
    assert cost["mean"] == pytest.approx(-0.1)
    assert {(p["rate"], p["loss"]) for p in found["points"]} == {
        *((0.0, "sigmoid"), (0.0, "ipo"), (0.3, "sigmoid"), (0.3, "robust"), (0.3, "ipo"))
    }


def test_a_run_that_lacks_is_no_zero():
    level = [run_of(rate, loss, 1, 0.5) for rate, loss in noise.pairs_of(SIZE)]
    with pytest.raises(KeyError):
        noise.over_seeds(replace(SIZE, seeds=(1, 2)), level)


def test_what_is_printed_is_what_is_claimed():
    found = results()
    text = noise.table(found)
    assert "| 30% | robust − sigmoid | +0.200 (+0.200 to +0.200) |" in text
    claimed = {abs(value) for value in found["claims"].values()}
    printed = re.findall(r"\d+\.\d+", text)
    assert len(printed) > 100 and {float(number) for number in printed} <= claimed


def test_the_picture_is_drawn_from_the_json(tmp_path):
    drawn, other = tmp_path / "a", tmp_path / "b"
    for found, folder in ((results(), drawn), (results(reference={"reward": 0.4}), other)):
        pictures.write("noise", found, noise.table(found), noise.draw(found), folder)
    first, second = ((folder / "noise.png").read_bytes() for folder in (drawn, other))
    assert first != second and len(first) < 120_000
    again = json.loads((drawn / "noise.json").read_text())
    figure = noise.draw(again)
    shown = {axis.get_title(): axis for axis in figure.axes}
    assert [*shown] == ["true reward", "held-out accuracy", "KL, nats a sequence"]
    lines = [line for line in shown["true reward"].containers if line.get_label()]
    ends = {line.get_label(): line[0].get_ydata()[-1] for line in lines}
    assert ends["sigmoid"] == pytest.approx(only(again["points"], 0.3, "sigmoid")["reward"]["mean"])
    begins = {line.get_label(): line[0].get_ydata()[0] for line in lines}
    assert begins["robust (at 0: sigmoid)"] == begins["sigmoid"]


def test_it_goes_on_from_what_is_there(tmp_path, monkeypatch):
    """Every run is asked for with what it is told apart by, and one that failed ends it; what was
    measured until then is not measured again."""
    measuring_device()
    asked, failing = [], {"at": 3}

    def train(run, flags):
        if (run.folder / "report").exists():
            return
        if len(asked) == failing["at"]:
            raise Refusal("it failed")
        run.folder.mkdir(parents=True)
        (run.folder / "report").touch()
        pairs = Path(run.recipe.script.dataset_name)
        asked.append((run.folder, run.recipe.training.label_smoothing, pairs))

    class Stop(Exception):
        pass

    def numbers(report, side="policy"):
        assert report["of"]
        return {"reward": 0.5, "accuracy": 0.7, "kl": 3.0, "tokens": 25.0}

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "report_of", lambda folder: {"of": folder.name})
    monkeypatch.setattr(runs, "numbers", numbers)

    def all_measured(size, found):
        raise Stop

    monkeypatch.setattr(noise, "over_seeds", all_measured)
    with pytest.raises(Refusal):
        noise.run(tmp_path, tmp_path, True, [])
    first = [*asked]
    failing["at"] = None
    with pytest.raises(Stop):
        noise.run(tmp_path, tmp_path, True, [])
    assert asked[:3] == first and len({*asked}) == len(asked) == 6  # 3 of each of two seeds
    assert all(pairs.name == folder.parent.name for folder, _, pairs in asked)
    assert {pairs for *_, pairs in asked} == {noise.data_of(tmp_path, rate) for rate in (0.0, 0.3)}
    smoothed = {folder.name: e for folder, e, _ in asked if folder.parent.name == "swapped-30"}
    assert smoothed == {
        f"loss_type={loss},seed={seed}": 0.3 * (loss == "robust")
        for loss in noise.SMALL.losses
        for seed in (1, 2)
    }


def test_it_answers_at_once_and_lists_its_choices():
    said, code = at_once("learn.py", "--what=noise,nose")
    assert code and "WHAT: no nose: choose from " in said and "noise (120 minutes)" in said
    said, code = at_once("learn.py", "--help")
    assert not code and "What wrong" in said


def test_the_shortest_comes_first(tmp_path, monkeypatch):
    for name, minutes in (("slow", 30), ("quick", 0.5), ("shared", None)):
        stated = f"MINUTES = {minutes}\n" if minutes else ""
        (tmp_path / f"{name}.py").write_text(f'"""What {name} shows.\n\nMore."""\n{stated}')
    (tmp_path / "long").mkdir()
    (tmp_path / "long/__init__.py").write_text('"""What long shows."""\nMINUTES = 5\n')
    monkeypatch.setattr(command, "ROOM", tmp_path)
    assert command.experiments()["quick"] == (0.5, "What quick shows.")
    assert command.names("") == ["quick", "long", "slow"]
    assert command.names("slow, quick") == ["quick", "slow"]


OTHER = "noise-beta_0.3_model_name_or_path=a_b"


def called(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["learn.py", *words])
    command.main()


def test_docs_are_written_by_the_whole_experiment_alone(tmp_path, monkeypatch):
    """Unless a folder is given: not in small, and not with another setting."""
    given = []
    monkeypatch.setattr(noise, "run", lambda *how: given.append(how[:2]) or [])
    small, there, whole = tmp_path / "noise-small", tmp_path / "d", tmp_path / "noise"
    other, its = ["--", "--beta", "0.3", "--model_name_or_path=a/b"], tmp_path / OTHER
    for words in (["--small"], ["--small", f"--docs={there}"], other, [f"--docs={there}", *other]):
        called(monkeypatch, "--what=noise", f"--output={tmp_path}", *words)
    called(monkeypatch, "--what=noise", f"--output={tmp_path}")
    assert given[:2] == [(small, small), (small, there)]
    assert given[2:] == [(its, its), (its, there), (whole, command.DOCS)]


def test_flags_are_refused_before_the_first_experiment(tmp_path, monkeypatch):
    for name in ("gradient", "noise"):
        room = importlib.import_module(f"dpo.learn.{name}")
        monkeypatch.setattr(room, "run", lambda *how: pytest.fail("it began"))
    words = ["--what=noise,gradient", f"--output={tmp_path}", "--"]
    for flag, who in (
        ("loss_type", "noise"),
        ("reward_prompts", "noise"),
        ("max_steps", "gradient"),
    ):
        with pytest.raises(SystemExit, match=f"ARGS: {flag}: {who} sets this itself"):
            called(monkeypatch, *words, f"--{flag}=7")


def test_an_interrupt_says_that_nothing_is_lost(tmp_path, monkeypatch, capsys):
    def interrupted(*how):
        raise KeyboardInterrupt

    monkeypatch.setattr(noise, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        called(monkeypatch, "--what=noise", f"--output={tmp_path}")
    assert ended.value.code == 130
    assert "What is finished is kept: the same command goes on" in capsys.readouterr().out


def test_two_at_once_do_not_train_into_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "run", lambda *how: [])
    (tmp_path / "noise").mkdir()
    with lock(tmp_path / "noise"), pytest.raises(SystemExit, match="noise belongs to a run that"):
        called(monkeypatch, "--what=noise", f"--output={tmp_path}")
    called(monkeypatch, "--what=noise", f"--output={tmp_path}")
