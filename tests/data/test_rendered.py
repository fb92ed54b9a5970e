"""Rows are compared, and answers told apart, as the chat template renders them."""

import json

import pytest
from transformers import AutoTokenizer

from dpo.data import schema
from support.rows import GOOD, HH, IMPLICIT, changed, good, human, lint, said, talk, tool, write

ANSWERS = {"chosen": said("Yes."), "rejected": said("No.")}


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + (m.name or '') + '\\n' }}"
    "{{ m.thinking or '' }}{{ (m.content | trim) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def with_key(key: str, i: int) -> dict:
    """A pair in which a key of every message says another number in each row."""
    pair = {"prompt": said("q", "user")} | ANSWERS
    return {name: [m | {key: f"{key}{i}"} for m in turns] for name, turns in pair.items()}


def calling(i: int, content: str | None = None) -> list[dict]:
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": i}}}
    return [{"role": "assistant", "content": content, "tool_calls": [call]}]


def earlier(i: int) -> dict:
    """A thought in a turn before the last question, which qwen3's template leaves out."""
    thought = said("a")[0] | {"reasoning_content": f"thought {i}"}
    return {"prompt": [*said("q", "user"), thought, *said("r", "user")]} | ANSWERS


# name: (the chat template, a row by its number, whether the rows are the same pair)
RENDERED = {
    "thoughts before the answers": ("qwen3", lambda i: with_key("reasoning_content", i), False),
    "thoughts of a template of one's own": (CHATML, lambda i: with_key("thinking", i), False),
    "names that are rendered": (
        CHATML,
        lambda i: {"prompt": with_key("name", i)["prompt"]} | ANSWERS,
        False,
    ),
    "arguments of a call": (
        "qwen2_5",
        lambda i: {"prompt": said("q", "user"), "chosen": calling(i), "rejected": said("No.")},
        False,
    ),
    "other tools": (
        "qwen2_5",
        lambda i: {"prompt": said("q", "user"), "tools": json.dumps(tool(f"t{i}"))} | ANSWERS,
        False,
    ),
    "names that are left out": ("qwen3_instruct_2507", lambda i: with_key("weight", i), True),
    "thoughts that are left out": (CHATML, lambda i: with_key("reasoning_content", i), True),
    "thoughts of an earlier turn": ("qwen3", earlier, True),
    "blanks that are trimmed": (
        CHATML,
        lambda i: {"prompt": said("q" + " " * i, "user")} | ANSWERS,
        True,
    ),
}


@pytest.mark.parametrize("template, row, same", RENDERED.values(), ids=RENDERED)
def test_rows_are_compared_as_they_are_rendered(tmp_path, tiny_model, template, row, same):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(3)))
    own = template is CHATML
    given = own_template(tmp_path) if own else f"--chat_template_path={template}"
    flags = [given, "--max_length=512", "--quarantine_limit=1"]
    train = lint(tiny_model, path, tmp_path, *flags, "--eval_strategy=no")["train"]
    assert train.reasons == ({"duplicate": 2} if same else {})
    # What is kept of the messages, and asked, renders as what is trained on.
    if own:
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.chat_template = CHATML
        for pair in train.pairs:
            asked = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True)
            assert asked["input_ids"] == pair["prompt_ids"]


def own_template(folder) -> str:
    (folder / "own.jinja").write_text(CHATML)
    return f"--chat_template_path={folder}/own.jinja"


def test_a_prompt_that_renders_as_one_held_out_is_not_trained_on(tmp_path, tiny_model):
    """`write` holds out one that asks "Held out?"."""
    (tmp_path / "data").mkdir()
    blank = changed(prompt=said("Held out? \n", "user"))
    write(tmp_path / "data", [*GOOD, blank])
    for flags, reasons in (([own_template(tmp_path)], {"held_out_prompt": 1}), ([], {})):
        train = lint(tiny_model, tmp_path / "data", tmp_path, "--quarantine_limit=0.5", *flags)
        assert train["train"].reasons == reasons


def test_the_same_prompts_are_held_out_whatever_the_template(tmp_path, tiny_model):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(good(i)) + "\n" for i in range(40)))
    held = set()
    for flag in ("--chat_template_path=qwen3", own_template(tmp_path)):
        flags = ["--test_split_size=0.2", "--eval_strategy=steps", flag]
        pairs = lint(tiny_model, path, tmp_path, *flags)["held-out"].pairs
        held.add((tuple(pairs["row"]), schema.digest_of(pairs)))
    assert len(held) == 1 and len(pairs) == 8


