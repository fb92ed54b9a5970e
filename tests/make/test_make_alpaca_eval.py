"""make evaluate SUITE=alpaca_eval, by stand-ins for its files and a judge of known sureness."""

import json
import math
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from dpo.core.refusal import Refusal
from dpo.evaluation.published import alpaca_eval, length_control
from dpo.evaluation.published.asking import Judge, Messages
from dpo.evaluation.published.suite import Contest
from support.checkouts import change_file
from support.endpoint import MODEL, completion, serving, status, weighed
from support.launched import made

HOW = {"temperature": 1, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}
CONFIG = """
weighted_alpaca_eval_gpt4_turbo:
  prompt_template: "clf/clf.txt"
  completions_kwargs:
    model_name: "gpt-4-1106-preview"
    max_tokens: 1
    temperature: 1
    logprobs: true
    top_logprobs: 5
  completion_parser_kwargs:
    numerator_token: "m"
    denominator_tokens: ["m", "M"]
"""
TEMPLATE = """<|im_start|>system
Judge.
<|im_end|>
<|im_start|>user
ABOUT {instruction} FIRST {output_1} SECOND {output_2} END
<|im_end|>"""
ROWS = [
    {"instruction": f"{word} of {{output_2}} tea.", "output": f"GPT-4 Turbo on {word}."}
    for word in ("Write", "Sing", "Tell", "Think", "Ask", "Read")
]
# How sure the judge is of the model's answer, by instruction: of the last it names neither.
SURE = [0.9, 0.3, 0.8, 0.25, 0.5, None]


def say(text: str) -> dict | str:
    at = next(
        (n for n, row in enumerate(ROWS) if f"ABOUT {row['instruction']} FIRST" in text), None
    )
    if at is None or SURE[at] is None:
        return weighed("Yes", {"Yes": -0.1, "No": -3.0})
    first = f"FIRST {ROWS[at]['output']} SECOND" in text  # the baseline stands there
    p = 1 - SURE[at] if first else SURE[at]
    # What else is likely takes no part: together the two have a half.
    top = {"The": math.log(0.4), "m": math.log(p / 2), "M": math.log((1 - p) / 2)}
    return weighed("The", top)


