"""Pairs made whole, in this process: each kind of judge, and what cannot be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import load_dataset
from transformers import AutoTokenizer

import pairs
from dpo.core.refusal import Refusal
from dpo.evaluation import generations
from dpo.evaluation.judges import endpoint
from dpo.evaluation.judges import rule as rule_file
from dpo.evaluation.judges.known_reward import vader_score
from dpo.models.sampling import Completion
from dpo.pairs import begin, scores
from support.endpoint import MODEL, longer, serving, status
from support.models import other_model, save_reward_model

SAYS = ("A good dog.", "A bad dog.", "A dog, and then some words more.", "A bad dog.", "")


@pytest.fixture(autouse=True)
def kept_here(tmp_path, monkeypatch):
    monkeypatch.setattr(generations, "KEPT", tmp_path / "answers")
    monkeypatch.setattr(scores, "KEPT", tmp_path / "judgements")


@pytest.fixture
def says(monkeypatch):
    """Every model says these, whatever it is asked; the last of five answers is cut."""

    def sample(model, tokenizer, rows, *, progress, **how):
        progress.update(len(rows))
        texts = [SAYS[at % 5] for at in range(len(rows))]
        return [Completion(text, [1] * len(text.split()), text != "") for text in texts]

    monkeypatch.setattr(generations, "sample", sample)


@pytest.fixture
def questions(tmp_path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"Question {n}?", "answer": n % 3} for n in range(7)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def made(folder: Path, prompts: Path, *flags: str) -> dict:
    given = ["--batch_size=5", "--max_new_tokens=6", *flags]
    args = pairs.arguments([f"--prompts={prompts}", f"--to={folder}", *given])
    pairs.check(args)
    begin.begin(args, folder, 0, 1)
    return json.loads((folder / "pairs.json").read_text())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(row: dict) -> tuple[str, str]:
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


def test_the_known_reward_picks_the_best_and_the_worst(tmp_path, questions, tiny_model, says):
    to = tmp_path / "to"
    found = made(to, questions, f"--model={tiny_model}", "--judge=vader", "--test_size=2")
    assert found["pairs"] == {"train": 5, "test": 2} and found["without_pair"] == {}
    assert found["answers"] == {"count": 35, "left_out": {"empty": 7, "repeated": 7}}
    train, test = rows(to / "train.jsonl"), rows(to / "test.jsonl")
    assert not {r["prompt"][0]["content"] for r in train} & {
        r["prompt"][0]["content"] for r in test
    }
    for row in train + test:
        assert answers(row) == ("A good dog.", "A bad dog.")
        assert row["vader_chosen"] == vader_score("A good dog.") > row["vader_rejected"]
    candidates = rows(to / "candidates.jsonl")
    assert [row["row"] for row in candidates] == [*range(1, 8)]
    kept = [(a["text"], a["why"], a["score"] is None) for a in candidates[0]["answers"]]
    assert kept[3:] == [("A bad dog.", "repeated", True), ("", "empty", True)]
    assert not [*to.glob(".prompts*")]


def test_a_rule_is_announced_and_sees_the_row(tmp_path, questions, tiny_model, says, capsys):
    rule = tmp_path / "rule.py"
    rule.write_text(
        "from beside import BONUS\n"
        "def right(prompt, completion, row):\n"
        "    assert prompt.startswith('Question') and prompt == row['prompt']\n"
        "    return len(completion) * (-1) ** row['answer'] * BONUS\n"
    )
    (tmp_path / "beside.py").write_text("BONUS = 2\n")
    to = tmp_path / "to"
    found = made(to, questions, f"--model={tiny_model}", f"--judge={rule}:right", "--test_size=0")
    assert "is your own code, and is run: right(" in capsys.readouterr().out
    assert found["judge"]["kind"] == "rule" and found["judge"]["name"] == "rule.py:right"
    longest = "A dog, and then some words more."
    for n, row in enumerate(rows(to / "train.jsonl")):
        assert (answers(row)[0] == longest) == (n % 3 != 1)
        assert row["score_chosen"] > row["score_rejected"]
    assert not (to / "test.jsonl").exists() and found["pairs"]["test"] == 0


def test_a_drawn_label_is_no_wrong_score(tmp_path, questions, tiny_model, says):
    """So it has columns of another name: lint.py sets aside what contradicts its score."""
    rule = tmp_path / "rule.py"
    rule.write_text("def score(prompt, completion, row):\n    return len(completion)\n")
    how = ("--pick=bradley-terry", "--label_temperature=1000", "--test_size=0")
    made(tmp_path / "to", questions, f"--model={tiny_model}", f"--judge={rule}", *how)
    drawn = rows(tmp_path / "to/train.jsonl")
    wrong = [row for row in drawn if row["reward_chosen"] < row["reward_rejected"]]
    assert 0 < len(wrong) < len(drawn) and "score_chosen" not in drawn[0]


BAD_RULES = {
    "return len(completion) / (row['answer'] - 1)": (
        "raises ZeroDivisionError: division by zero, in line 2 of rule.py",
        6,
    ),
    "return None if row['answer'] == 1 else len(completion)": ("gives None, which is no number", 6),
    "return float('nan') if row['answer'] == 1 else len(completion)": ("gives nan", 6),
    "return 'high' if row['answer'] == 1 else len(completion)": ("gives 'high'", 6),
    "raise SystemExit(3)": ("raises SystemExit: 3", None),
    "return undefined": ("raises NameError", None),
    "pass\n\ndef score(prompt, completion):\n    return 1": ("raises TypeError", None),
    "return {}": ("gives {}, which is no number", None),
}


@pytest.mark.parametrize("body", BAD_RULES)
def test_a_rule_that_fails_is_named_by_its_row(body, tmp_path, questions, tiny_model, says, capsys):
    """Of the two rows with the answer 1 nothing is lost: their answers are there, without score."""
    said, count = BAD_RULES[body]
    rule = tmp_path / "rule.py"
    rule.write_text(f"def score(prompt, completion, row):\n    {body}\n")
    flags = (f"--model={tiny_model}", f"--judge={rule}", "--test_size=0")
    to = tmp_path / "to"
    if count is None:
        with pytest.raises(Refusal, match="no pair to train on comes of 7 prompts"):
            made(to, questions, *flags)
    else:
        found = made(to, questions, *flags)
        assert found["without_pair"] == {"one_answer": 2}
        (why,) = found["answers"]["left_out"].keys() - {"empty", "repeated"}
        assert why.startswith("the rule") and found["answers"]["left_out"][why] == count
    told = [line for line in capsys.readouterr().out.splitlines() if "JUDGE" in line][1:]
    assert len(told) == 1 and said in told[0] and "Question" in told[0]
    assert len(rows(to / "candidates.jsonl")) == 7


def test_a_rule_that_fails_on_all_is_not_asked_for_ever(
    tmp_path, questions, tiny_model, says, monkeypatch
):
    monkeypatch.setattr(rule_file, "GIVEN_UP", 5)
    rule = tmp_path / "rule.py"
    rule.write_text("def score(prompt, completion, row):\n    return row['none']\n")
    with pytest.raises(Refusal, match=r"failed on 5 answers and scored none: .*KeyError: 'none'"):
        made(tmp_path / "to", questions, f"--model={tiny_model}", f"--judge={rule}")
    rule.write_text(
        "def score(prompt, completion, row):\n"
        "    return len(completion) if prompt == 'Question 0?' else None\n"
    )
    made(tmp_path / "to", questions, f"--model={tiny_model}", f"--judge={rule}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def score(", "cannot be run: SyntaxError"),
        ("import nowhere_at_all", "cannot be run: ModuleNotFoundError"),
        ("exit(2)", "cannot be run: SystemExit"),
        ("def other(p, c, r):\n    return 1", "has no function score.*only other"),
    ],
)
def test_a_file_that_is_no_rule_is_refused(text, said, tmp_path, questions, tiny_model):
    rule = tmp_path / "rule.py"
    rule.write_text(text)
    with pytest.raises(Refusal, match=said):
        made(tmp_path / "to", questions, f"--model={tiny_model}", f"--judge={rule}")


def test_a_reward_model_scores_each_answer_once(tmp_path, questions, tiny_model, says, monkeypatch):
    save_reward_model(tmp_path / "reward", AutoTokenizer.from_pretrained(tiny_model))
    flags = (f"--model={tiny_model}", f"--judge={tmp_path / 'reward'}")
    found = made(tmp_path / "to", questions, *flags)
    assert found["judge"]["kind"] == "model" and sum(found["pairs"].values()) == 7
    for row in rows(tmp_path / "to/train.jsonl"):
        assert row["score_chosen"] > row["score_rejected"]
    # Another way of picking asks neither model again.
    for where, name in ((generations, "sample"), (scores.judging.RewardModel, "load")):
        monkeypatch.setattr(where, name, lambda *_, **__: pytest.fail("all is kept"))
    again = made(tmp_path / "all", questions, *flags, "--pick=all")
    assert sum(again["pairs"].values()) == 3 * 7


def test_an_endpoint_compares_every_two_answers(tmp_path, questions, tiny_model, says):
    with serving(longer) as fake:
        flags = (f"--model={tiny_model}", f"--judge={fake.url}", f"--judge_model={MODEL}")
        found = made(tmp_path / "to", questions, *flags, "--judge_price=1,2")
        asked = len(fake.asked)
        made(tmp_path / "again", questions, *flags, "--pick=all")
        assert len(fake.asked) == asked + 1  # whether it is there
    assert asked == 1 + 7 * 3 * 2  # of three answers every two, in both orders
    assert found["judge"] == {"kind": "endpoint", "name": fake.url, "model": MODEL}
    assert found["orders_disagree"] == 0 and found["cost"]["requests"] == 42
    assert found["cost"]["dollars"] == pytest.approx(42 * (100 + 2 * 10) / 1e6)
    for row in rows(tmp_path / "to/train.jsonl"):
        assert answers(row) == ("A dog, and then some words more.", "A bad dog.")
        assert (row["score_chosen"], row["score_rejected"]) == (1.0, 0.0)


def test_verdicts_that_are_not_understood_are_counted(
    tmp_path, questions, tiny_model, says, capsys
):
    with serving(lambda text: longer(text) if "What is 1" in text else "Who knows") as fake:
        flags = (f"--model={tiny_model}", f"--judge={fake.url}", f"--judge_model={MODEL}")
        asked = tmp_path / "asked.txt"
        asked.write_text("What is 1?\nWhat is 2?\nWhat is 10?\n")
        found = made(tmp_path / "to", asked, *flags)
    assert found["undecided"] == {"the verdict is not understood": 3}
    assert "Comparisons without a verdict: 3" in capsys.readouterr().out
    assert "no verdict (3 times the verdict is not" in (tmp_path / "to/README.md").read_text()


def test_an_endpoint_that_prefers_the_first_says_nothing(tmp_path, questions, tiny_model, says):
    with serving(lambda text: "Yes.\nVerdict: A") as fake:
        flags = (f"--model={tiny_model}", f"--judge={fake.url}", f"--judge_model={MODEL}")
        words = r"same score \(7 prompts\).*in 100% of its comparisons the judge went by the places"
        with pytest.raises(Refusal, match=words):
            made(tmp_path / "to", questions, *flags)
    assert (tmp_path / "to/candidates.jsonl").is_file()


def test_an_endpoint_that_is_down_ends_it_and_the_same_command_goes_on(
    tmp_path, questions, tiny_model, says, monkeypatch
):
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    down = [longer] * 8 + [status(503)] * 99
    with serving(lambda text: longer(text) if (each := down.pop(0)) is longer else each) as fake:
        flags = (f"--model={tiny_model}", f"--judge={fake.url}", f"--judge_model={MODEL}")
        with pytest.raises(Refusal, match=r"fails: .*HTTP 503.* the same command goes on"):
            made(tmp_path / "to", questions, *flags)
        assert not (tmp_path / "to/train.jsonl").exists()
        fake.say, before = longer, len(fake.asked)
        made(tmp_path / "to", questions, *flags)
        assert len(fake.asked) - before <= 1 + 42 - 7


def test_an_endpoint_that_fails_on_some_loses_nothing(tmp_path, questions, tiny_model, says):
    def fails_on_two(text: str):
        return status(400) if "Question 2?" in text else longer(text)

    with serving(fails_on_two) as fake:
        flags = (f"--model={tiny_model}", f"--judge={fake.url}", f"--judge_model={MODEL}")
        found = made(tmp_path / "to", questions, *flags)
        assert found["without_pair"] == {"one_answer": 1} and sum(found["pairs"].values()) == 6
        assert found["answers"]["left_out"]["the endpoint answered HTTP 400"] == 3
        fake.say, before = longer, len(fake.asked)
        again = made(tmp_path / "to", questions, *flags)  # the same command
        assert len(fake.asked) == before + 1 + 6 and sum(again["pairs"].values()) == 7


def test_of_a_ladder_the_biggest_is_chosen(tmp_path, questions, tiny_model, monkeypatch, capsys):
    """And no judge is asked. Equally large ones count in the order in which they are named."""
    other_model(tiny_model, tmp_path / "other")

    def sample(model, tokenizer, rows, *, progress, **how):
        name = "first" if model.name_or_path == str(tiny_model) else "second"
        return [Completion(f"I am the {name}", [1, 2], True)] * len(rows)

    monkeypatch.setattr(generations, "sample", sample)
    both = (f"--model={tiny_model} {tmp_path / 'other'}", "--samples=1")
    found = made(tmp_path / "to", questions, *both, "--near_duplicate=1", "--test_size=0")
    assert found["judge"]["kind"] == "ladder" and found["pairs"]["train"] == 7
    for row in rows(tmp_path / "to/train.jsonl"):
        assert answers(row) == ("I am the first", "I am the second")
        assert row.keys() == {"prompt", "chosen", "rejected"}
    sizes = [model["parameters"] for model in found["models"]]
    assert sizes[0] == sizes[1] > 1000
    assert "No judge: an answer of" in capsys.readouterr().out
    sized = {"first": 5, "second": 9}
    whole = begin.Asked.__post_init__

    def larger(self):
        whole(self)
        self.size = sized["second" if "other" in self.who.name else "first"]

    monkeypatch.setattr(begin.Asked, "__post_init__", larger)
    made(tmp_path / "sized", questions, *both, "--near_duplicate=1")
    assert answers(rows(tmp_path / "sized/train.jsonl")[0]) == ("I am the second", "I am the first")


def test_several_seeds_give_several_answers(tmp_path, questions, tiny_model, monkeypatch):
    """Those of the first are found again where a second one is asked for as well."""
    seeds = []
    sample = generations.sample

    def seen(*given, **how):
        seeds.append(how["seed"])
        return [replace(each, finished=True) for each in sample(*given, **how)]

    monkeypatch.setattr(generations, "sample", seen)
    flags = (f"--model={tiny_model}", "--judge=rule.py", "--samples=2", "--near_duplicate=1")
    monkeypatch.chdir(tmp_path)
    Path("rule.py").write_text("def score(prompt, completion, row):\n    return len(completion)\n")
    made(tmp_path / "one", questions, *flags, "--seed", "4")
    assert seeds == [4, 9, 14]  # of 14 answers five at a time
    made(tmp_path / "two", questions, *flags, "--seed", "4", "5")
    assert seeds[3:] == [5, 10, 15]
    one, two = (rows(tmp_path / name / "candidates.jsonl") for name in ("one", "two"))
    for first, both in zip(one, two, strict=True):
        assert [each["seed"] for each in both["answers"]] == [4, 4, 5, 5]
        texts = [[each["text"] for each in row["answers"]] for row in (first, both)]
        assert texts[0] == texts[1][:2] != texts[1][2:]


def test_a_folder_of_other_pairs_is_left_alone(tmp_path, questions, tiny_model, says):
    to = tmp_path / "to"
    flags = (f"--model={tiny_model}", "--judge=vader")
    made(to, questions, *flags)
    before = {path.name: path.read_bytes() for path in to.iterdir() if path.name != ".lock"}
    for other in (["--samples=4"], ["--pick=all"], ["--min_margin=0.1"], ["--first=3"]):
        with pytest.raises(Refusal, match=r"TO: .* holds other pairs: .*give another folder"):
            made(to, questions, *flags, *other)
        after = {p.name: p.read_bytes() for p in to.iterdir() if p.name in before}
        assert after == before
    made(to, questions, *flags)  # the same again
    assert {p.name: p.read_bytes() for p in to.iterdir() if p.name in before} == before
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(Refusal, match=r"holds files that are no pairs .*thesis"):
        made(foreign, questions, *flags)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_splits_have_the_same_columns(tmp_path, tiny_model, says):
    """`datasets` reads no split that has one more than another."""
    rows = [{"prompt": f"Question {n}?"} for n in range(7)]
    rows[3] |= {"chat_template_kwargs": {"enable_thinking": True}}
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    made(tmp_path / "to", path, f"--model={tiny_model}", "--judge=vader", "--test_size=3")
    data = load_dataset(str(tmp_path / "to"))
    assert data["train"].column_names == data["test"].column_names
    given = [*data["train"]["chat_template_kwargs"], *data["test"]["chat_template_kwargs"]]
    assert sorted(given) == [""] * 6 + ['{"enable_thinking": true}']
    flags = (f"--model={tiny_model}", "--judge=vader", "--test_size=3")
    rows[3] = rows[3] | {"chat_template_kwargs": {}}
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    made(tmp_path / "all", path, *flags, '--chat_template_kwargs={"enable_thinking": false}')
    data = load_dataset(str(tmp_path / "all"))
    assert [*data["test"]["chat_template_kwargs"]] == [{"enable_thinking": False}] * 3


def test_without_a_chat_template_nothing_is_asked(tmp_path, questions, tiny_model):
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(Refusal, match="has no chat template"):
        made(tmp_path / "to", questions, f"--model={plain}", "--judge=vader")


def test_all_answers_alike_are_said(tmp_path, questions, tiny_model, monkeypatch):
    alike = [Completion("It is.", [1, 2], True)]
    monkeypatch.setattr(generations, "sample", lambda m, t, rows, **_: alike * len(rows))
    with pytest.raises(Refusal, match=r"fewer than two answers .*the same text as another answer"):
        made(tmp_path / "to", questions, f"--model={tiny_model}", "--judge=vader")
    assert len(rows(tmp_path / "to/candidates.jsonl")) == 7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples=1", "--judge=vader"], "SAMPLES=1 from one model gives one answer"),
        ([], "JUDGE= is missing"),
        (["--temperature=0", "--judge=vader"], "temperature 0 gives the same answer"),
        (["--judge=none.py"], "no file none.py"),
        (["--judge=vader", "--push=mine"], "PUSH=mine: give the data set's name as org/name"),
        (["--judge=vader", "--gpus=two"], "GPUS=two is not a number"),
        (["--judge=vader", "--seed", "1", "1"], "one stands there twice"),
        (["--judge=vader", "--prompts=nope.txt"], "no file nope.txt"),
        (["--judge=vader", "--prompts=smollm2-sentimant"], "did you mean: smollm2-sentiment"),
        (["--judge=vader", "--prompts="], "PROMPTS= is missing"),
        (["--judge=vader", "--pick=bradley-terry", "--label_temperature=0"], "draws nothing"),
    ],
)
def test_what_cannot_be_is_said_at_once(flags, said, questions):
    with pytest.raises(Refusal, match=said):
        pairs.check(pairs.arguments([f"--prompts={questions}", *flags]))
