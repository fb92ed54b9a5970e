"""make evaluate SUITE=mt_bench, by stand-ins for the suite's files and a judge of known grades."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from dpo.core.refusal import Refusal
from dpo.evaluation import generations
from dpo.evaluation.contestants import find
from dpo.evaluation.judges.endpoint import UNCLEAR
from dpo.evaluation.published import mt_bench
from dpo.evaluation.published.asking import Judge, before
from dpo.evaluation.published.suite import Contest
from support.checkouts import change_file
from support.endpoint import MODEL, serving
from support.launched import made

FORMS = {
    "single-v1": "ONE {question} | {answer}",
    "single-math-v1": "MATH {question} | {ref_answer_1} | {answer}",
    "single-v1-multi-turn": "SECOND {question_1} {answer_1} {question_2} {answer_2}",
    "single-math-v1-multi-turn": "MATH SECOND {question_1} {ref_answer_1} {answer_1} "
    "{question_2} {ref_answer_2} {answer_2}",
}
GRADES = {"ONE": "It is fine. Rating: [[8]]", "SECOND": "[[4.5]] and not [[1]]"}
GRADES |= {"MATH": "Rating: [9]", "MATH SECOND": "I would rather not say."}
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write of {tea}.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["What is 1 + 1?", "And twice that?"]},
]


def say(text: str) -> str:
    name = next((name for name in sorted(GRADES, key=len)[::-1] if text.startswith(name)), None)
    return GRADES[name] if name else "Yes."


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the files that are read of FastChat."""
    folder = tmp_path / "FastChat" / mt_bench.DATA
    reference = {"question_id": 111, "choices": [{"turns": ["Two.", "Four."]}]}
    forms = [{"name": n, "system_prompt": "Grade.", "prompt_template": f} for n, f in FORMS.items()]
    for name, rows in zip(mt_bench.FILES, (QUESTIONS, forms, [reference]), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "FastChat"


def test_grades_come_to_the_suites_score(checkout, tiny_model, chatty_model):
    given = [f"RUN={chatty_model}", f"AGAINST={tiny_model}", f"PROMPTS={checkout}"]
    given += ["SUITE=mt_bench", f"JUDGE_MODEL={MODEL}"]
    flags = "ARGS=--max_new_tokens 6 --judge_price 10,30"
    with serving(say) as fake:
        result = made("evaluate", *given, f"JUDGE={fake.url}", flags)
        assert result.returncode == 0, result.stderr[-3000:]
        first = len(fake.asked)
        again = made("evaluate", *given, f"JUDGE={fake.url}", flags)
        assert again.returncode == 0 and len(fake.asked) == first + 1  # whether it is there
    assert "To ask: 8 requests" in result.stdout and "at most" in result.stdout
    assert "To ask: 0 requests" in again.stdout
    folder = Path(result.stdout.partition("Written: ")[2].partition("/mt_bench.json")[0])
    found = json.loads((folder / "mt_bench.json").read_text())
    assert found["score"]["policy"]["mean"] == pytest.approx((8 + 4.5 + 9) / 3)
    assert [turn["against"]["mean"] for turn in found["turns"]] == [8.5, 4.5]
    assert found["categories"]["math"]["policy"]["mean"] == 9
    assert found["score"]["difference"]["mean"] == 0
    assert found["left_out"] == {UNCLEAR: 2} and found["cost"]["requests"] == 8
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert lines[1]["policy_grades"] == [9, None] and len(lines[0]["policy"]) == 2
    for side in ("policy", "against"):
        assert f"MATH What is 1 + 1? | Two. | {lines[1][side][0]}" in fake.asked


def test_answers_are_drawn_as_it_prescribes(chatty_model, tmp_path, monkeypatch):
    drawn, draw = [], generations.draw

    def watched(who, model, tokenizer, prompts, settings, *rest):
        drawn.append((settings.temperature, settings.max_new_tokens, prompts))
        return draw(who, model, tokenizer, prompts, settings, *rest)

    monkeypatch.setattr(generations, "draw", watched)
    judge = Judge("http://127.0.0.1:1/v1", MODEL, mt_bench.JUDGED, "gpt-4", None, 1, 1)
    sides = {"policy": find(str(chatty_model))}
    contest = Contest("mt_bench", sides, judge, "cpu", 0, tmp_path)
    said = mt_bench.answers(contest, QUESTIONS, 5)["policy"]
    assert [(heat, cut) for heat, cut, _ in drawn] == [(0, 5), (0, 5), (0.7, 5), (0.7, 5)]
    (second,) = drawn[1][2]
    assert [turn["role"] for turn in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == said[111][0] and second[2]["content"] == "And twice that?"


def test_the_judge_is_asked_in_the_suites_words():
    forms = {n: {"system_prompt": "Grade.", "prompt_template": f} for n, f in FORMS.items()}
    references = {111: {"choices": [{"turns": ["Two.", "Four."]}]}}
    system, user = mt_bench.request(QUESTIONS[1], ["2", "4"], 1, forms, references)
    assert system == {"role": "system", "content": "Grade."}
    asked = "MATH SECOND What is 1 + 1? Two. 2 And twice that? Four. 4"
    assert user == {"role": "user", "content": asked}
    (_, user) = mt_bench.request(QUESTIONS[0], ["{x}", ""], 0, forms, references)
    assert user["content"] == "ONE Write of {tea}. | {x}"


def test_a_rating_is_read_as_fastchat_reads_it():
    said = ("[[7]]", "[3] or [[10]]", "[2.5]", "7 of 10")
    assert [*map(mt_bench.rating_of, said)] == [7, 10, 2.5, None]


def test_the_cost_is_said_before():
    asked = {"k": ("n", [{"role": "user", "content": "x" * 4000}])}
    assert before(asked, 2000, (10, 30)).endswith(
        "1,000 tokens in and 2,000 out at most, $0.07 by these"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"judge": "vader"}, "is judged by an endpoint"),
        ({"prompts": ""}, "git clone https://github.com/lm-sys/FastChat"),
        ({"prompts": "docs"}, "of a checkout of https://github.com/lm-sys/FastChat"),
    ],
)
def test_what_the_suite_lacks_is_said(given, says):
    args = {"judge": "http://127.0.0.1:1/v1", "suite": "mt_bench", "prompts": "", **given}
    with pytest.raises(Refusal, match=says):
        mt_bench.evaluate(Namespace(**args))


