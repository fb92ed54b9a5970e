"""make evaluate SUITE=arena_hard, by stand-ins for its files and a judge of known labels."""

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from dpo.core.refusal import Refusal
from dpo.evaluation.command import folder_of
from dpo.evaluation.contestants import find
from dpo.evaluation.judges.endpoint import UNCLEAR
from dpo.evaluation.published import arena_checkout, arena_hard, style_control
from dpo.evaluation.published.arena_checkout import points
from dpo.evaluation.published.suite import Contest
from support.checkouts import change_file
from support.endpoint import MODEL, serving
from support.launched import made

HOW = {"temperature": 0.0, "max_tokens": 16000}
CONFIG = r"""
judge_model: gpt-4.1
temperature: 0.0
max_tokens: 16000
regex_patterns:
  - \[\[([AB<>=]+)\]\]
  - \[([AB<>=]+)\]
prompt_template: "ABOUT {QUESTION} A {ANSWER_A} B {ANSWER_B} END"
"""
SETTINGS = """
import somewhere_else

PROMPT = "Judge hard."

JUDGE_SETTINGS = {
    "hard_prompt": {"baseline": "o3", "system_prompt": PROMPT},
    "creative_writing": {"baseline": "gemini", "system_prompt": "Judge arts."},
    "arena-hard-v0.1": {"baseline": "gpt-4-0314", "system_prompt": PROMPT},
}
raise SystemExit("this is never run")
"""
QUESTIONS = [
    {"uid": f"u{at}", "category": category, "prompt": f"Prompt {at} {{of}} these"}
    for at, category in enumerate(["hard_prompt"] * 4 + ["creative_writing"] * 2)
]
# By question what the judge says of the model's answer, as B and then as A.
LABELS = {
    "u0": ("[[B>>A]]", "[[A>B]]"),  # 1 1 1, 1
    "u1": ("First [[A>B]], no: [[A=B]]", "[[B>A]]"),  # 0.5, 0
    "u2": ("[B>A]", "[[a>>b]]"),  # 1, 1 1 1
    "u3": ("[[A>B]]", "I would rather not say."),  # left out, and the other with it
    "u4": ("[[A>>B]]", "[[B>>A]]"),  # six times 0
    "u5": ("[[A<B]]", "[[A=A]]"),  # no such label
}
HARD = (4 + 0.5 + 4) / (4 + 2 + 4)
STYLE = {"token_len": 20, "header_count": {"h1": 1, "h2": 1}, "list_count": {"ordered": 3}}
STYLE |= {"bold_count": {"**": 0, "__": 2}}


def say(text: str) -> str:
    found = re.fullmatch(r"ABOUT Prompt (\d) \{of\} these A (.*) B (.*) END", text, re.DOTALL)
    if not found:
        return "Yes."
    as_b = found[2].startswith("Base ")
    assert as_b != found[3].startswith("Base ")
    return LABELS[f"u{found[1]}"][0 if as_b else 1]


