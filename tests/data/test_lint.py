"""Every kind of bad row is set aside with its reason, or stops the run with a line that names it;
the good rows around it train."""

import json
import re

import pytest
from transformers import AutoTokenizer

from dpo.data import dataset, quarantine, reading
from dpo.data.lint import REASONS
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from support.rows import (
    ARENA,
    COMPARED,
    GOOD,
    HH,
    IMPLICIT,
    LONG,
    MAX_LENGTH,
    OWN,
    RATED,
    RECIPE,
    SCORED,
    SHAREGPT,
    TEXT,
    changed,
    good,
    human,
    lint,
    said,
    talk,
    write,
)
from support.tiny import recipe_steps

WITH_SYSTEM = [good(i) | {"system": "Be brief."} for i in range(4)]

# name: (the good rows around it, the bad row, its reason)
BAD = {
    "conversations of two models that part early": (ARENA, OWN[0], "own_turns"),
    "conversations of two models that begin otherwise": (
        ARENA,
        ARENA[0] | {"conversation_b": talk("Who?", "b")},
        "prompts_differ",
    ),
    "chosen is null": (GOOD, changed(chosen=None), "missing"),
    "prompt is null": (GOOD, changed(prompt=None), "missing"),
    "no rejected": (GOOD, {k: v for k, v in good(9).items() if k != "rejected"}, "missing"),
    "no messages": (GOOD, changed(chosen=[]), "empty"),
    "an empty answer": (GOOD, changed(rejected=said("")), "empty"),
    "a blank answer of no width": (GOOD, changed(chosen=said("\u00a0\u200b\ufeff")), "blank"),
    "a prompt of no width": (GOOD, changed(prompt=said("\u200b\u2060", "user")), "no_prompt"),
    "a blank answer": (GOOD, changed(chosen=said(" \n\t ")), "blank"),
    "content is null": (GOOD, changed(chosen=said(None)), "not_text"),
    "content is a number": (GOOD, changed(chosen=said(5)), "not_text"),
    "content is a list": (GOOD, changed(rejected=said(["It was bad."])), "not_text"),
    "content is missing": (GOOD, changed(chosen=[{"role": "assistant"}]), "not_text"),
    "chosen is a number": (GOOD, changed(chosen=7), "not_messages"),
    "a list of strings": (GOOD, changed(chosen=["It was good."]), "not_messages"),
    "text among messages": (
        GOOD,
        {"prompt": "How?", "chosen": "Good.", "rejected": "Bad."},
        "mixed",
    ),
    "both are the same": (GOOD, changed(rejected=good(99)["chosen"]), "same"),
    "the same once cut": (
        GOOD,
        changed(chosen=said(LONG + "good"), rejected=said(LONG + "bad")),
        "same_when_cut",
    ),
    "the prompt ends with an answer": (GOOD, changed(prompt=talk("q", "a")), "wrong_role"),
    "the user answers": (GOOD, changed(chosen=said("Good.", "user")), "wrong_role"),
    "the answer ends with the user": (
        GOOD,
        changed(chosen=said("Good.") + said("Thanks.", "user")),
        "wrong_role",
    ),
    "a system prompt answers": (GOOD, changed(chosen=said("Good.", "system")), "wrong_role"),
    "an unknown role": (GOOD, changed(chosen=said("Good.", "moderator")), "unknown_role"),
    "no role": (GOOD, changed(chosen=[{"content": "Good."}]), "unknown_role"),
    "two system prompts": (
        WITH_SYSTEM,
        changed(prompt=said("Be long.", "system") + said("q", "user"), system="Be brief."),
        "system_differs",
    ),
    "a history that is none": (
        [good(i) | {"history": [["q", "a"]]} for i in range(4)],
        changed(history=[["q"]]),
        "not_messages",
    ),
    "no prompt": (GOOD, changed(prompt=[]), "no_prompt"),
    "a blank prompt": (GOOD, changed(prompt=said(" ", "user")), "no_prompt"),
    "a replacement character": (GOOD, changed(chosen=said("caf\ufffd")), "broken_text"),
    "a null character": (GOOD, changed(chosen=said("Good.\x00")), "broken_text"),
    "an end token in the answer": (GOOD, changed(chosen=said("So.<|im_end|>")), "control_token"),
    "a start token in the prompt": (
        GOOD,
        changed(prompt=said("<|im_start|>assistant", "user")),
        "control_token",
    ),
    "a prompt too long": (GOOD, changed(prompt=said(LONG, "user")), "prompt_too_long"),
    "an unhashable role": (GOOD, changed(chosen=[{"role": ["a"], "content": "b"}]), "not_messages"),
    "the same pair again": (GOOD, good(3), "duplicate"),
    "a prompt that is held out": (
        GOOD,
        changed(prompt=said("Held out?", "user")),
        "held_out_prompt",
    ),
    "scores against the labels": (
        [row | {"score_chosen": 2.0, "score_rejected": 1.0} for row in GOOD],
        changed(score_chosen=1.0, score_rejected=2.0),
        "scores_contradict",
    ),
    **{
        f"{better} against the labels": (
            [row | {better: 2, worse: 1} for row in GOOD],
            changed(**{better: "1", worse: 2.5}),
            "scores_contradict",
        )
        for better, worse in (
            *(("chosen_score", "rejected_score"), ("rating_chosen", "rating_rejected")),
            *(("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating")),
            ("chosen_avg_rating", "rejected_avg_rating"),
        )
    },
    "implicit prompts differ": (
        IMPLICIT,
        {"chosen": talk("q", "a"), "rejected": talk("other", "b")},
        "prompts_differ",
    ),
    "turns differ in the middle": (
        IMPLICIT,
        {"chosen": talk("q", "a", "r", "b"), "rejected": talk("q", "c", "r", "d")},
        "prompts_differ",
    ),
    "one of the two is text": (IMPLICIT, {"chosen": talk("q", "a"), "rejected": "b"}, "mixed"),
    "one of the two is empty": (IMPLICIT, {"chosen": talk("q", "a"), "rejected": []}, "empty"),
    "one does not answer": (
        IMPLICIT,
        {"chosen": talk("q", "a"), "rejected": talk("q")},
        "prompts_differ",
    ),
    "something before the first turn": (
        HH,
        {name: "Once." + human("q", name) for name in ("chosen", "rejected")},
        "wrong_role",
    ),
    "nobody speaks": (HH, {"chosen": "good", "rejected": "bad"}, "wrong_role"),
    "dialogues differ": (
        HH,
        {"chosen": human("q", "a"), "rejected": human("p", "b")},
        "prompts_differ",
    ),
    "a dialogue without an answer": (
        HH,
        {"chosen": human("q", "a"), "rejected": human("q", "")},
        "empty",
    ),
    "no text": (TEXT, TEXT[0] | {"chosen": ""}, "empty"),
    "blank text": (TEXT, TEXT[0] | {"rejected": "  "}, "blank"),
    "no prompt in text": (TEXT, TEXT[0] | {"prompt": ""}, "no_prompt"),
    "two start tokens": (
        TEXT,
        TEXT[0] | {"prompt": "<|im_start|><|im_start|>user"},
        "doubled_start",
    ),
    "two end tokens": (TEXT, TEXT[0] | {"chosen": "So.<|im_end|>\n"}, "doubled_end"),
    "all ratings the same": (RATED, RATED[0] | {"ratings": ["3", "3"]}, "tie"),
    "ratings that are none": (RATED, RATED[0] | {"ratings": ["N/A", "4"]}, "unrated"),
    "ratings that are no list": (RATED, RATED[0] | {"ratings": 4}, "not_messages"),
    "fewer ratings": (RATED, RATED[0] | {"ratings": ["4"]}, "unrated"),
    "none is preferred": (COMPARED, COMPARED[0] | {"overall_preference": 0}, "tie"),
    "no preference": (COMPARED, COMPARED[0] | {"overall_preference": None}, "missing"),
    "scores of an empty prompt": (
        SCORED,
        {"prompt": None, "response": "a", "helpfulness": 4},
        "missing",
    ),
    "nothing to compare with": (
        SCORED,
        {"prompt": "alone", "response": "a", "helpfulness": 4},
        "alone",
    ),
    "a conversation that ends with gpt": (
        SHAREGPT,
        SHAREGPT[0] | {"conversations": [{"from": "gpt", "value": "q"}]},
        "wrong_role",
    ),
}


