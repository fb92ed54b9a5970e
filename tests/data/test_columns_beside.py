"""Columns that stand beside the question are read where convention settles them, and named where it
does not; text that a chat model is trained on without its template is said."""

import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from dpo.data import dataset, quarantine
from dpo.data.formats.columns import renamed
from dpo.data.formats.layouts import Fault, renders, to_pair
from dpo.data.formats.parts import told
from dpo.data.formats.telling import NAMED, reading_of
from dpo.data.sources.load import Rows, load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from support.place import ROOT
from support.shelf_rows import said

USER, YES, NO = said("user", "How?"), said("assistant", "So."), said("assistant", "No.")
SYSTEM = said("system", "In French.")
HELLO = [said("user", "Hello."), said("assistant", "Hello!")]
PAIRS = [["Hello.", "Hello!"]]
TEXT = {"chosen": "So.", "rejected": "No."}
MESSAGES = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
WHOLE = {"chosen": [USER, YES], "rejected": [USER, NO]}
DIALOGUE = {
    "chosen": "\n\nHuman: How?\n\nAssistant: So.",
    "rejected": "\n\nHuman: How?\n\nAssistant: No.",
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "How?"}],
    "chosen": {"from": "gpt", "value": "So."},
    "rejected": {"from": "gpt", "value": "No."},
}
TEMPLATE = "{{ messages }}{{ tools }}"  # one that knows tools
# Every layout that is rendered with a chat template.
RENDERED = {
    "messages": MESSAGES,
    "whole conversations": WHOLE,
    "a string beside whole conversations": WHOLE | {"prompt": "How?"},
    "a dialogue as text": DIALOGUE,
    "a dialogue with its prompt": {"prompt": "Human: How?\n\nAssistant:", **TEXT},
    "a question": {"question": "How?", **TEXT},
    "a prompt in plain text": {"prompt": "How?", **TEXT},
    "ShareGPT": SHAREGPT,
    "messages as the prompt": {"messages": [USER], **TEXT},
    "messages as the prompt, lists": {"messages": [USER], "chosen": [YES], "rejected": [NO]},
    "messages as the prompt, one each": {"messages": [USER], "chosen": YES, "rejected": NO},
    "messages as the prompt, again in each": {"messages": [USER], **WHOLE},
    "rated": {"prompt": "How?", "responses": ["No.", "So."], "ratings": [1, 5]},
    "ranked": {
        "prompt": "How?",
        "answers": [{"answer": "No.", "rank": 2.0}, {"answer": "So.", "rank": 1.0}],
    },
    "compared": {"prompt": "How?", "response_1": "So.", "response_2": "No.", "preference": 1},
    "two conversations": {
        "conversation_a": [USER, NO],
        "conversation_b": [USER, YES],
        "winner": "model_b",
    },
}


def reading(*rows: dict, layout: str | None = None):
    return reading_of(Rows("data", Dataset.from_list([*rows])), layout)


def pair(row: dict, **how) -> dict:
    """The pair of a row as it comes out of a data set, without scores."""
    found = reading(row, **how)
    made = to_pair(found.rows[0], found.layout, True, found.parts)
    return {name: made[name] for name in ("prompt", "chosen", "rejected")}


@pytest.mark.parametrize("row", RENDERED.values(), ids=RENDERED)
@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_prompt_is_the_first_message(row, name):
    row = row | {name: "In French."}
    assert pair(row) == MESSAGES | {"prompt": [SYSTEM, USER]}
    assert reading(row).unread(list, TEMPLATE) == ""
    assert pair(row | {name: ""})["prompt"] == pair(row | {name: None})["prompt"] == [USER]