def answer(uid: str, model: str, text: str, **rest) -> str:
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": {"answer": text}},
    ]
    return json.dumps({"uid": uid, "model": model, "messages": messages, **rest}) + "\n"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the files that are read of arena-hard-auto."""
    folder = tmp_path / "arena-hard-auto"
    data = "data/arena-hard-v2.0"
    files = {
        arena_checkout.SETTINGS: SETTINGS,
        "config/arena-hard-v2.0.yaml": CONFIG,
        f"{data}/question.jsonl": "".join(json.dumps(each) + "\n" for each in QUESTIONS),
    }
    for model, category in (("o3", "hard_prompt"), ("gemini", "creative_writing")):
        uids = [each["uid"] for each in QUESTIONS if each["category"] == category]
        lines = [answer(uid, model, f"Base {uid} *", metadata=STYLE) for uid in uids]
        files[f"{data}/model_answer/{model}.jsonl"] = "".join(lines)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def made_up(count: int = 300) -> dict[str, dict[str, tuple[dict, list[str | None]]]]:
    """Models on so many questions: the style of each answer, and what a judge that likes length
    says of it as B and as A beside the baseline's."""
    random, found = np.random.default_rng(5), {}
    skills = {"o3": (0, 1), "policy": (0.3, 1.5), "against": (-0.3, 0.7), "long": (0.5, 1.6)}
    skills |= {"short": (-0.5, 0.7), "mid": (-0.8, 1.1)}
    for model, (skill, length) in skills.items():
        found[model] = {}
        for at in range(count):
            tokens = int(random.uniform(200, 1500) * length)
            headers, listed, bold = (int(random.poisson(tokens / n)) for n in (400, 150, 200))
            style = {"token_len": tokens, "header_count": {"h1": headers, "h2": 0}}
            style |= {"list_count": {"ordered": listed}, "bold_count": {"**": bold, "__": 0}}
            merit = skill + (tokens - found["o3"].get(f"u{at}", [style])[0]["token_len"]) / 600
            labels = []
            for sign in (-1, 1):
                z = sign * merit + random.normal()
                bound = [z > 1.5, z > 0.4, z > -0.4, z > -1.5, True].index(True)
                labels.append(("A>>B", "A>B", "A=B", "B>A", "B>>A")[bound])
            found[model][f"u{at}"] = (
                style,
                [None if random.random() < 0.02 else labels[0], labels[1]],
            )
    return found


