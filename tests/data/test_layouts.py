"""Every layout that preference data come in becomes the same pair, told from its columns."""

import json

import pytest

from dpo.data.formats.layouts import Fault, to_pair
from dpo.data.formats.parts import told
from dpo.data.sources.load import load
from dpo.recipe.arguments import LAYOUTS
from support.shelf_rows import ROWS, said

USER, GOOD, BAD = said("user", "How?"), said("assistant", "So."), said("assistant", "No.")
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
SYSTEM = said("system", "Be brief.")
WITH_SYSTEM = PAIR | {"prompt": [SYSTEM, USER]}
HUMAN, GPT = {"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}
OTHER = {"from": "gpt", "value": "No."}
RATED = [
    {"response": "No.", "overall_score": "10", "fine-grained_score": 1.0},
    {"response": "So.", "overall_score": 7.0, "fine-grained_score": 4.5},
    {"response": "Unread.", "overall_score": "N/A", "fine-grained_score": None},
]

CASES = {
    "messages": ("explicit", PAIR, PAIR),
    "the prompt again in each": (
        "explicit",
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PAIR,
    ),
    "text": (
        "explicit",
        {"prompt": "How? ", "chosen": "So.", "rejected": "No."},
        {"prompt": "How? ", "chosen": "So.", "rejected": "No."},
    ),
    "text, the prompt again in each": (
        "explicit",
        {"text": "How?", "chosen": "How? So.", "rejected": "How? No."},
        {"prompt": "How?", "chosen": " So.", "rejected": " No."},
    ),
    "an implicit prompt": ("implicit", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
    "a string beside conversations": (
        "implicit",
        {"prompt": "How?", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        WITH_SYSTEM,
    ),
    "a string and single answers": (
        "question",
        {"prompt": "How?", "chosen": [GOOD], "rejected": [BAD]},
        PAIR,
    ),
    "an implicit prompt in ShareGPT's words": (
        "implicit",
        {"chosen": [HUMAN, GPT], "rejected": [HUMAN, OTHER]},
        PAIR,
    ),
    "ShareGPT": ("sharegpt", {"conversations": [HUMAN], "chosen": GPT, "rejected": OTHER}, PAIR),
    "ShareGPT with a system prompt": (
        "sharegpt",
        {
            "conversations": [{"from": "system", "value": "Be brief."}, HUMAN],
            "chosen": GPT,
            "rejected": OTHER,
        },
        WITH_SYSTEM,
    ),
    "Orca pairs": (
        "question",
        {"system": "Be brief.", "question": "How?", "chosen": "So.", "rejected": "No."},
        WITH_SYSTEM,
    ),
    "Orca pairs, no system prompt": (
        "question",
        {"system": "", "question": "How?", "chosen": "So.", "rejected": "No."},
        PAIR,
    ),
    "argilla's responses": (
        "question",
        {"instruction": "How?", "chosen_response": "So.", "rejected_response": "No."},
        PAIR,
    ),
    "Alpaca's task and its input": (
        "question",
        {"instruction": "How?", "input": "Here.", "chosen": "So.", "rejected": "No."},
        PAIR | {"prompt": [said("user", "How?\nHere.")]},
    ),
    "one answer begins like the prompt": (
        "explicit",
        {"prompt": "How?", "chosen": "How? So.", "rejected": "No."},
        {"prompt": "How?", "chosen": "How? So.", "rejected": "No."},
    ),
    "HH, the first turn at the start": (
        "dialogue",
        {"chosen": "Human: How?\n\nAssistant: So.", "rejected": "Human: How?\n\nAssistant: No."},
        PAIR,
    ),
    "HH": (
        "dialogue",
        {
            "chosen": "\n\nHuman: How?\n\nAssistant: So.",
            "rejected": "\n\nHuman: How?\n\nAssistant: No.",
        },
        PAIR,
    ),
    "HelpSteer3": (
        "compared",
        {"context": [USER], "response1": "No.", "response2": "So.", "overall_preference": 2},
        PAIR,
    ),
    "HelpSteer2's preferences": (
        "compared",
        {"prompt": "How?", "response_1": "So.", "response_2": "No.", "preference_strength": -1},
        PAIR,
    ),
    "UltraFeedback, raw": (
        "rated",
        {"instruction": "How?", "completions": RATED},
        PAIR | {"score_chosen": 4.5, "score_rejected": 1.0},
    ),
    "responses and ratings": (
        "rated",
        {"prompt": "How?", "responses": ["No.", "So."], "ratings": [1, 5]},
        PAIR | {"score_chosen": 5.0, "score_rejected": 1.0},
    ),
}


@pytest.mark.parametrize("layout, row, pair", CASES.values(), ids=CASES)
def test_a_row_becomes_the_pair(layout, row, pair, tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (stored,) = load(str(tmp_path / "train.jsonl"))["train"].data
    assert told([stored])[0] == layout
    assert to_pair(stored, layout, chat=True) == pair


def test_all_layouts_are_tried():
    assert {layout for layout, _, _ in CASES.values()} == LAYOUTS.keys() - {"scored"}
    scored = [{"prompt": "How?", "response": "So.", "helpfulness": 4}]
    assert told(scored)[0] == "scored"
    assert told([{"text": "How?", "label": 1}])[0] is None


@pytest.mark.parametrize("name", ROWS)
def test_the_data_of_the_shelf_are_told_apart(name):
    rows = [ROWS[name](i) for i in range(3)]
    pair = to_pair(rows[1], told(rows)[0], chat=True)
    whole = pair["prompt"] if isinstance(pair["prompt"], str) else pair["prompt"][-1]["content"]
    assert "1" in whole and pair["chosen"] != pair["rejected"]


def test_dialogues_stay_text_for_a_model_without_a_chat_template():
    row = {
        "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
        "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: E",
    }
    text = to_pair(row, "dialogue", chat=False)
    assert text["prompt"] == "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"
    assert (text["chosen"], text["rejected"]) == (" D", " E")  # as the paper's code cuts them
    messages = to_pair(row, "dialogue", chat=True)["prompt"]
    assert [m["content"] for m in messages] == ["A", "B", "C"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]


def test_the_better_response_is_the_one_with_the_sign():
    row = {"context": [USER], "response1": "one", "response2": "two"}
    for strength, chosen in ((-3, "one"), (-1, "one"), (1, "two"), (3, "two")):
        pair = to_pair(row | {"overall_preference": strength}, "compared", chat=True)
        assert pair["chosen"][0]["content"] == chosen
    with pytest.raises(Fault, match="tie"):
        to_pair(row | {"overall_preference": 0}, "compared", chat=True)