HISTORIES = {
    "pairs": PAIRS,
    "messages": HELLO,
    "ShareGPT": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello!"}],
    "texts in turn": ["Hello.", "Hello!"],
    "objects": [{"user": "Hello.", "assistant": "Hello!"}],
    "objects of other names": [{"question": "Hello.", "answer": "Hello!"}],
    "capitals": [{"role": "User", "content": "Hello."}, {"role": "Model", "content": "Hello!"}],
    "with empty pairs": [["", ""], *PAIRS, [None, None]],
    "with empty messages": [said("system", ""), *HELLO, said("user", ""), said("assistant", " ")],
}
NO_HISTORIES = {
    "a pair": ([["", ""]], None),
    "nulls": ([[None, None]], None),
    "messages": ([said("user", ""), said("assistant", "")], None),
    "objects": ([{"user": "", "assistant": ""}], None),
    "an empty answer": ([["Hello.", ""]], "not_text.*one of a question and its answer is empty"),
    "an empty question": ([*PAIRS, ["", "Hello!"]], "not_text.*its answer is empty"),
    "an empty message": ([said("user", "Hello."), said("assistant", "")], "not_text"),
    "objects of unknown names": ([{"q": "Hello.", "a": "Hello!"}], "not_messages.*q, a instead of"),
}


@pytest.mark.parametrize("row", RENDERED.values(), ids=RENDERED)
def test_a_history_comes_before_the_question(row):
    row = row | {"history": PAIRS, "system": "In French."}
    assert pair(row)["prompt"] == [SYSTEM, *HELLO, USER]
    assert reading(row).unread(list, TEMPLATE) == ""


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_a_history_may_be(history):
    assert pair({"instruction": "How?", **TEXT, "history": history})["prompt"] == [*HELLO, USER]


@pytest.mark.parametrize("history, says", NO_HISTORIES.values(), ids=NO_HISTORIES)
def test_empty_turns_of_a_history_are_none(history, says):
    row = {"instruction": "How?", **TEXT, "history": history}
    if says:
        with pytest.raises(Fault, match=says):
            pair(row)
    else:
        assert pair(row)["prompt"] == [USER]


ROLES = [("User", "Assistant"), ("user", "model"), ("HUMAN", "AI"), ("prompter", "assistant")]


@pytest.mark.parametrize("asks, answers", ROLES)
def test_roles_are_read_in_any_words_of_one_meaning(asks, answers):
    user, yes, no = said(asks, "How?"), said(answers, "So."), said(answers, "No.")
    assert pair({"prompt": [user], "chosen": [yes], "rejected": [no]}) == MESSAGES
    assert pair({"chosen": [user, yes], "rejected": [user, no], "prompt": "How?"}) == MESSAGES
    turns = [[{"from": m["role"], "value": m["content"]} for m in [user, one]] for one in (yes, no)]
    assert pair({"chosen": turns[0], "rejected": turns[1]}) == MESSAGES


LINE_ENDS = ["\n\n", "\r\n\r\n", "\n", "\r\n", "\r\r", "\n \n", "\n\n\n"]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_dialogues_are_read_whatever_ends_their_lines(end):
    begin = f"{end}Human: Hello.{end}Assistant: Hello!{end}Human: How?{end}Assistant:"
    row = {"chosen": f"{begin} So.", "rejected": f"{begin} No."}
    for one in (row, {"prompt": begin, "chosen": " So.", "rejected": " No."}):
        found = reading(one)
        assert found.layout == "dialogue"
        assert to_pair(found.rows[0], "dialogue", True, found.parts) == MESSAGES | {
            "prompt": [*HELLO, USER]
        }
        as_text = to_pair(found.rows[0], "dialogue", False, found.parts)
        assert as_text["prompt"].count("\n\n") in (3, 4) and "\r" not in as_text["prompt"]


MORE_TURNS = {
    "the user's": ("So.\n\nHuman: And?", "chosen goes on with Human:"),
    "the user's, of nothing": ("So.\n\nHuman:", "chosen goes on with Human:"),
    "the user's, after another": ("So.\n\nHuman: And?\n\nHuman: And now?", "goes on with Human:"),
    "its own in the column": ("So.\n\nAssistant: And?", "goes on with Assistant:|begin|another"),
}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("text, says", MORE_TURNS.values(), ids=MORE_TURNS)
def test_a_dialogue_ends_with_what_the_assistant_says(text, says, chat):
    begin = "\n\nHuman: How?\n\nAssistant:"
    for row in (
        {"chosen": f"{begin} {text}", "rejected": f"{begin} No."},
        {"prompt": begin, "chosen": f" {text}", "rejected": " No."},
    ):
        with pytest.raises(Fault, match=says):
            to_pair(row, "dialogue", chat, told([row], "dialogue")[1])