@pytest.mark.parametrize("around, bad, reason", BAD.values(), ids=BAD)
def test_a_bad_row_is_set_aside(tmp_path, tiny_model, around, bad, reason):
    data, at = tmp_path / "data", len(around) // 2
    data.mkdir()
    write(data, [*around[:at], bad, *around[at:]])
    evaluates = "steps" if (data / "test.jsonl").exists() else "no"
    flags = ["--quarantine_limit=0.5", f"--eval_strategy={evaluates}"]
    train = lint(tiny_model, data, tmp_path, *flags)["train"]
    (line,) = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
    # Of two that are the same, the first stays: the bad one repeats the last.
    assert line["row"] == (len(around) + 1 if reason == "duplicate" else at + 1)
    assert (line["file"], line["split"]) == (f"{data}/train.jsonl", "train")
    assert line["reason"] == reason and train.reasons == {reason: 1}
    pairs = len(around) // 2 if around is SCORED else len(around)
    assert len(train.pairs) == pairs and train.rows == pairs + len(train.bad) + train.merged


def test_every_reason_is_tried():
    assert len(BAD) > 40
    found = {reason for _, _, reason in BAD.values()}
    elsewhere = {"labels_swapped", "template_refuses", "no_end", "no_completion", "prompt_cut_away"}
    assert found | elsewhere == REASONS.keys()