def test_prompts_that_render_alike_are_held_out_together(tmp_path, tiny_model):
    path = tmp_path / "train.jsonl"
    rows = [
        good(i // 2) | ANSWERS | {"prompt": said(f"q{i // 2}" + " " * (i % 2), "user")}
        for i in range(40)
    ]
    for i, row in enumerate(rows):
        row["chosen"] = said(f"Yes, {i}.")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--test_split_size=0.2", "--eval_strategy=steps", own_template(tmp_path)]
    linted = lint(tiny_model, path, tmp_path, *flags)
    asked = [{m[0]["content"].strip() for m in found.pairs["prompt"]} for found in linted.values()]
    assert len(linted["held-out"].pairs) == 8 and not asked[0] & asked[1]


# name: (the chat template, chosen, rejected, the reason and what is said with it)
ANSWERED = {
    "they think otherwise": (
        "qwen3",
        said("42")[0] | {"reasoning_content": "a"},
        said("42")[0] | {"reasoning_content": "b"},
        None,
    ),
    "they think otherwise, unseen": (
        None,
        said("42")[0] | {"reasoning_content": "a"},
        said("42")[0] | {"reasoning_content": "b"},
        ("same", "they differ in reasoning_content, which the chat template leaves out"),
    ),
    "they differ in a weight": (
        "qwen3",
        said("42")[0] | {"weight": 1.0},
        said("42")[0] | {"weight": 0.5},
        ("same", "they differ in weight"),
    ),
    "a call, content null": ("qwen2_5", calling(1)[0], said("No.")[0], None),
    "a call, content empty": ("qwen2_5", calling(1, "")[0], said("No.")[0], None),
    "a call, content blank": ("qwen3", calling(1, "\n")[0], said("No.")[0], None),
    "a call, no content": (
        "qwen3",
        {k: v for k, v in calling(1)[0].items() if k != "content"},
        calling(2)[0],
        None,
    ),
    "a call that is left out": (
        None,
        calling(1)[0],
        said("No.")[0],
        ("template_refuses", "it does not render tool_calls"),
    ),
    "a call of nothing": (
        "qwen3",
        {"role": "assistant", "content": "", "tool_calls": []},
        said("No.")[0],
        ("empty", "chosen"),
    ),
    "a thought that ends the turn": (
        "qwen3",
        said("42")[0] | {"reasoning_content": "so<|im_end|>"},
        said("41")[0],
        ("control_token", "chosen: <|im_end|>"),
    ),
    "a destroyed argument": (
        "qwen3",
        calling("\ufffd")[0],
        said("41")[0],
        ("broken_text", "chosen: '\ufffd' at character 1"),
    ),
}


@pytest.mark.parametrize("template, chosen, rejected, fault", ANSWERED.values(), ids=ANSWERED)
def test_an_answer_is_what_is_rendered_of_it(
    tmp_path, tiny_model, template, chosen, rejected, fault
):
    path = tmp_path / "train.jsonl"
    row = {"prompt": said("q", "user"), "chosen": [chosen], "rejected": [rejected]}
    path.write_text(json.dumps(good(1)) + "\n" + json.dumps(row) + "\n")
    flags = ["--max_length=512", "--quarantine_limit=0.5", "--eval_strategy=no"]
    flags += [f"--chat_template_path={template}"] if template else []
    train = lint(tiny_model, path, tmp_path, *flags)["train"]
    assert [(bad.row, bad.reason) for bad in train.bad] == ([(2, fault[0])] if fault else [])
    assert not fault or fault[1] in train.bad[0].detail


SYSTEM = said("Be brief.", "system")


# name: (chosen, rejected, what is said of where they part)
PARTED = {
    "an earlier answer": (
        talk("q", "a", "r", "b"),
        talk("q", "c", "r", "d"),
        "turn 2 (assistant) has another content: 'a' in chosen, 'c' in rejected",
    ),
    "a later question": (
        talk("q", "a", "r", "b"),
        talk("q", "a", "s", "d"),
        "turn 3 (user) has another content: 'r' in chosen, 's' in rejected",
    ),
    "an answer after a system prompt": (
        SYSTEM + talk("q", "a", "r", "b"),
        SYSTEM + talk("q", "c", "r", "b"),
        "turn 3 (assistant) has another content: 'a' in chosen, 'c' in rejected",
    ),
    "another first question": (
        talk("q", "a"),
        talk("p", "a"),
        "turn 1 (user) has another content: 'q' in chosen, 'p' in rejected",
    ),
    "a system prompt in one": (
        SYSTEM + talk("q", "a"),
        talk("q", "b"),
        "turn 1 (system) has another role: 'system' in chosen, 'user' in rejected",
    ),
    "one goes on": (
        talk("q", "a", "r", "b", "s", "c"),
        talk("q", "a", "r", "b"),
        "chosen goes on after turn 4",
    ),
}


@pytest.mark.parametrize("chosen, rejected, where", PARTED.values(), ids=PARTED)
def test_the_turn_in_which_conversations_part_is_named(
    tmp_path, tiny_model, chosen, rejected, where
):
    path = tmp_path / "train.jsonl"
    rows = [*IMPLICIT, {"chosen": chosen, "rejected": rejected}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--quarantine_limit=0.5", "--eval_strategy=no"]
    train = lint(tiny_model, path, tmp_path, *flags)["train"]
    assert [(bad.reason, bad.detail) for bad in train.bad] == [("prompts_differ", where)]


def test_nulls_tell_no_turns_apart(tmp_path, tiny_model):
    path = tmp_path / "train.jsonl"
    other = [m | {"name": None, "tool_calls": None} for m in talk("q", "a")]
    rows = [*IMPLICIT, {"chosen": talk("q", "b"), "rejected": other}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = lint(tiny_model, path, tmp_path, "--eval_strategy=no")["train"]
    assert len(train.pairs) == 5 and {*train.pairs[4]["prompt"][0]} == {"role", "content"}


def test_the_turn_in_which_dialogues_part_is_named(tmp_path, tiny_model):
    path = tmp_path / "train.jsonl"
    other = {"chosen": human("q", "a", "r", "b"), "rejected": human("q", "c", "r", "d")}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*HH, other]))
    flags = ["--quarantine_limit=0.5", "--eval_strategy=no"]
    (bad,) = lint(tiny_model, path, tmp_path, *flags)["train"].bad
    assert bad.reason == "prompts_differ" and "turn 2 (assistant)" in bad.detail
