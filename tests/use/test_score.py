"""make score on a real run: what rewards are, which rows are taken, and what a kill leaves."""

import json
import resource
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.core.refusal import Refusal
from dpo.data import reading
from dpo.use.score import command, scoring
from support.rows import ARENA, HH, IMPLICIT, RATED, SHAREGPT, TEXT
from support.tiny import pair

GIVEN = {"split": "", "to": "", "by": [], "per_token": False, "max_length": None, "select": None}
GIVEN |= {"largest": False, "preference_layout": None, "column_mapping": None}


def score(run: Path, file: Path, to: Path, **given) -> tuple[list[dict], dict, Path | None]:
    """`make score` within this process: lines, summary and what was selected."""
    how = GIVEN | {"run": str(run), "file": str(file), "to": str(to)} | given
    folder, found, selected = command.score(Namespace(**how))
    return [*scoring.read_lines(folder)], found, selected


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def pairs(count: int, **columns) -> list[dict]:
    return [
        pair(f"thing {i}", "Good." + " Yes." * (i % 5), "Bad." + " No." * (i % 3)) | columns
        for i in range(count)
    ]


def by_hand(run: Path, base: Path, question: str, answer: str) -> tuple[float, int]:
    """The reward of an answer by a forward pass of it alone, and its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    how = {"tokenize": False}
    texts = (
        tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **how),
        tokenizer.apply_chat_template(turns, **how),
    )
    prompt, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts)
    logps = []
    for name in (run, base):
        model = AutoModelForCausalLM.from_pretrained(name)
        with torch.no_grad():
            said = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        each = said[range(len(whole) - 1), whole[1:]]
        logps.append(float(each[len(prompt) - 1 :].sum()))
    return 0.1 * (logps[0] - logps[1]), len(whole) - len(prompt)


@pytest.fixture(scope="module")
def run(finished) -> Path:
    return finished[0]


def test_rewards_are_those_of_each_completion_alone(run, tiny_model, tmp_path):
    answers = ["Good.", "It was bad, all of it.", "So so."]
    file = write(tmp_path / "a.jsonl", [{"prompt": "How?", "completions": answers}])
    ((line,), found, _) = score(run, file, tmp_path / "a")
    expected, tokens = zip(*(by_hand(run, tiny_model, "How?", a) for a in answers), strict=True)
    assert line["reward"] == pytest.approx(expected, abs=1e-4) and line["tokens"] == [*tokens]
    assert np.ptp(expected) > 0.01  # or nothing would be told apart
    assert line["ranks"] == (3 - np.argsort(np.argsort(expected))).tolist()
    assert found["completions"] == 3
    twice = write(
        tmp_path / "twice.jsonl", [{"prompt": "How?", "completions": [*answers, *answers]}]
    )
    ((line,), _, _) = score(run, twice, tmp_path / "twice")
    assert sorted(line["ranks"]) == [1, 1, 3, 3, 5, 5] and line["ranks"][:3] == line["ranks"][3:]
    row = {"prompt": "How?", "chosen": answers[0], "rejected": answers[1]}
    ((line,), _, _) = score(run, write(tmp_path / "b.jsonl", [row]), tmp_path / "b")
    assert line["margin"] == pytest.approx(expected[0] - expected[1], abs=2e-4)
    ((line,), found, _) = score(run, file, tmp_path / "c", per_token=True)
    assert line["reward"] == pytest.approx(np.array(expected) / tokens, abs=1e-4)


def test_held_out_pairs_are_scored_as_the_runs_own_report_has_them(run, tiny_data, tmp_path):
    lines, found, _ = score(run, tiny_data, tmp_path / "s", split="test")
    report = json.loads((run / "report.json").read_text())["pairs"]
    assert found["margin"]["mean"] == pytest.approx(report["margin"]["mean"], abs=1e-3)
    assert found["accuracy"]["mean"] == report["accuracy"]["mean"]
    assert [line["margin"] for line in lines] == pytest.approx(report["margins"], abs=1e-3)


@pytest.mark.parametrize("rows", [IMPLICIT, TEXT, HH, RATED, SHAREGPT, ARENA])
def test_pairs_are_taken_in_the_layouts_that_training_reads(run, rows, tmp_path):
    lines, found, _ = score(run, write(tmp_path / "a.jsonl", rows), tmp_path / "s")
    assert found["scored"] == len(rows) == len(lines) and "margin" in lines[0]


def test_what_cannot_be_scored_is_set_aside_and_all_else_is_scored(run, tmp_path):
    (good,) = pairs(1)
    long = pair("this", "word " * 2100, "Bad.")
    rows = [good | {"chosen": []}, good, good | {"rejected": None}, long, good]
    lines, found, _ = score(run, write(tmp_path / "a.jsonl", rows), tmp_path / "s")
    assert [line.get("reason") for line in lines] == ["empty", None, "missing", "too_long", None]
    assert "positions" in lines[3]["detail"]
    assert found["set_aside"] == {"empty": 1, "missing": 1, "too_long": 1}
    file = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": c} for c in ("b", "", None)])
    lines, found, _ = score(run, file, tmp_path / "t")
    assert [line.get("reason") for line in lines] == [None, "empty", "missing"]
    assert "completion 1" in lines[1]["detail"]
    file = write(tmp_path / "a.jsonl", rows[:1])
    with pytest.raises(Refusal, match=r"no row of .* could be scored; the first as empty"):
        score(run, file, tmp_path / "u")


def test_after_a_kill_it_goes_on_from_the_last_whole_block_to_the_same_bytes(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(scoring, "BLOCK", 4)
    file, to = write(tmp_path / "a.jsonl", pairs(14)), tmp_path / "s"
    score(run, file, to)
    whole, counted = (to / scoring.SCORES).read_bytes(), 0
    (to / scoring.SCORES).unlink()
    lines = scoring.Scoring.lines

    def killed(self, rows, pairs):
        nonlocal counted
        counted += 1
        if counted == 3:
            raise KeyboardInterrupt
        return lines(self, rows, pairs)

    monkeypatch.setattr(scoring.Scoring, "lines", killed)
    with pytest.raises(KeyboardInterrupt):
        score(run, file, to)
    with (to / f"{scoring.SCORES}.part").open("a") as part:
        part.write('{"row": 9, "margin": 1}\n{"row": 10, "mar')  # of a block that is not whole
    score(run, file, to)
    assert (to / scoring.SCORES).read_bytes() == whole
    assert counted == 5  # two blocks, the kill, and the two that were left
    assert "8 rows are scored already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": 3}, "holds scores of another file, run or setting: digest"),
        ({"per_token": True}, r"per_token \(False, now True\)"),
        ({"max_length": 9}, r"max_length \(None, now 9\)"),
    ],
)
def test_a_folder_of_other_scores_is_refused(run, tmp_path, change, says):
    file = write(tmp_path / "a.jsonl", pairs(2))
    score(run, file, tmp_path / "s")
    before = (tmp_path / "s" / scoring.SCORES).read_bytes()
    write(file, pairs(change.pop("rows", 2)))
    with pytest.raises(Refusal, match=says):
        score(run, file, tmp_path / "s", **change)
    assert (tmp_path / "s" / scoring.SCORES).read_bytes() == before


def test_a_folder_of_other_files_is_left_alone(run, tmp_path):
    file = write(tmp_path / "a.jsonl", pairs(2))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/mine.txt").touch()
    with pytest.raises(Refusal, match="holds files that are no scores"):
        score(run, file, tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["mine.txt"]
    with pytest.raises(Refusal, match=r"TO: .*mine.txt is a file: give a folder"):
        score(run, file, tmp_path / "s/mine.txt")


def test_the_selected_pairs_are_a_data_set_with_their_rows_as_they_were(run, tmp_path):
    rows = [row | {"number": i, "subset": "ab"[i % 2]} for i, row in enumerate(pairs(20))]
    rows[3]["chosen"] = []
    file = write(tmp_path / "a.jsonl", rows)
    lines, found, selected = score(run, file, tmp_path / "s", select=0.25, by=["subset"])
    margins = {line["row"] - 1: line["margin"] for line in lines if "margin" in line}
    order = sorted(margins, key=margins.__getitem__)
    assert len(margins) == 19
    read = [json.loads(line) for line in selected.read_text().splitlines()]
    assert read == [rows[i] for i in sorted(order[:5])]
    assert {each["name"]: each["count"] for each in found["by"]["subset"]} == {"a": 10, "b": 9}
    assert len(load_dataset("json", data_files=str(selected), split="train")) == 5
    _, _, selected = score(run, file, tmp_path / "s", select=0.25, largest=True)
    read = [json.loads(line)["number"] for line in selected.read_text().splitlines()]
    assert read == sorted(order[-5:])


def test_six_times_the_rows_take_no_more_memory(run, tmp_path, monkeypatch):
    """Each with 100 kB beside the pair: whoever keeps rows keeps 60 MB of them."""
    monkeypatch.setattr(reading, "BATCH", 50)

    def peak() -> float:
        size = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * size / 1e6

    few = write(tmp_path / "few.jsonl", pairs(100, note="x" * 100_000, of="a"))
    score(run, few, tmp_path / "few", select=0.5, by=["of"])
    before = peak()
    many = write(tmp_path / "many.jsonl", [])
    with many.open("a") as file:
        for _ in range(6):
            file.write(few.read_text())
    score(run, many, tmp_path / "many", select=0.5, by=["of"])
    assert peak() - before < 20


@pytest.mark.parametrize(
    ("rows", "given", "says"),
    [
        ([{"prompt": "a"}], {}, "hold no completion to score"),
        ([], {}, "no rows"),
        (pairs(1), {"by": ["colour"]}, "BY: no column 'colour' in .*, only prompt, chosen"),
        ([{"prompt": "a", "answer": "b"}], {"select": 0.1}, "SELECT= and BY= take pairs"),
        (pairs(1), {"column_mapping": "chosen=good"}, "has no column 'good'"),
    ],
)
def test_what_cannot_be_scored_is_said_in_a_line(run, tmp_path, rows, given, says):
    with pytest.raises(Refusal, match=says):
        score(run, write(tmp_path / "a.jsonl", rows), tmp_path / "s", **given)


def test_the_same_file_by_another_path_is_the_same(run, tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", pairs(2))
    score(run, file, tmp_path / "s")
    score(run, file.rename(tmp_path / "b.jsonl"), tmp_path / "s")
    assert "All of it is scored already" in capsys.readouterr().out


def test_a_conversation_that_the_user_ends_is_no_answer(run, tmp_path):
    said = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Well."}]
    rows = [{"messages": said}, {"messages": said[:1]}]
    (_, line), _, _ = score(run, write(tmp_path / "a.jsonl", rows), tmp_path / "s")
    assert (line["reason"], line["detail"]) == (
        "wrong_role",
        "messages does not end with the assistant",
    )


def test_a_folder_that_cannot_be_made_is_said(run, tmp_path):
    (tmp_path / "file").touch()
    file = write(tmp_path / "a.jsonl", pairs(2))
    with pytest.raises(Refusal, match=r"file/none/s/settings.json cannot be written: .* free"):
        score(run, file, tmp_path / "file/none/s")


def test_a_file_that_is_no_json_is_said_with_its_line(run, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(f"{json.dumps(pairs(1)[0])}\nnonsense\n")
    with pytest.raises(Refusal, match="line 2"):
        score(run, file, tmp_path / "s")


def test_a_run_that_compares_nothing_with_a_reference_implies_no_reward(run, tmp_path, monkeypatch):
    used = command.used(str(run))
    used.recipe.training.loss_type = ["sft"]
    monkeypatch.setattr(command, "used", lambda name: used)
    with pytest.raises(Refusal, match="its policy implies no reward"):
        score(run, write(tmp_path / "a.jsonl", pairs(1)), tmp_path / "s")