def test_the_same_pair_both_ways_round_is_set_aside_both_times(tmp_path, tiny_model):
    row = good(2)
    swapped = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
    write(tmp_path, [*GOOD, swapped])
    train = lint(tiny_model, tmp_path, tmp_path, "--quarantine_limit=0.5")["train"]
    assert {bad.row: bad.detail for bad in train.bad} == {
        3: f"row 5 of {tmp_path}/train.jsonl",
        5: f"row 3 of {tmp_path}/train.jsonl",
    }
    assert train.reasons == {"labels_swapped": 2}


def test_the_good_rows_all_train(tmp_path, tiny_model):
    """Every bad row of the messages' layout in one file, among good ones."""
    data = tmp_path / "data"
    data.mkdir()
    bad = [row for around, row, _ in BAD.values() if around is GOOD]
    rows = [row for i, other in enumerate(bad) for row in (good(i), other)]
    write(data, rows)
    text = RECIPE.read_text().replace("recipes/data/sentiment", str(data))
    recipe = tmp_path / RECIPE.name
    recipe.write_text(
        text.replace("models/SmolLM2-135M-Instruct", str(tiny_model))
        + f"max_length: {MAX_LENGTH}\nquarantine_limit: 0.6\n"
    )
    trainer, _ = recipe_steps(recipe, tmp_path)
    asked = [row["prompt"][0]["content"] for row in trainer.train_dataset]
    assert asked == [good(i)["prompt"][0]["content"] for i in range(len(bad))]
    assert trainer.state.global_step == 2