QUESTION, FORM, REFERENCE = mt_bench.FILES


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (REFERENCE, lambda text: "", "is empty: clone anew"),
        (REFERENCE, lambda text: "{}\n", "line 1: question_id is not there: clone anew"),
        (REFERENCE, lambda text: text[:-9], "line 1 is no JSON"),
        (REFERENCE, lambda text: "version https://git-lfs", "a pointer of git-lfs"),
        (REFERENCE, lambda text: text.replace("111", "112"), "gpt-4.jsonl lacks 111: clone anew"),
        (REFERENCE, lambda text: 2 * text, "line 2: question_id 111 is that of line 1"),
        (REFERENCE, lambda text: text.replace(', "Four."', ""), r"choices\[0\].turns\[1\] is not"),
        (
            REFERENCE,
            lambda text: '{"question_id": 111, "choices": []}',
            r"choices\[0\] is not there",
        ),
        (QUESTION, lambda text: 2 * text, "line 3: question_id 81 is that of line 1: clone anew"),
        (
            QUESTION,
            lambda text: text.replace("category", "kind", 1),
            "line 1: category is not there",
        ),
        (QUESTION, lambda text: text.replace("question_id", "id"), "question_id is not there"),
        (QUESTION, lambda text: text.replace("81", "[81]"), r"question_id is \[81\], no number or"),
        (
            QUESTION,
            lambda text: text.replace("81", "true"),
            "question_id is true, no number or text",
        ),
        (QUESTION, lambda text: text.replace("turns", "turn"), "turns is not there"),
        (
            QUESTION,
            lambda text: text.replace(', "Shorter."', ""),
            r"line 1: turns\[1\] is not there",
        ),
        (QUESTION, lambda text: text.replace('"Shorter."', "null"), r"turns\[1\] is null, no text"),
        (
            QUESTION,
            lambda text: text.replace('"Shorter."', "2"),
            r"turns\[1\] is 2, no text: clone",
        ),
        (QUESTION, lambda text: text.replace("[", '"ab", "x": ['), 'turns is "ab", no list: clone'),
        (QUESTION, lambda text: text + "[1]\n", r"line 3: it is \[1\], no object: clone anew"),
        (
            QUESTION,
            lambda text: text.replace('"math"', '"Math "'),
            "'Math ', not 'math': clone anew",
        ),
        (QUESTION, lambda text: text.encode("utf-16"), "question.jsonl is no text in UTF-8"),
        (
            FORM,
            lambda text: text.replace("single-math", "x"),
            "lacks single-math-v1, single-math-v1-",
        ),
        (FORM, lambda text: text.replace("system_prompt", "x"), "system_prompt is not there"),
        (
            FORM,
            lambda text: text.replace("{question}", "{query}"),
            "single-v1: .*'query'.*clone anew",
        ),
        (
            FORM,
            lambda text: text.replace("| {answer}", "{"),
            "single-v1: it cannot be filled .Value",
        ),
        (
            FORM,
            lambda text: text.replace("{ref_answer_1}", ""),
            "no place for ref_answer_1.: clone",
        ),
        (
            FORM,
            lambda text: text.replace("{answer_2}", "{answer_2[a]}"),
            "it cannot be filled .Type",
        ),
    ],
)
def test_a_checkout_that_lacks_a_part_is_refused(checkout, name, change, says):
    change_file(checkout / mt_bench.DATA / name, change)
    with pytest.raises(Refusal, match=says) as refused:
        mt_bench.files_of(str(checkout))
    assert "\n" not in str(refused.value)