def write_models(folder: Path, judge: str, models: dict) -> None:
    """Answers and verdicts as the suite's data set has them."""
    for name in ("model_answer", f"model_judgment/{judge}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for model, of in models.items():
        answers, verdicts = "", ""
        for uid, (style, labels) in of.items():
            answers += answer(uid, model, "Base.", metadata=style)
            games = [label and {"score": label} for label in labels]
            line = {"uid": uid, "category": "hard_prompt", "model": model, "games": games}
            verdicts += json.dumps(line | {"judge": judge, "baseline": "o3"}) + "\n"
        (folder / f"model_answer/{model}.jsonl").write_text(answers)
        if model != "o3":
            (folder / f"model_judgment/{judge}/{model}.jsonl").write_text(verdicts)


def evaluated(checkout, fake, *given: str):
    """What was written, its folder, and what was printed."""
    stated = [f"PROMPTS={checkout}", "SUITE=arena_hard", f"JUDGE_MODEL={MODEL}", *given]
    flags = "ARGS=--max_new_tokens 6 --judge_price 2,8"
    result = made("evaluate", *stated, f"JUDGE={fake.url}", flags)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = Path(result.stdout.partition("Written: ")[2].partition("/arena_hard.json")[0])
    return json.loads((folder / "arena_hard.json").read_text()), folder, result.stdout


def test_labels_come_to_the_suites_score(checkout, tiny_model, chatty_model):
    given = f"RUN={chatty_model}", f"AGAINST={tiny_model}"
    with serving(say, HOW) as fake:
        found, folder, said = evaluated(checkout, fake, *given)
        assert len(fake.asked) == 1 + 24
        _, _, again = evaluated(checkout, fake, *given)
        assert len(fake.asked) == 2 + 24
    assert "To ask: 24 requests" in said and f"{24 * 16000:,} out at most, $" in said
    assert "To ask: 0 requests" in again
    hard, creative = (found["score"][name] for name in ("hard_prompt", "creative_writing"))
    assert hard["policy"]["mean"] == pytest.approx(HARD) and hard["policy"]["judged"] == 3
    assert hard["policy"]["low"] < HARD < hard["policy"]["high"]
    assert hard["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert creative["against"]["mean"] == 0 and creative["against"]["judged"] == 1
    assert found["left_out"] == {UNCLEAR: 4} and found["temperature"] == 0
    assert found["baselines"] == {"hard_prompt": "o3", "creative_writing": "gemini"}
    assert "A part of the suite: 6 of its 750 questions" in said
    assert "Published figures are by gpt-4.1" in said
    assert (
        "Style is not controlled: it takes other models' answers with verdicts of fake-judge"
        in said
    )
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert lines[2]["policy_labels"] == ["B>A", "A>>B"] and lines[3]["policy_labels"][1] is None
    asked = [text for text in fake.asked if "Prompt 1" in text]
    for side in ("policy", "against"):
        assert f"ABOUT Prompt 1 {{of}} these A Base u1 * B {lines[1][side]} END" in asked
        assert f"ABOUT Prompt 1 {{of}} these A {lines[1][side]} B Base u1 * END" in asked


def test_how_much_a_label_counts():
    assert points("A>B", "A>B") == [0, 1]
    assert points("A>>B", "A=B") == [0, 0, 0, 0.5]
    assert points("B>>A", "B>>A") == [1, 1, 1, 0, 0, 0]
    assert points("A<<B", "B<A") == [1, 1, 1, 1]
    assert points(None, "A>B") == points("A>B", "A>>>B") == []


def test_a_label_is_read_as_the_suite_reads_it():
    label = arena_hard.label_by([r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]"])
    said = ("[[A>B]] or [[B>>A]]", "[A=B] then [[b>a]]", "[A>B]", "A>B", "[[A>>>B]]")
    assert [*map(label, said)] == ["B>>A", "B>A", "A>B", None, None]


def test_differences_are_of_what_is_judged_of_both():
    battles = {"policy": {"u0": [1, 1], "u1": [0.5], "u2": []}, "against": {"u0": [0], "u2": [1]}}
    battles["against"]["u1"] = [1, 1, 1]
    questions = [{"uid": f"u{at}", "category": "c"} for at in range(3)]
    found = arena_hard.scores(questions, battles)["c"]
    assert found["policy"]["mean"] == pytest.approx(2.5 / 3)
    assert found["against"]["mean"] == pytest.approx(4 / 5)
    assert found["difference"]["mean"] == pytest.approx(2.5 / 3 - 3 / 4)
    assert found["difference"]["low"] < found["difference"]["high"]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("utils/judge_utils.py", None, "judge_utils.py is not there.*git clone https://github"),
        ("utils/judge_utils.py", lambda text: "x = 1", "'JUDGE_SETTINGS'"),
        ("utils/judge_utils.py", lambda text: text.replace("PROMPT}", "get()}"), "malformed"),
        ("utils/judge_utils.py", lambda text: text[:-30] + "(", "SyntaxError"),
        (
            "utils/judge_utils.py",
            lambda text: text.replace("hard_prompt", "x"),
            "py: hard_prompt is",
        ),
        (
            "utils/judge_utils.py",
            lambda text: text.replace('"Judge arts."', "None"),
            "judge_utils.py: creative_writing.system_prompt is null, no text: clone anew",
        ),
        ("config/arena-hard-v2.0.yaml", lambda text: text.replace("max_tokens", "x"), "max_tokens"),
        (
            "config/arena-hard-v2.0.yaml",
            lambda text: text.replace("16000", "many"),
            'v2.0.yaml: max_tokens is "many", no whole number: clone anew',
        ),
        (
            "config/arena-hard-v2.0.yaml",
            lambda text: text.replace("([AB<>=]+)", "([AB<>=]+"),
            r"regex_patterns: .* reads no label \(.*: clone anew",
        ),
        (
            "config/arena-hard-v2.0.yaml",
            lambda text: text.replace("([AB<>=]+)", "(A)|(B)"),
            r"regex_patterns: .* reads no label \(it has several groups\)",
        ),
        (
            "config/arena-hard-v2.0.yaml",
            lambda text: re.sub(r"regex_patterns:\n.*\n.*\n", "regex_patterns: A\n", text),
            'regex_patterns is "A", no list',
        ),
        (
            "config/arena-hard-v2.0.yaml",
            lambda text: text.replace("{ANSWER_B}", "{ANSWER_A}"),
            "prompt_template: it cannot be filled .no place for ANSWER_B.: clone anew",
        ),
        (
            "config/arena-hard-v2.0.yaml",
            lambda text: text.replace(" END", " {"),
            "cannot be filled",
        ),
        ("config/arena-hard-v2.0.yaml", lambda text: text.encode("utf-16"), "UnicodeDecodeError"),
        ("config/arena-hard-v2.0.yaml", lambda text: text.replace("{QUESTION}", "{Q}"), "'Q'"),
        ("question.jsonl", None, "question.jsonl is not there"),
        ("question.jsonl", lambda text: text[:-9], "line 6 is no JSON"),
        ("question.jsonl", lambda text: text.replace('"uid"', '"id"'), "line 1: uid is not there"),
        (
            "question.jsonl",
            lambda text: text.replace('"u3"', '"u1"'),
            "question.jsonl, line 4: uid u1 is that of line 2: clone anew",
        ),
        (
            "question.jsonl",
            lambda text: text.replace('"u1"', "[1]"),
            r"line 2: uid is \[1\], no text",
        ),
        ("question.jsonl", lambda text: "[]\n" + text, r"line 1: it is \[\], no object"),
        (
            "question.jsonl",
            lambda text: re.sub('"Prompt 4.*?"', "null", text),
            "line 5: prompt is null, no text: clone anew",
        ),
        ("question.jsonl", lambda text: text.encode("utf-16"), "is no text in UTF-8"),
        (
            "model_answer/o3.jsonl",
            lambda text: text.replace('"Base u2 *"', "null"),
            "o3.jsonl has no answer to u2: clone anew",
        ),
        ("model_answer/o3.jsonl", lambda text: text.replace('"Base u2 *"', "7"), "no answer to u2"),
        ("model_answer/o3.jsonl", lambda text: text.replace('"u2"', "[2]"), "no answer to u2"),
        ("model_answer/o3.jsonl", None, "o3.jsonl is not there, the answers of a baseline"),
        ("model_answer/o3.jsonl", lambda text: text[:-9], "line 4 is no JSON"),
        ("model_answer/o3.jsonl", lambda text: text.split("\n")[0], "has no answer to u1"),
        ("model_answer/o3.jsonl", lambda text: text.replace('"answer"', '"x"'), "no answer to u0"),
        ("model_answer/o3.jsonl", lambda text: "version https://git-lfs", "a pointer of git-lfs"),
    ],
)
def test_a_checkout_that_lacks_a_part_is_refused(checkout, name, change, says):
    path = checkout / name
    path = (
        path if "/" in name and path.parent.is_dir() else checkout / "data/arena-hard-v2.0" / name
    )
    change_file(path, change)
    with pytest.raises(Refusal, match=says) as refused:
        arena_checkout.read(str(checkout), "arena_hard")
    assert "\n" not in str(refused.value)


def test_the_older_version_lies_in_its_own_folder(checkout):
    with pytest.raises(Refusal, match=r"arena-hard-v0.1.yaml, .*question.jsonl are not there"):
        arena_checkout.read(str(checkout), "arena_hard_v0.1")


def test_what_the_suite_lacks_is_said():
    args = {"judge": "vader", "suite": "arena_hard", "prompts": ""}
    with pytest.raises(Refusal, match="SUITE=arena_hard is judged by an endpoint"):
        arena_hard.evaluate(Namespace(**args))


def test_marks_outside_of_code_are_counted():
    text = "# Head\n####### none\n- one\n 2. two\n**bold** and __too__ but * not *\n"
    text += "```\n# code\n- code **code**\n```\n## End\n"
    assert style_control.marks_of(text) == [2, 2, 2]
    line = {"metadata": STYLE}
    assert style_control.known(line) == [20, 2, 3, 2]


@pytest.fixture
def many(checkout, monkeypatch) -> tuple:
    """The suite with 300 questions, its other models, and both sides' answers and verdicts. An
    answer is its style, written out."""
    folder, models = checkout / "data/arena-hard-v2.0", made_up()
    asked = [{"uid": uid, "category": "hard_prompt", "prompt": "?"} for uid in models["o3"]]
    (folder / "question.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    sides = {side: models.pop(side) for side in ("policy", "against")}
    write_models(folder, "judge", models)
    suite = arena_checkout.read(str(checkout), "arena_hard")
    said = {
        side: {u: json.dumps(style) for u, (style, _) in of.items()} for side, of in sides.items()
    }
    battles = {
        side: {u: points(*both) for u, (_, both) in of.items()} for side, of in sides.items()
    }
    known = style_control.known
    monkeypatch.setattr(
        style_control, "style_of", lambda text: known({"metadata": json.loads(text)})
    )
    return suite, style_control.others_of(suite, "judge"), said, battles


def test_scores_with_and_without_style_are_the_suites_own(many):
    """Of the same files, show_result.py at commit 196f6b8 printed these (in percent, over 100
    resamples of its own); with `-f markdown length` those of `styled`."""
    suite, others, said, battles = many
    plain = {"policy": 83.9, "against": 23.4}
    styled = {"policy": 75.9, "against": 37.6}  # the means of three runs, 0.4 apart at most
    scores = arena_hard.scores(suite.questions, battles)["hard_prompt"]
    found = style_control.controlled(suite, others, said, battles)["hard_prompt"]
    for side in ("policy", "against"):
        assert 100 * scores[side]["mean"] == pytest.approx(plain[side], abs=0.3)
        assert 100 * found[side]["mean"] == pytest.approx(styled[side], abs=0.4)
        assert found[side]["low"] < found[side]["mean"] < found[side]["high"]
    assert found["others"] == 3
    alike = {"policy": others.styles["mid"]}, {"policy": others.battles["mid"]}
    named = style_control.Others(others.styles | alike[0], others.battles | alike[1])
    again = style_control.controlled(suite, named, said, battles)["hard_prompt"]
    assert again["policy"]["mean"] == pytest.approx(found["policy"]["mean"], abs=1e-3)
    assert found["difference"]["mean"] == pytest.approx(
        found["policy"]["mean"] - found["against"]["mean"]
    )


def test_what_style_control_lacks_is_said(many, checkout, monkeypatch):
    suite, others, said, battles = many
    assert "verdicts of somebody" in style_control.others_of(suite, "somebody").lacks

    def lacking(text):
        raise ImportError("No module named 'tiktoken'")

    monkeypatch.setattr(style_control, "style_of", lacking)
    found = style_control.controlled(suite, others, said, battles)
    assert "No module named 'tiktoken'" in found["lacks"]
    assert "requirements-arena.txt" in found["lacks"]
    path = suite.folder / "model_judgment/judge/mid.jsonl"
    twice = {"model": "mid", "uid": "u0", "games": [{"score": ["A>B"]}, {"score": "A>B"}]}
    for line in ({"model": "mid", "uid": "u0"}, twice):
        path.write_text(json.dumps(line))
        with pytest.raises(Refusal, match=r"mid.jsonl, line 1 is no verdict"):
            style_control.others_of(suite, "judge")
    path.unlink()
    whole = suite.baseline["u0"].pop("metadata")
    bare = suite.baseline["u0"]
    for metadata in ({}, {"metadata": None}, {"metadata": whole | {"token_len": "many"}}):
        suite.baseline["u0"] = bare | metadata
        lacks = style_control.others_of(suite, "judge").lacks
        assert "the style of the baseline's answers" in lacks


def test_a_model_that_loses_every_prompt_has_an_interval():
    questions = [{"uid": str(at), "category": "hard_prompt"} for at in range(10)]
    battles = {side: {each["uid"]: [0, 0] for each in questions} for side in ("policy", "against")}
    found = arena_hard.scores(questions, battles)["hard_prompt"]["policy"]
    assert found["mean"] == found["low"] == 0 and 0.2 < found["high"] < 0.4


def test_a_folder_that_takes_nothing_is_said_before_an_answer_is_drawn(tiny_model, tmp_path):
    flags = {"run": str(tiny_model), "against": str(tiny_model), "suite": "arena_hard", "seed": 1}
    flags |= {"limit": 2, "judge": "http://127.0.0.1:1/v1", "judge_model": "", "prompts": ""}
    args = Namespace(**flags, skip_pairs=False)
    (folder := folder_of(args, *map(find, (args.run, args.against)))).mkdir(parents=True)
    (folder / "judgements.jsonl").mkdir()
    with pytest.raises(Refusal, match=r"judgements.jsonl cannot be written: .*Is a directory"):
        Contest.of(args, None)
    shutil.rmtree(folder)