def test_a_batch_of_nothing_but_bad_rows(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(reading, "BATCH", 2)
    write(tmp_path, [*GOOD, changed(chosen=None)])
    train = lint(tiny_model, tmp_path, tmp_path, "--quarantine_limit=0.5")["train"]
    assert len(train.pairs) == 4 and train.reasons == {"missing": 1}
    (tmp_path / "test.jsonl").write_text(json.dumps(changed(chosen=None)) + "\n")
    with pytest.raises(SystemExit, match="1 of 1 held-out rows are set aside"):
        lint(tiny_model, tmp_path, tmp_path, "--quarantine_limit=0.5")


def test_a_column_of_our_own_names_is_the_datas(tmp_path, tiny_model):
    """Row numbers are counted, whatever a column of that name says."""
    rows = [row | {"row": 77, "merged": "x", "texts": "y"} for row in GOOD]
    write(tmp_path, [*rows, rows[0] | {"chosen": None}])
    train = lint(tiny_model, tmp_path, tmp_path, "--quarantine_limit=0.5")["train"]
    assert [bad.row for bad in train.bad] == [5] and list(train.pairs["row"]) == [1, 2, 3, 4]


def test_tools_and_calls_of_them(tmp_path, tiny_model):
    """Rows without tools bear an empty text; calls that differ are different completions."""

    def calls(i: int) -> list[dict]:
        call = {"type": "function", "function": {"name": "add", "arguments": {f"n{i}": i}}}
        return [{"role": "assistant", "tool_calls": [call]}]

    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    rows = [
        GOOD[i] | {"chosen": calls(i), "tools": json.dumps([tool]) if i else ""} for i in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--eval_strategy=no", "--chat_template_path=qwen2_5"]
    train = lint(tiny_model, tmp_path / "train.jsonl", tmp_path, *flags, "--max_length=512")[
        "train"
    ]
    assert len(train.pairs) == 4
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = [tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) for row in train.pairs]
    assert "<tools>" not in texts[0] and "<tools>" in texts[1]
    assert all(f"n{i}" in text for i, text in enumerate(texts))


def test_too_many_bad_rows_stop_the_run(tmp_path, tiny_model):
    write(tmp_path, [*GOOD, changed(chosen=None), changed(chosen=said(" "))])
    with pytest.raises(SystemExit) as stop:
        lint(tiny_model, tmp_path, tmp_path)
    message = stop.value.code
    assert "\n" not in message
    for word in ("train.jsonl", "2 of 6", "33.3%", "5.0%", "row 5", "--quarantine_limit"):
        assert word in message
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
    lint(tiny_model, tmp_path, tmp_path, "--quarantine_limit=0.34")
    write(tmp_path, GOOD)
    lint(tiny_model, tmp_path, tmp_path)
    assert not (tmp_path / "quarantine.jsonl").exists()  # what it said is no longer so


NO_FAULT = {
    "tie": (COMPARED, [row | {"overall_preference": 0} for row in COMPARED]),
    "own_turns": (ARENA, OWN * 2),
}


@pytest.mark.parametrize("reason", NO_FAULT)
def test_what_is_no_fault_is_counted_and_stops_nothing(tmp_path, tiny_model, reason):
    rows, others = NO_FAULT[reason]
    write(tmp_path, [*rows, *others])
    train = lint(tiny_model, tmp_path, tmp_path, "--eval_strategy=no")["train"]
    assert train.reasons == {reason: 4} and train.faulty == 0 and len(train.pairs) == 4
    (line,) = (line for line in quarantine.said({"train": train}, None) if reason in line)
    assert line.strip() == f"4 set aside as {reason}: {REASONS[reason]}"


BROKEN = {
    "half a line": (b'{"prompt": [', "Expecting"),
    "half of a surrogate pair": (json.dumps(changed(chosen=said("\ud800"))).encode(), "surrogates"),
    "no object": (b"5", "object of columns"),
    "Latin-1": (b'{"prompt": "caf\xe9"}', "utf-8"),
}


@pytest.mark.parametrize("line, why", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_broken_line_is_named(tmp_path, tiny_model, line, why, kind):
    write(tmp_path, GOOD)
    path = tmp_path / "train.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    where = tmp_path if kind == "folder" else path
    with pytest.raises(SystemExit) as stop:
        lint(tiny_model, where, tmp_path, "--eval_strategy=no")
    message = stop.value.code
    assert f"{path}, line 3" in message and why in message and "mend the line" in message
    assert "\n" not in message


# name: (a chat template, what is wrong with it)
TEMPLATES = {
    "no end token": ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no end token"),
    "two end tokens": (
        "{% for m in messages %}{{ m.content }}<|im_end|><|im_end|>{% endfor %}",
        "the end token twice",
    ),
    "two start tokens": (
        "<|im_start|><|im_start|>{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
        "the start token twice",
    ),
    "another prompt alone": (
        "{% for m in messages %}{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}think first {% endif %}",
        "what it never sees",
    ),
}


@pytest.mark.parametrize("template, wrong", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_teaches_the_wrong_thing_stops(tmp_path, tiny_model, template, wrong):
    write(tmp_path, GOOD)
    (tmp_path / "broken.jinja").write_text(template)
    with pytest.raises(SystemExit) as stop:
        lint(tiny_model, tmp_path, tmp_path, f"--chat_template_path={tmp_path}/broken.jinja")
    message = stop.value.code
    assert wrong in message and "--chat_template_path" in message and "\n" not in message


def test_a_conversation_that_the_template_refuses_is_set_aside(tmp_path, tiny_model):
    template = AutoTokenizer.from_pretrained(tiny_model).chat_template
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "strict.jinja").write_text(refuses + template)
    system = said("Be brief.", "system") + good(9)["prompt"]
    write(tmp_path, [*GOOD, changed(prompt=system)])
    flags = [f"--chat_template_path={tmp_path}/strict.jinja", "--quarantine_limit=0.5"]
    train = lint(tiny_model, tmp_path, tmp_path, *flags)["train"]
    assert train.reasons == {"template_refuses": 1} and "no system" in train.bad[0].detail


@pytest.fixture
def without_template(tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


def test_messages_need_a_chat_template(tmp_path, without_template):
    write(tmp_path, GOOD)
    with pytest.raises(SystemExit) as stop:
        lint(without_template, tmp_path, tmp_path)
    assert "no chat template" in stop.value.code and "qwen3" in stop.value.code
    # One of TRL's will do, or a file.
    train = lint(without_template, tmp_path, tmp_path, "--chat_template_path=qwen2_5")["train"]
    assert len(train.pairs) == 4
    with pytest.raises(SystemExit, match=r"qwen9 is no file.*did you mean.*qwen"):
        lint(without_template, tmp_path, tmp_path, "--chat_template_path=qwen9")


def test_a_tokenizer_without_an_end_token_stops(tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    write(tmp_path, GOOD)
    with pytest.raises(SystemExit, match="has no eos_token"):
        lint(tmp_path / "endless", tmp_path, tmp_path)


def rows_of(short: int, long: int, **faults: dict) -> list[dict]:
    """Sound rows, then such as have prompts that fill MAX_LENGTH, then faulty ones."""
    prompts = [said(f"{i} {LONG}", "user") for i in range(long)]
    return [
        *(good(i) for i in range(short)),
        *(good(100 + i) | {"prompt": prompt} for i, prompt in enumerate(prompts)),
        *faults.values(),
    ]


CUT = {"chosen": said("good " + LONG), "rejected": said("bad " + LONG)}
ALIKE = {"chosen": said(LONG + "good"), "rejected": said(LONG + "bad")}
MOST = r"6 of 10 train rows are left out.*max_length is 128, and 90% of the pairs fit in \d+ tokens"
# name: (rows, flags, pairs, cut, left out, and the refusal)
LENGTHS = {
    "two of five prompts are too long": (rows_of(6, 4), [], 6, 0, 4, None),
    "just half of them": (rows_of(5, 5), [], 5, 0, 5, None),
    "most of them": (rows_of(4, 6), [], 0, 0, 0, MOST),
    "all of them": (rows_of(0, 4), [], 0, 0, 0, "4 of 4 train rows are left out"),
    "some of three are cut": (
        [good(1), *(changed(prompt=said(f"q{i}", "user"), **CUT) for i in "ab")],
        *([], 3, 2, 0, None),
    ),
    "answers that are alike once cut": ([*rows_of(6, 2), changed(**ALIKE)], [], 6, 0, 3, None),
    "the start is cut": (rows_of(4, 6), ["--truncation_mode=keep_end"], 10, 6, 0, None),
    "nothing is cut": (rows_of(4, 6), ["--max_length=null"], 10, 0, 0, None),
    "a fault beside them": (
        rows_of(6, 4, bad=changed(chosen=None)),
        *([], 0, 0, 0, r"1 of 11 train rows are set aside \(9.1%\).*missing"),
    ),
    "a fault that is allowed": (
        rows_of(6, 4, bad=changed(chosen=None)),
        *(["--quarantine_limit=0.1"], 6, 0, 4, None),
    ),
}


@pytest.mark.parametrize(
    "rows, flags, pairs, cut, left_out, refusal", LENGTHS.values(), ids=LENGTHS
)
def test_length_is_no_fault(tmp_path, tiny_model, rows, flags, pairs, cut, left_out, refusal):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--eval_strategy=no", *flags]
    if refusal:
        with pytest.raises(SystemExit, match=refusal) as stop:
            lint(tiny_model, path, tmp_path, *flags)
        assert "\n" not in stop.value.code
        return
    train = lint(tiny_model, path, tmp_path, *flags)["train"]
    lengths = train.lengths()
    assert (len(train.pairs), lengths["cut"], lengths["left_out"]) == (pairs, cut, left_out)
    assert train.rows == len(rows) == len(train.pairs) + len(train.bad)
    assert sum(train.left_out.values()) == left_out and not {*train.left_out} & {*train.set_aside}


def test_the_length_that_is_named_keeps_as_many_pairs(tmp_path, tiny_model):
    path = tmp_path / "train.jsonl"
    rows = [changed(prompt=said("word " * 8 * i, "user")) for i in range(1, 21)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def whole(*flags: str) -> tuple[int, dict]:
        found = lint(tiny_model, path, tmp_path, "--eval_strategy=no", *flags)["train"].lengths()
        return found["pairs"] - found["cut"] - found["left_out"], found

    _, found = whole("--max_length=null")
    for share, pairs in (("90%", 18), ("95%", 19), ("99%", 20)):
        most = found["fit"][share]
        assert whole(f"--max_length={most}")[0] == pairs
        assert whole(f"--max_length={most - 1}")[0] == pairs - 1
    assert found["longest"] == found["fit"]["99%"] and found["max_length"] is None


def test_a_long_source_of_a_mixture_is_named(tmp_path, tiny_model):
    names = {"short": rows_of(12, 0), "long": rows_of(1, 4)[1:], "fine": rows_of(20, 0)[12:]}
    for name, rows in names.items():
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "train.jsonl").write_text(lines)
    mixture = tmp_path / "mixture.yaml"
    paths = "".join(f"  - path: {tmp_path / name}\n" for name in names)
    text = RECIPE.read_text().replace("dataset_name: recipes/data/sentiment\n", "")
    mixture.write_text(f"{text}\ndatasets:\n{paths}")
    flags = ["--eval_strategy=no"]
    flags += [f"--max_length={MAX_LENGTH}", f"--model_name_or_path={tiny_model}", "--use_cpu"]
    recipe = parse(["--config", str(mixture), *flags])
    linted = dataset.prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
    quarantine.check_share(linted, 0.05, tmp_path)
    lines = "\n".join(quarantine.said(linted, None))
    assert re.search(r"max_length 128: 0 of 24 pairs are cut, 4 left out", lines)
    assert re.search(r"rows left out: 4 of the 4 of \S+/long \(train\)$", lines, re.MULTILINE), (
        lines
    )


def broken(kind: str, i: int) -> dict:
    row = changed(prompt=said(f"broken {i}", "user"))
    return row | {
        "ends with the assistant": {"prompt": said("a")},
        "says nothing": {"chosen": []},
    }.get(kind, {"rejected": row["chosen"]})


KINDS = ["ends with the assistant", "says nothing", "says the same"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad, sound, stops", [(4, 0, True), (3, 2, True), (2, 2, False)])
def test_a_source_that_is_lost_stops_a_mixture(tmp_path, tiny_model, kind, bad, sound, stops):
    """Of all rows its faults may be few."""
    rows = [changed(prompt=said(f"sound {i}", "user")) for i in range(100 + sound)]
    parts = {"large": rows[:100], "small": rows[100:] + [broken(kind, i) for i in range(bad)]}
    entries = ""
    for name, part in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        entries += f"  - {{path: json, data_files: {tmp_path}/{name}.jsonl}}\n"
    text = RECIPE.read_text().replace("dataset_name: recipes/data/sentiment\n", "")
    (tmp_path / "mixture.yaml").write_text(f"{text}\ndatasets:\n{entries}")
    flags = ["--eval_strategy=no", f"--model_name_or_path={tiny_model}", "--use_cpu"]
    recipe = parse(["--config", f"{tmp_path}/mixture.yaml", *flags])
    linted = dataset.prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
    assert linted["train"].faulty < 0.05
    if not stops:
        quarantine.check_share(linted, 0.05, tmp_path)
        return
    with pytest.raises(SystemExit, match=rf"small.jsonl.*: {bad} of {bad + sound} train rows are"):
        quarantine.check_share(linted, 0.05, tmp_path)
    quarantine.check_share(linted, 1.0, tmp_path)


@pytest.mark.parametrize("short, long", [(6, 4), (4, 6)])
def test_a_stream_tells_by_its_first_rows(tmp_path, tiny_model, short, long):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(short, long)))
    flags = ["--eval_strategy=no", "--dataset_streaming", "--max_steps=1"]
    flags.append(f"--output_dir={tmp_path}")
    if long > short:
        with pytest.raises(SystemExit, match=MOST):
            lint(tiny_model, path, tmp_path, *flags)
    else:
        train = lint(tiny_model, path, tmp_path, *flags)["train"]
        assert "of the first 10 rows, max_length 128: 0 of 10 pairs are cut, 4 left" in train.layout


def test_held_out_pairs_are_counted_apart_from_long_ones(tmp_path, tiny_model):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(12, 8)))
    flags = ["--test_split_size=0.25", "--eval_strategy=steps"]
    linted = lint(tiny_model, tmp_path / "train.jsonl", tmp_path, *flags)
    train, held = linted["train"], linted["held-out"]
    assert (len(train.pairs), len(held.pairs), train.left_out) == (9, 3, {"prompt_too_long": 8})
    assert train.rows + held.rows == 20 and held.lengths()["left_out"] == 0