def gamed(count: int) -> str:
    """A table as that of the data set: two models on each instruction."""
    header = "model,index,instruction_difficulty,std_delta_len,preference,not_gamed_baseline"
    rows = [
        f"{model},{at},{(at % 5) - 2},{sign * (1 + at % 3) / 2},{0.5 + sign * 0.1},False"
        for model, sign in (("concise", -1), ("verbose", 1))
        for at in range(count)
    ]
    return "\n".join([header, *rows]) + "\n"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the files that are read of alpaca_eval, and of its data set."""
    folder = tmp_path / "alpaca_eval"
    files = {
        alpaca_eval.ANNOTATED: CONFIG,
        alpaca_eval.CONFIGS / "clf/clf.txt": TEMPLATE,
        alpaca_eval.BASELINE: json.dumps(ROWS),
        alpaca_eval.CALIBRATION: gamed(len(ROWS)),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def evaluated(checkout, fake, *given: str, flags="--max_new_tokens 6 --judge_price 10,30"):
    """What was written, its folder, and what was printed."""
    stated = [f"PROMPTS={checkout}", "SUITE=alpaca_eval", f"JUDGE_MODEL={MODEL}", *given]
    result = made("evaluate", *stated, f"JUDGE={fake.url}", f"ARGS={flags}")
    assert result.returncode == 0, result.stderr[-3000:]
    folder = Path(result.stdout.partition("Written: ")[2].partition("/alpaca_eval.json")[0])
    return json.loads((folder / "alpaca_eval.json").read_text()), folder, result.stdout


def test_sureness_comes_to_the_suites_win_rates(checkout, tiny_model, chatty_model):
    given = f"RUN={chatty_model}", f"AGAINST={tiny_model}"
    with serving(say, HOW) as fake:
        found, folder, said = evaluated(checkout, fake, *given)
        assert len(fake.asked) == 1 + 12
        _, _, again = evaluated(checkout, fake, *given)
        assert len(fake.asked) == 2 + 12  # whether it is there
        # An answer that is the baseline's own is a tie, and nobody is asked.
        lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        same = [
            row | {"output": lines[at]["policy"]} if at == 0 else row for at, row in enumerate(ROWS)
        ]
        (checkout / alpaca_eval.BASELINE).write_text(json.dumps(same))
        tied, _, _ = evaluated(checkout, fake, *given)
    assert "To ask: 12 requests" in said and "12 out at most, $" in said
    assert "To ask: 0 requests" in again
    known = [sure for sure in SURE if sure is not None]
    rates = found["win_rate"]
    assert rates["policy"]["mean"] == pytest.approx(np.mean(known))
    assert rates["policy"]["low"] < rates["policy"]["mean"] < rates["policy"]["high"]
    assert rates["difference"]["mean"] == pytest.approx(0)
    assert found["left_out"] == {alpaca_eval.NEITHER: 2} and found["cost"]["requests"] == 12
    controlled = found["length_controlled_win_rate"]
    for side in ("policy", "against"):
        assert 0 < controlled[side]["low"] <= controlled[side]["high"] < 1
    assert found["temperature"] == 0.7 and found["judge"]["max_tokens"] == 1
    assert [line["policy_preferred"] for line in lines] == [
        pytest.approx(s) if s else None for s in SURE
    ]
    assert tied["win_rate"]["policy"]["mean"] == pytest.approx(np.mean([0.5, *known[1:]]))
    assert "A part of the suite: 6 of its 805 questions" in said
    assert "Published figures are by gpt-4-1106-preview" in said
    length = np.mean([len(line["policy"]) for line in lines])
    assert found["length"]["policy"] == pytest.approx(length)


def test_an_answer_stands_where_the_suite_puts_it():
    """As alpaca_eval 0.6.6 draws it (RandomSwitchTwoColumnsProcessor, seed 0)."""
    drawn = [alpaca_eval.swapped(row["instruction"]) for row in ROWS]
    assert {*drawn} == {True, False}
    asked: Messages = alpaca_eval.turns_of(TEMPLATE)
    system, user = alpaca_eval.request(asked, "{output_1}?", "one {instruction}", "two")
    assert system == {"role": "system", "content": "Judge."}
    assert user["content"] == "ABOUT {output_1}? FIRST one {instruction} SECOND two END"


def test_a_preference_is_the_share_of_two_tokens():
    reading = alpaca_eval.preference_by("m", "M")

    def read(answer: dict) -> dict:
        from openai.types.chat import ChatCompletion

        return reading(ChatCompletion.model_validate(answer))

    top = {"M": math.log(0.6), "m": math.log(0.2), "Both": math.log(0.1)}
    assert read(weighed("M", top))["verdict"] == pytest.approx(0.25)
    assert read(weighed("m", {"m": -0.1}))["verdict"] == 1  # the other has no part
    assert read(weighed("Both", {"Both": -0.1})) | {"tokens": 0, "said": 0} == {
        **{"verdict": None, "said": 0, "tokens": 0, "reason": alpaca_eval.NEITHER}
    }
    assert read(completion("m"))["reason"] == alpaca_eval.NONE_GIVEN


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("Yes.", "answers without log-probabilities"),
        (
            status(400, '{"error": {"message": "logprobs is not supported"}}'),
            "logprobs is not supported",
        ),
        (status(401), "401"),
    ],
)
def test_a_judge_without_log_probabilities_is_refused_before_it_costs(
    checkout, tiny_model, chatty_model, answer, says
):
    with serving(lambda text: answer, HOW) as fake:
        args = {"judge": fake.url, "judge_model": MODEL, "judge_price": "", "limit": None}
        args |= {"suite": "alpaca_eval", "prompts": str(checkout), "judge_parallel": 1}
        args |= {"judge_timeout": 5, "run": str(chatty_model), "against": str(tiny_model)}
        args |= {"seed": None, "skip_pairs": False}
        with pytest.raises(Refusal, match=says) as refused:
            alpaca_eval.evaluate(Namespace(**args))
        assert "\n" not in str(refused.value) and len(fake.asked) <= 2


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (alpaca_eval.ANNOTATED, None, "configs.yaml is not there.*git clone https://github"),
        (alpaca_eval.ANNOTATED, lambda text: text.replace("model_name", "name"), "model_name is"),
        (alpaca_eval.ANNOTATED, lambda text: "other: {}", "is not as it was at commit"),
        (alpaca_eval.CONFIGS / "clf/clf.txt", None, "No such file.*clone anew"),
        (alpaca_eval.CONFIGS / "clf/clf.txt", lambda text: text[:40], "no prompt with instruction"),
        (alpaca_eval.BASELINE, lambda text: text[:-5], "is no JSON .*clone anew"),
        (alpaca_eval.ANNOTATED, lambda text: "[]", "is not as it was at commit"),
        (
            alpaca_eval.ANNOTATED,
            lambda text: text.replace("max_tokens: 1", "max_tokens: many"),
            'configs.yaml: completions_kwargs.max_tokens is "many", no whole number: clone anew',
        ),
        # The turn with all places is not closed.
        (alpaca_eval.CONFIGS / "clf/clf.txt", lambda text: text[:-5], "no prompt with instruction"),
        (alpaca_eval.BASELINE, lambda text: "[]", r"json: rows\[0\] is not there: clone anew"),
        (alpaca_eval.BASELINE, lambda text: "null", "rows is null, no list"),
        (alpaca_eval.BASELINE, lambda text: '["a"]', r'rows\[0\] is "a", no object'),
        (
            alpaca_eval.BASELINE,
            lambda text: text.replace('"output"', '"out"', 1),
            r"rows\[0\].output is not there: clone anew",
        ),
        (
            alpaca_eval.BASELINE,
            lambda text: text.replace(json.dumps(ROWS[1]["output"]), "null"),
            r"rows\[1\].output is null, no text: clone anew",
        ),
        (
            alpaca_eval.BASELINE,
            lambda text: text.replace(json.dumps(ROWS[5]["instruction"]), "7"),
            r"rows\[5\].instruction is 7, no text",
        ),
        (alpaca_eval.BASELINE, lambda text: text.encode("utf-16"), "is no text in UTF-8"),
        (alpaca_eval.CALIBRATION, lambda text: text.encode("utf-16"), "no table with index.*anew"),
        (
            alpaca_eval.CALIBRATION,
            lambda text: text.replace(",0.6,", ",1.6,"),
            "in row 7 no number, or no preference from 0 to 1: download it anew",
        ),
        (
            alpaca_eval.CALIBRATION,
            lambda text: text.replace(",-1.5,", ",inf,"),
            "in row 3 no number",
        ),
        (
            alpaca_eval.CALIBRATION,
            lambda text: re.sub(",0.[46],", ",,", text),
            "has no preference from 0 to 1",
        ),
        (alpaca_eval.CALIBRATION, None, "lacks df_gamed.csv.*hf download tatsu-lab/alpaca_eval"),
        (alpaca_eval.CALIBRATION, lambda text: "", "no table with index"),
        (alpaca_eval.CALIBRATION, lambda text: text[:-20], "no table with index"),
        (alpaca_eval.CALIBRATION, lambda text: text.replace("preference", "x"), "'preference'"),
        (alpaca_eval.CALIBRATION, lambda text: gamed(4), "lacks 2 of 6 instructions"),
    ],
)
def test_a_checkout_that_lacks_a_part_is_refused(checkout, name, change, says):
    path = checkout / name
    change_file(path, change)
    with pytest.raises(Refusal, match=says) as refused:
        alpaca_eval.read(str(checkout))
    assert "\n" not in str(refused.value)


def test_what_failed_is_left_out_and_asked_again_alone(tmp_path):
    judge = Judge("", MODEL, HOW, "gpt-4-1106-preview", None, 1, 5)
    requests = {
        ("policy", at): alpaca_eval.request(
            alpaca_eval.turns_of(TEMPLATE), row["instruction"], row["output"], "Mine."
        )
        for at, row in enumerate(ROWS)
    }
    reading = alpaca_eval.preference_by("m", "M")
    refused = status(400, '{"error": {"message": "too long"}}')

    def faulty(text: str):
        return refused if "ABOUT Sing" in text else completion("m") if "Tell" in text else say(text)

    with serving(faulty, HOW) as fake:
        judge.url = fake.url
        contest = Contest("alpaca_eval", {}, judge, "cpu", 0, tmp_path)
        found, asking = contest.verdicts(requests, reading)
        assert {at for _, at in found} == {0, 3, 4} and len(fake.asked) == 6
        assert asking["left_out"] == {
            "the endpoint answered HTTP 400": 1,
            alpaca_eval.NONE_GIVEN: 1,
            alpaca_eval.NEITHER: 1,
        }
        fake.say = say
        found, asking = contest.verdicts(requests, reading)
        assert {at for _, at in found} == {0, 1, 3, 4} and len(fake.asked) == 7
        fake.say = lambda text: status(401)
        requests = {("against", 0): requests["policy", 0][1:]}
        with pytest.raises(Refusal, match=r"refuses: .*401.*goes on from there"):
            contest.verdicts(requests, reading)


def test_what_a_judge_has_said_and_not_as_it_should_is_asked_again_without_its_file(tmp_path):
    judge = Judge("", MODEL, HOW, "gpt-4-1106-preview", None, 1, 5)
    contest = Contest("alpaca_eval", {}, judge, "cpu", 0, tmp_path)
    reading = alpaca_eval.preference_by("m", "M")
    requests = {
        (side, 0): [{"role": "user", "content": "Which?"}] for side in ("policy", "against")
    }
    with serving(lambda text: weighed("m", {"m": 1000.0}), HOW) as fake:
        judge.url = fake.url
        with pytest.raises(Refusal, match=r"no verdict: .*judgements.jsonl away, and it is asked"):
            contest.verdicts(requests, reading)
        (tmp_path / "judgements.jsonl").unlink()
        fake.say = lambda text: weighed("m", {"m": -0.1})
        for _ in range(2):  # what both answers share is paid once, however often it is counted
            found, asking = contest.verdicts(requests, reading)
            assert len(found) == 2 and asking["cost"]["requests"] == 1


@pytest.mark.parametrize(
    "suite, flag",
    [
        ("mt_bench", "--temperature=0"),
        ("mt_bench", "--samples=3"),
        ("alpaca_eval", "--suite_limit=2"),
        ("arena_hard", "--skip_pairs"),
    ],
)
def test_what_a_suite_sets_itself_is_refused(suite, flag):
    result = made("evaluate", "RUN=x/y", f"SUITE={suite}", f"ARGS={flag}")
    name = flag[2:].partition("=")[0]
    assert result.returncode and f"SUITE={suite}: {name}: the suite sets this" in result.stderr


def test_suites_are_asked_alone(chatty_model, tiny_model):
    with serving(lambda text: "Yes.") as fake:
        given = [f"RUN={chatty_model}", f"AGAINST={tiny_model}", f"JUDGE={fake.url}"]
        result = made(
            "evaluate", *given, f"JUDGE_MODEL={MODEL}", "ARGS=--suite mt_bench,alpaca_eval"
        )
    assert result.returncode and "mt_bench is asked alone" in result.stderr


def made_up(seed: int, count: int, skill: float, bias: float) -> tuple:
    """Preferences that depend on length, the lengths, and a table as that of the data set."""
    random = np.random.default_rng(seed)
    difficulty = random.normal(size=count).round(6)
    baseline = random.integers(500, 3000, size=count)
    most = 2.5 if bias > 1 else 1.6
    lengths = (baseline * random.uniform(0.3, most, size=count)).astype(int)
    longer = lengths - baseline
    z = skill + 0.5 * difficulty + bias * np.tanh(longer / longer.std(ddof=1))
    preferred = (1 / (1 + np.exp(-z - random.normal(size=count)))).round(6)
    rows = ["model,index,instruction_difficulty,std_delta_len,preference,not_gamed_baseline"]
    for model, sign in (("concise", -1), ("verbose", 1)):
        apart = (sign * random.uniform(0.2, 2, size=count)).round(6)
        z = 0.7 * difficulty + np.tanh(apart) + random.normal(size=count)
        theirs = (1 / (1 + np.exp(-z))).round(6)
        each = zip(range(count), difficulty, apart, theirs, strict=True)
        rows += [f"{model},{at},{hard},{delta},{p},False" for at, hard, delta, p in each]
    return preferred, baseline - lengths, "\n".join(rows)


@pytest.mark.parametrize(
    ("case", "rate"),
    [
        ((1, 805, 0.0, 0.8), 49.20504),  # the penalty leaves no coefficient of the model's own
        ((2, 120, 1.0, 2.0), 68.51298),  # its answers are much longer
        ((3, 300, -5.0, 0.5), 1.02958),  # it loses nearly always
    ],
)
def test_lengths_are_controlled_as_the_suites_package_controls_them(case, rate, tmp_path):
    """`rate`, in percent, is what get_length_controlled_winrate of alpaca_eval 0.6.6, with
    scikit-learn 1.9.1, made of the same preferences, lengths and table."""
    preferred, shorter, table = made_up(*case)
    (tmp_path / "df_gamed.csv").write_text(table)
    by = length_control.read(tmp_path / "df_gamed.csv", len(preferred))
    sides = {"policy": preferred, "against": preferred[::-1]}
    found = length_control.both(sides, {"policy": shorter, "against": shorter[::-1]}, by)
    assert 100 * found["policy"]["mean"] == pytest.approx(rate, abs=0.005)
    assert found["policy"]["low"] < found["policy"]["mean"] < found["policy"]["high"]
    apart = found["policy"]["mean"] - found["against"]["mean"]
    assert found["difference"]["mean"] == pytest.approx(apart)


def test_what_is_not_judged_leaves_the_length_controlled_rate_to_the_others(tmp_path):
    preferred, shorter, table = made_up(4, 200, 0.5, 1.0)
    (tmp_path / "df_gamed.csv").write_text(table)
    by = length_control.read(tmp_path / "df_gamed.csv", len(preferred))
    some = np.where(np.arange(200) % 10 == 0, np.nan, preferred)
    sides = {"policy": some, "against": np.full(200, np.nan)}
    found = length_control.both(sides, dict.fromkeys(sides, shorter), by)
    whole = length_control.both(dict.fromkeys(sides, preferred), dict.fromkeys(sides, shorter), by)
    assert found["policy"]["mean"] == pytest.approx(whole["policy"]["mean"], abs=0.03)
    assert found["against"] is None and found["difference"] is None


def test_the_fit_is_where_its_slopes_balance_the_penalty():
    """Of the l1 penalty no coefficient that is not zero has a slope but ±1."""
    random = np.random.default_rng(1)
    x = random.normal(size=(3, 200, 3))
    y, w = random.uniform(size=(3, 200)), random.uniform(0.1, 1, size=(3, 200))
    for strength in (1e-2, 1, 1e3):
        found = length_control.fit(x, y, w, strength)
        p = length_control.sigmoid(np.einsum("rnk,rk->rn", x, found))
        slope = strength * np.einsum("rnk,rn->rk", x, w * (p - y))
        free = found != 0
        assert np.abs(slope + np.sign(found))[free].max(initial=0) < 1e-4 * max(1, strength)
        assert (np.abs(slope)[~free] <= 1 + 1e-6).all()