def test_what_is_no_dialogue_keeps_its_line_ends():
    for text in ("Human: Hello.\r\nHow?", "How?\r\nAssistant: So.", "A\r\nB"):
        found = reading({"prompt": text, **TEXT})
        assert found.layout == "explicit" and found.rows[0]["prompt"] == text


def test_what_is_no_dialogue_keeps_a_quoted_turn():
    text = "\n\nHuman: Read:\nAssistant: Hi!\n\nAssistant:"
    made = pair({"chosen": f"{text} So.", "rejected": f"{text} No."})
    assert made["prompt"] == [said("user", "Read:\nAssistant: Hi!")]


def test_what_a_conversation_has_already_is_not_said_twice():
    row = {"prompt": [SYSTEM, *HELLO, USER], "chosen": [YES], "rejected": [NO]}
    assert pair(row | {"system": " In French.", "history": PAIRS}) == row
    whole = {"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO], "system": "In French."}
    assert pair(whole)["prompt"] == [SYSTEM, USER]
    with pytest.raises(Fault, match=r"system_differs.*system: In German"):
        pair(whole | {"system": "In German."})
    with pytest.raises(Fault, match=r"not_messages.*history"):
        pair(MESSAGES | {"history": ["Hello."]})


ASKED = {
    "input beside instruction": ({"instruction": "How?", "input": "Here."}, "How?\nHere."),
    "input beside prompt": ({"prompt": "How?", "input": "Here."}, "How?\nHere."),
    "an empty input": ({"prompt": "How?", "input": ""}, "How?"),
    "an input that is there already": ({"prompt": "How? Here.", "input": "Here."}, "How? Here."),
    "context beside question": ({"question": "How?", "context": "So it is."}, "So it is.\n\nHow?"),
    "context beside instruction": (
        {"instruction": "How?", "input": "Here.", "context": "So it is."},
        "So it is.\n\nHow?\nHere.",
    ),
    "context beside prompt": ({"prompt": "How?", "context": "So it is."}, "So it is.\n\nHow?"),
    "context alone": ({"context": "How?"}, "How?"),
}


@pytest.mark.parametrize("row, asked", ASKED.values(), ids=ASKED)
def test_input_and_context_are_part_of_the_question(row, asked):
    assert pair(row | TEXT)["prompt"] == [said("user", asked)]
    assert reading(row | TEXT).unread(list, TEMPLATE) == ""


ONE = {"instruction": "How?", **TEXT}
# name: (a row that seems to say something twice, another of its data set, what is learned)
BY_CHANCE = {
    "a greeting that is answered with itself": (
        {"question": "Hi", "chosen": "Hi! So.", "rejected": "Hi, no."},
        {"question": "How?", **TEXT},
        ("Hi", "Hi! So.", "Hi, no."),
    ),
    "as plain text": (
        {"prompt": "Hi", "chosen": "Hi! So.", "rejected": "Hi, no."},
        {"prompt": "How?", **TEXT},
        ("Hi", "Hi! So.", "Hi, no."),
    ),
    "of several answers": (
        {"prompt": "Hi", "responses": ["Hi! So.", "Hi, no."], "ratings": [5, 1]},
        {"prompt": "How?", "responses": ["So.", "No."], "ratings": [5, 1]},
        ("Hi", "Hi! So.", "Hi, no."),
    ),
    "the question in most": (
        {"question": "How?", "chosen": "How? So.", "rejected": "How? No."},
        {"question": "Who?", **TEXT},
        ("How?", "So.", "No."),
    ),
    "a short input": (ONE | {"input": "H"}, ONE | {"input": "Here."}, ("How?\nH", "So.", "No.")),
    "a short context": (
        ONE | {"context": "?"},
        ONE | {"context": "It is."},
        ("?\n\nHow?", "So.", "No."),
    ),
}


@pytest.mark.parametrize("row, other, learned", BY_CHANCE.values(), ids=BY_CHANCE)
def test_whether_a_text_is_there_twice_is_told_from_all_rows(row, other, learned):
    """Of one row alone nobody could say it."""
    rows = [row, row, other] if learned[0] == "How?" else [row, other]
    found = reading(*rows)
    made = to_pair(row, found.layout, True, found.parts)
    values = (made[name] for name in ("prompt", "chosen", "rejected"))
    assert learned == tuple(v if isinstance(v, str) else v[0]["content"] for v in values)


UNREAD = {
    "input beside question": ({"question": "How?", **TEXT, "input": "Here."}, ["input"]),
    "context beside messages": (MESSAGES | {"context": "So it is."}, ["context"]),
    "a list as context": ({"question": "How?", **TEXT, "context": ["So it is."]}, ["context"]),
    "a history in words": (MESSAGES | {"history": "They said hello."}, ["history"]),
    "another name of a system prompt": (MESSAGES | {"sys": "In French."}, ["sys"]),
    "an object": (MESSAGES | {"metadata": {"topic": "x"}, "id": "5"}, ["metadata", "id"]),
    "numbers, and nothing": (MESSAGES | {"score": 5, "ok": True, "note": None, "tags": []}, []),
    "tools are read": (MESSAGES | {"tools": "[]"}, []),
    "tools of nothing": (MESSAGES | {"tools": ""}, []),
    "a second question": ({"prompt": "How?", "instruction": "Do.", **TEXT}, ["instruction"]),
    "beside plain text": (DIALOGUE | {"topic": "x"}, ["topic"]),
}


@pytest.mark.parametrize("row, names", UNREAD.values(), ids=UNREAD)
def test_columns_that_are_not_read_are_named(row, names):
    said = reading(row).unread(list, TEMPLATE)
    assert said.partition(" (")[0] == (f"not read: {', '.join(names)}" if names else "")
    assert not names or "put it into the prompt, or rename it with --column_mapping" in said


# What an answer holds beside its content, and the keys that a template without them leaves out.
KEYS = {
    "thoughts": ({"reasoning_content": "Hm."}, ["reasoning_content"]),
    "thoughts of another name": ({"thinking": "Hm."}, ["thinking"]),
    "several": ({"name": "Ann", "weight": 1.0}, ["name", "weight"]),
    "nothing in it": ({"reasoning_content": None, "name": "", "refusal": []}, []),
    "what the template reads": ({"tools": "[]"}, []),
    "no more": ({}, []),
}


@pytest.mark.parametrize("more, keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("form", ["explicit", "whole", "compared", "sharegpt", "one message"])
def test_keys_of_messages_that_the_template_leaves_out_are_named(more, keys, form, tokenizer):
    yes, turn = YES | more, {"from": "gpt", "value": "So."} | more
    row = {
        "explicit": MESSAGES | {"chosen": [yes]},
        "whole": WHOLE | {"chosen": [USER, yes]},
        "compared": RENDERED["two conversations"] | {"conversation_b": [USER, yes]},
        "sharegpt": SHAREGPT | {"chosen": turn},
        "one message": {"messages": [USER], "chosen": yes, "rejected": NO},
    }[form]
    tokenizer.chat_template, template = (
        TEMPLATE + "{{ messages[0].name_of }}",
        tokenizer.chat_template,
    )
    notes = [note for note in reading(row).notes(list, tokenizer) if "leaves out" in note]
    tokenizer.chat_template = template
    said = f"the chat template leaves out of messages: {', '.join(keys)}"
    assert [note.partition(" (")[0] for note in notes] == [said] * bool(keys)


MARGINS = [([-1, -0.5], True), (["-2", None], True), ([-1, 0.5], False), ([1, 2], False)]


@pytest.mark.parametrize("margins, other", [*MARGINS, ([0, None], False), (["high", ""], False)])
def test_margins_that_are_all_below_zero_are_said(margins, other, tokenizer):
    rows = [MESSAGES | {"margin": margin} for margin in margins]
    source = Rows("data", Dataset.from_list(rows, on_mixed_types="use_json"))
    notes = reading_of(source, None).notes(list, tokenizer)
    assert any("margin is below zero in all" in note for note in notes) == other


def test_tools_that_no_template_renders_are_named():
    row = MESSAGES | {"tools": '[{"name": "add"}]'}
    assert reading(row).unread(list, "{{ messages }}").startswith("not read: tools (")
    assert reading(row | {"prompt": "How?", **TEXT}).unread(str, TEMPLATE).startswith("not read: t")


def test_the_line_of_columns_that_are_not_read_is_bounded():
    said = reading(MESSAGES | {f"{'long' * 50}{i}": "x" for i in range(300)}).unread(list, TEMPLATE)
    assert f"and {300 - NAMED} more" in said and len(said) < 600
    with pytest.raises(SystemExit, match="and 260 more are no preferences"):
        reading({f"id-{i}": MESSAGES for i in range(300)})  # rows by their names


def test_a_column_that_only_later_rows_fill_is_named():
    rows = [MESSAGES | {"hint": None}] * 150 + [MESSAGES | {"hint": "x"}] * 150
    assert reading(*rows).unread(list, TEMPLATE).startswith("not read: hint")
    rows = [MESSAGES | {"system": None}] * 150 + [MESSAGES | {"system": "In French."}] * 150
    assert reading(*rows).parts["system"] == "system"


@pytest.mark.parametrize("name", ["prompt", "question", "instruction", "messages"])
def test_a_null_question_is_missing(name):
    value = [USER] if name == "messages" else "How?"
    rows = [{name: value, "input": "x", "text": "y", **TEXT} for _ in range(3)]
    found = reading(*rows)
    with pytest.raises(Fault, match=rf"missing.*{name}"):
        to_pair(rows[0] | {name: None}, found.layout, True, found.parts)


def test_a_prompt_that_is_not_the_first_question_is_said():
    rows = [WHOLE | {"prompt": text} for text in ("How?", "Else?", " How? ")]
    said = reading(*rows).other_prompt()
    assert said.startswith("prompt is not the conversation's first question in 1 of the first 3")
    assert reading(rows[0]).other_prompt() == "" and pair(rows[1]) == MESSAGES


CALL = {"name": "weather", "arguments": {"city": "Paris"}}
CALLS = {
    "LLaMA-Factory": ("function_call", "observation", CALL),
    "arguments as text": (
        "function_call",
        "observation",
        CALL | {"arguments": '{"city": "Paris"}'},
    ),
    "Glaive": ("function_call", "function_response", CALL),
    "ms-swift": ("tool_call", "tool_response", CALL),
}


@pytest.mark.parametrize("calls, sees, call", CALLS.values(), ids=CALLS)
def test_sharegpt_may_call_functions(calls, sees, call):
    turns = [("human", "Rain?"), (calls, json.dumps(call)), (sees, "yes")]
    row = SHAREGPT | {"conversations": [{"from": who, "value": text} for who, text in turns]}
    row |= {"rejected": {"from": "function_call", "value": json.dumps(call)}}
    made = to_pair(row, "sharegpt", True)
    asked, called, seen = made["prompt"]
    assert (asked["role"], seen) == ("user", {"role": "tool", "content": "yes"})
    assert called["role"] == "assistant" and called["tool_calls"][0]["function"] == CALL
    assert made["rejected"][0]["tool_calls"] == called["tool_calls"]
    # A template that does not know calls would render nothing: the call stays the text it is.
    plain = to_pair(row, "sharegpt", True, calls=False)["prompt"][1]
    assert plain == {"role": "assistant", "content": json.dumps(call)}
    words = {"from": "function_call", "value": "weather(Paris)"}
    made = to_pair(SHAREGPT | {"chosen": words}, "sharegpt", True)
    assert made["chosen"] == [{"role": "assistant", "content": "weather(Paris)"}]


WINNERS = [
    *(("winner", "model_a", True), ("winner", "model_b", False), ("winner", "tie", None)),
    *(("winner", "tie (bothbad)", None), ("winner", "A", True), ("winner", "b", False)),
    *(("preference", "response_a", True), ("preferred", "B", False), ("choice", "tie", None)),
]


@pytest.mark.parametrize("name, value, first", WINNERS)
def test_who_wins(name, value, first):
    rows = [{"prompt": "How?", "response_a": "a", "response_b": "b", name: v} for v in (value, "A")]
    found = reading(*rows)
    if first is None:
        with pytest.raises(Fault, match="tie"):
            to_pair(rows[0], found.layout, True, found.parts)
    else:
        made = to_pair(rows[0], found.layout, True, found.parts)
        assert made["chosen"][0]["content"] == ("a" if first else "b")
    with pytest.raises(Fault, match="unrated"):
        to_pair(rows[0] | {name: "gpt-4a"}, found.layout, True, found.parts)


@pytest.mark.parametrize("tie", ["tie", "tie (bothbad)", "both", "Both are bad"])
def test_the_first_rows_may_all_be_ties(tie):
    rows = [{"prompt": "How?", "response_a": "a", "response_b": "b", "winner": tie}] * 100
    found = reading(*rows, rows[0] | {"winner": "B"})
    assert found.layout == "compared" and found.parts["verdict"] == "winner"


# The ends of two columns' names, verdicts beside them, and which of them mean the first: a list, or
# what is said where they do not say it.
VERDICTS = {
    "their own numbers": ("12", [1, 2], [True, False]),
    "their own numbers from 0": ("01", ["0", "1"], [True, False]),
    "as floats": ("12", [1.0, 2.0], [True, False]),
    "numbers beside letters": ("ab", [1, 2], [True, False]),
    "0 and 1": ("12", [0, 1], 'if it counts from 0, --column_mapping "response_0=response_1 resp'),
    "0 and 1 as text": ("12", ["0", "1"], 'is better, --column_mapping "human_ref_A=response_1'),
    "0 and 1 beside letters": ("ab", [0, 1], 'if it counts from 0, --column_mapping "response_0='),
    "1 alone beside letters": ("ab", [1, 1], "winner is 1 beside response_a and response_b, and"),
    "truth values": ("ab", [True, False], "winner is false, true beside .*: write a or b into it"),
    "signs": ("12", [-1, 1], "winner is -1, 1 beside .*: write 1 or 2 into it"),
    "from 1 beside names from 0": ("01", [1, 2], "winner is 1, 2 beside .*: write 0 or 1 into it"),
}


@pytest.mark.parametrize("ends, values, firsts", VERDICTS.values(), ids=VERDICTS)
@pytest.mark.parametrize("layout", [None, "compared"])
def test_a_verdict_says_which_response_it_means(ends, values, firsts, layout):
    names = [f"response_{end}" for end in ends]
    rows = [{"prompt": "How?", names[0]: "a", names[1]: "b", "winner": value} for value in values]
    if isinstance(firsts, str):
        with pytest.raises(SystemExit, match=firsts):
            reading(*rows, layout=layout)
        return
    found = reading(*rows, layout=layout)
    made = [to_pair(row, "compared", True, found.parts)["chosen"][0]["content"] for row in rows]
    assert made == ["a" if first else "b" for first in firsts]


@pytest.mark.parametrize("name", ["overall_preference", "preference_strength"])
@pytest.mark.parametrize("values", [[1, 2], [0, 1], [-1, -3], [1, 2, None]])
def test_strengths_without_a_sign_are_refused(name, values):
    row = {"prompt": "How?", "response1": "a", "response2": "b"}
    rows = [row | {name: value} for value in values * 20]
    better, worse = ("response1", "response2") if -1 in values else ("response2", "response1")
    mapping = f'"chosen={better} rejected={worse}"'
    with pytest.raises(
        SystemExit, match=f"{name} is .* zero wherever .* --column_mapping {mapping}"
    ):
        reading(*rows)
    assert reading(*rows, row | {name: -values[0] or -1}).layout == "compared"
    assert reading(*rows[:4]).layout == "compared"  # of a few it may be so
    source = renamed(Rows("data", Dataset.from_list(rows)), {"chosen": better, "rejected": worse})
    assert reading_of(source, None).layout == "explicit"


# What stands beside a strength that is never below zero, and whether the first of each is better.
BESIDE_A_STRENGTH = {
    "a winner": ("ab", {"winner": ["model_a", "model_b"]}, "winner"),
    "numbers": ("12", {"preference": [1, 2]}, "preference"),
    "an id": ("01", {"better_response_id": [0, 1]}, "better_response_id"),
    "winners all alike": ("ab", {"winner": ["A", "A"]}, "winner"),
    "scores": ("12", {"score_1": [3, 1], "score_2": [1, 3]}, "score_1"),
    "what may mean either": ("12", {"preference": [0, 1]}, "preference is 0, 1 beside"),
}


@pytest.mark.parametrize("ends, beside, says", BESIDE_A_STRENGTH.values(), ids=BESIDE_A_STRENGTH)
@pytest.mark.parametrize("name", ["overall_preference", "preference_strength"])
def test_a_strength_without_a_sign_leaves_it_to_the_verdict(ends, beside, says, name):
    first, second = (f"response_{end}" for end in ends)
    rows = [{"prompt": "How?", first: "a", second: "b", name: i + 1} for i in range(2)]
    rows = [row | {n: values[i] for n, values in beside.items()} for i, row in enumerate(rows)]
    if "beside" in says:
        with pytest.raises(SystemExit, match=says):
            reading(*rows)
        return
    found = reading(*rows)
    made = [to_pair(row, found.layout, True, found.parts)["chosen"][0]["content"] for row in rows]
    assert made == ["a", "a" if beside.get("winner") == ["A", "A"] else "b"]
    assert says in found.says(list, TEMPLATE)
    assert found.unread(list, TEMPLATE).startswith(f"not read: {name} (")
    signed = reading(rows[0] | {name: -1}, rows[1])
    assert signed.parts["verdict"] == name


def test_the_mappings_that_the_line_names_say_it():
    rows = [{"prompt": "How?", "response_1": "a", "response_2": "b", "winner": v} for v in (0, 1)]
    counted = {"response_0": "response_1", "response_1": "response_2"}
    true = {"human_ref_A": "response_1", "human_ref_B": "response_2", "labels": "winner"}
    for mapping, expected in ((counted, ["a", "b"]), (true, ["b", "a"])):
        source = renamed(Rows("data", Dataset.from_list(rows)), mapping)
        found = reading_of(source, None)
        made = [to_pair(row, found.layout, True, found.parts) for row in source.data]
        assert [pair["chosen"][0]["content"] for pair in made] == expected


def test_turns_as_lists_of_texts():
    """LMSYS's at Kaggle: JSON lists of what was said, turn by turn."""
    row = {"prompt": '["How?"]', "response_a": '["So."]', "response_b": '["No."]'}
    row |= {"winner_model_a": "1", "winner_model_b": "0", "winner_tie": "0"}
    assert pair(row) == MESSAGES
    parts = reading(row).parts
    with pytest.raises(Fault, match="tie"):
        to_pair(row | {"winner_model_a": "0"}, "compared", True, parts)
    with pytest.raises(Fault, match="is no list of 1 answers"):
        to_pair(row | {"response_a": '["So.", "And?"]'}, "compared", True, parts)


PLAIN = {
    "prompt": {"prompt": "How?", **TEXT},
    "text": {"text": "How?", **TEXT},
    "the prompt again in each": {"text": "How?", "chosen": "How? So.", "rejected": "How? No."},
    "a column that is named": {"prompt": "How?", "topic": "x", **TEXT},
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "models/SmolLM2-135M-Instruct")


@pytest.mark.parametrize("row", PLAIN.values(), ids=PLAIN)
def test_plain_text_on_a_chat_model_is_said_and_can_be_rendered(row, tokenizer):
    """The flag that the line names renders a question and its answers, as messages would be."""
    assert "--preference_layout question renders" in reading(row).plain_text(str, tokenizer)
    assert pair(row, layout="question") == MESSAGES
    assert renders([row], "explicit") == "question"


def test_the_lines_about_the_data_are_printed(tmp_path):
    row = PLAIN["a column that is named"]
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    data = [f"--dataset_name={tmp_path}/train.jsonl", "--eval_strategy=no"]

    def read(*flags):
        recipe = parse(["--config", f"{ROOT}/recipes/smollm2-sentiment.yaml", *data, *flags])
        found = dataset.prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
        return found["train"].pairs[0], "\n".join(quarantine.said(found, None))

    pair, said = read()
    line = next(line for line in said.splitlines() if "without the model's chat template" in line)
    flag = "--preference_layout question"
    assert isinstance(pair["prompt"], str) and flag in line and "not read: topic (" in said
    pair, said = read(*flag.split())
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ([USER], [YES], [NO])
    assert "without the model's chat template" not in said and "not read: topic (" in said


def test_nothing_is_said_of_text_where_nothing_can_be_rendered(tokenizer):
    said = reading(PLAIN["prompt"]).plain_text(str, tokenizer)
    assert "--preference_layout question" in said
    rendered = {"prompt": "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n", **TEXT}
    assert reading(rendered).plain_text(str, tokenizer) == ""
    assert reading(DIALOGUE).plain_text(str, tokenizer) == ""
    for own in ("<|endoftext|>", "<|prompter|>How?<|endoftext|><|assistant|>"):
        asked = {"prompt": f"What is {own}?", **TEXT}  # no token of this template
        assert "--preference_layout question" in reading(asked).plain_text(str, tokenizer)
    one_of_many = reading(rendered, PLAIN["prompt"], PLAIN["prompt"])
    assert "--preference_layout question" in one_of_many.plain_text(str, tokenizer)
    implicit = {"chosen": "This film is good.", "rejected": "This film is bad."}
    assert "a column of its own" in reading(implicit).plain_text(str, tokenizer)
    assert renders([implicit], "implicit") is renders([MESSAGES], "explicit") is None
    tokenizer.chat_template, template = None, tokenizer.chat_template
    assert reading(PLAIN["prompt"]).plain_text(str, tokenizer) == ""
    tokenizer.chat_template = template


NEEDS = {
    "no prompt to render": (
        WHOLE | {"chosen": "a", "rejected": "ab"},
        "question",
        "have no prompt",
    ),
    "no candidates": (MESSAGES, "rated", "have no answers to read as rated"),
    "no verdict": (MESSAGES, "compared", "have no answers to read as compared"),
    "no score": (MESSAGES, "scored", "have no answers to read as scored"),
    "a prompt of another name": (
        {"query": "How?", "chosen": "So.", "rejected": "No."},
        None,
        r"no column is known to hold it: name it with --column_mapping",
    ),
    "no other column": (TEXT, None, "no column is known to hold it: give each row a `prompt`"),
    "answers alone": (
        {"response_1": "a", "response_2": "b", "preference": 1},
        None,
        "hold answers and no prompt: give each row a `prompt`",
    ),
    "nothing to map": (
        {"prompt": "a", "chosen": "b"},
        None,
        "no two columns of answers that a map",
    ),
    "numbers alone": (
        {"x": 5, "y": 3},
        None,
        "no two columns of answers that a mapping could name",
    ),
}


@pytest.mark.parametrize("row, layout, says", NEEDS.values(), ids=NEEDS)
def test_a_layout_that_lacks_its_columns_is_refused(row, layout, says):
    with pytest.raises(SystemExit, match=says) as error:
        reading(row, layout=layout)
    assert len(str(error.value).splitlines()) == 1


ODD = {
    "a role that is a list": {"chosen": [{"role": ["a"], "content": "b"}], "rejected": [YES]},
    "messages that are a number": MESSAGES | {"messages": 5},
    "chosen that is one message": {"messages": [USER], "chosen": YES, "rejected": {}},
    "a number as a system prompt": MESSAGES | {"system": 5},
}


@pytest.mark.parametrize("row", ODD.values(), ids=ODD)
def test_odd_values_in_the_first_row_are_no_crash(row, tokenizer):
    found = reading_of(Rows("data", Dataset.from_list([row], on_mixed_types="use_json")), None)
    assert found.says(list, TEMPLATE) and "\n" not in "".join(found.notes(list, tokenizer))


@pytest.mark.parametrize("beside", [0, "x0", [{"role": "user", "content": "q"}], {"a": 1}])
def test_a_column_without_a_name_is_none_of_ours(beside):
    """As R and pandas write the names of rows."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "": beside}
    for layout in ("explicit", "question"):
        named = {key: value for key, value in row.items() if key}
        assert to_pair(row, layout, True) == to_pair(named, layout, True)
