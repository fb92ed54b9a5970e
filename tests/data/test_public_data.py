"""The columns of public data sets, by their cards and code or by common use, with made-up rows:
each is read right, or refused in a line that says what it is and what to do."""

import json

import pytest
from datasets import Dataset

from dpo.data.formats.layouts import to_pair
from dpo.data.formats.telling import reading_of
from dpo.data.sources.load import Rows
from dpo.recipe.arguments import LAYOUTS
from support.shelf_rows import said

Q, GOOD, BAD = "How?", "So.", "No."
USER, SYSTEM = said("user", Q), said("system", "Be brief.")
YES, NO = said("assistant", GOOD), said("assistant", BAD)
TALK, OTHER = [USER, YES], [USER, NO]
PAIR = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
WITH_SYSTEM = PAIR | {"prompt": [SYSTEM, USER]}
TEXT = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
EARLIER = [said("user", "Hello."), said("assistant", "Hello!")]
HUMAN = f"\n\nHuman: Hello.\n\nAssistant: Hello!\n\nHuman: {Q}\n\nAssistant:"
LATER = PAIR | {"prompt": [*EARLIER, USER]}
SCORES = {"score_chosen": 4.5, "score_rejected": 1.0}


def parts(role: str, text: str) -> dict:
    return {
        "role": role,
        "content": [{"type": "text", "text": text, "image": None, "mimeType": None}],
    }


def turn(who: str, text: str) -> dict:
    return {"from": who, "value": text}


CANDIDATES = [
    {
        "model": "a",
        "response": BAD,
        "critique": "c",
        "overall_score": 10.0,
        "fine-grained_score": 1.0,
    },
    {
        "model": "b",
        "response": GOOD,
        "critique": "c",
        "overall_score": 7.0,
        "fine-grained_score": 4.5,
    },
]

# name: (a row, its layout, the pair, the columns that are named as not read)
READ = {
    "Anthropic/hh-rlhf": (
        {"chosen": f"{HUMAN} {GOOD}", "rejected": f"{HUMAN} {BAD}"},
        *("dialogue", LATER, []),
    ),
    "Dahoas/full-hh-rlhf": (
        {"prompt": HUMAN, "response": f" {GOOD}", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
        *("dialogue", LATER, ["response"]),
    ),
    "HuggingFaceH4/hh-rlhf-h4": ({"chosen": TALK, "rejected": OTHER}, "implicit", PAIR, []),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {"prompt": Q, "prompt_id": "5", "chosen": TALK, "rejected": OTHER, "messages": TALK}
        | {"score_chosen": 8.5, "score_rejected": 4.0},
        *("implicit", PAIR, ["prompt_id"]),
    ),
    "trl-lib/ultrafeedback_binarized": (
        {"chosen": TALK, "rejected": OTHER, "score_chosen": 8.5, "score_rejected": 4.0},
        *("implicit", PAIR, []),
    ),
    "openbmb/UltraFeedback": (
        {"source": "x", "instruction": Q, "models": ["a", "b"], "completions": CANDIDATES}
        | {"correct_answers": ["None"], "incorrect_answers": ["None"]},
        *("rated", PAIR | SCORES, ["source", "models", "correct_answers", "incorrect_answers"]),
    ),
    "argilla/ultrafeedback-binarized-preferences": (
        {"source": "x", "instruction": Q, "chosen_response": GOOD, "rejected_response": BAD}
        | {"chosen_avg_rating": 4.75, "rejected_avg_rating": 2.0, "chosen_model": "gpt-4"},
        *("question", PAIR, ["source", "chosen_model"]),
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        {"source": "x", "prompt": Q, "chosen": TALK, "chosen-rating": 5.0, "chosen-model": "a"}
        | {"rejected": OTHER, "rejected-rating": 3.25, "rejected-model": "b"},
        *("implicit", PAIR, ["source", "chosen-model", "rejected-model"]),
    ),
    "Intel/orca_dpo_pairs": (
        {"system": "Be brief.", "question": Q, "chosen": GOOD, "rejected": BAD},
        *("question", WITH_SYSTEM, []),
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        {"system": "Be brief.", "input": Q, "chosen": GOOD, "rejected": BAD}
        | {"generations": [GOOD, BAD], "order": ["chosen", "rejected"], "rating": [9.0, 1.0]}
        | {"labelling_model": "m", "status": "unchanged", "chosen_score": 9.0},
        *("question", WITH_SYSTEM, ["generations", "order", "rating", "labelling_model", "status"]),
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        {"source": "x", "conversation": [{"input": Q, "output": None}], "original_response": GOOD}
        | {"prompt": Q, "chosen": TALK, "rejected": OTHER, "rating_chosen": 5},
        *("implicit", PAIR, ["source", "conversation", "original_response"]),
    ),
    "argilla/dpo-mix-7k": (
        {"dataset": "x", "chosen": TALK, "rejected": OTHER}
        | {"chosen_rating": 5.0, "rejected_rating": 4.0},
        *("implicit", PAIR, ["dataset"]),
    ),
    "argilla/distilabel-math-preference-dpo": (
        {"metadata": "{}", "instruction": Q, "chosen_response": GOOD, "chosen_rating": 9.0}
        | {"rejected_response": BAD, "rejected_rating": 7.0},
        *("question", PAIR, ["metadata"]),
    ),
    "jondurbin/truthy-dpo-v0.1": (
        {"id": "5", "source": "x", "system": "Be brief.", "prompt": Q}
        | {"chosen": GOOD, "rejected": BAD},
        *("question", WITH_SYSTEM, ["id", "source"]),
    ),
    "jondurbin/py-dpo-v0.1": (
        {"prompt": Q, "chosen": GOOD, "rejected": BAD, "id": "5"},
        *("explicit", TEXT, ["id"]),
    ),
    "mlabonne/orpo-dpo-mix-40k": (
        {"source": "x", "chosen": TALK, "rejected": OTHER, "prompt": Q, "question": Q},
        *("implicit", PAIR, ["source", "question"]),
    ),
    "trl-lib/tldr-preference": (
        {"prompt": "POST: x\n\nTL;DR:", "chosen": " So.", "rejected": " No."},
        "explicit",
        {"prompt": "POST: x\n\nTL;DR:", "chosen": " So.", "rejected": " No."},
        [],
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (
        {"id": "5", "source": "x", "prompt": Q, "chosen": TALK, "rejected": OTHER},
        *("implicit", PAIR, ["id", "source"]),
    ),
    "Skywork/Skywork-Reward-Preference-80K-v0.2": (
        {"chosen": TALK, "rejected": OTHER, "source": "x"},
        *("implicit", PAIR, ["source"]),
    ),
    "princeton-nlp/llama3-ultrafeedback": (
        {"prompt_id": "5", "prompt": Q, "all_generated_responses": [GOOD, BAD]}
        | {"all_rm_scores": [0.16, 0.11], "chosen": TALK, "rejected": OTHER},
        *("implicit", PAIR, ["prompt_id", "all_generated_responses", "all_rm_scores"]),
    ),
    "allenai/reward-bench": (
        {"prompt": Q, "chosen": GOOD, "chosen_model": "a", "rejected": BAD}
        | {"rejected_model": "b", "subset": "s", "id": 5},
        *("explicit", TEXT, ["chosen_model", "rejected_model", "subset"]),
    ),
    "nvidia/HelpSteer3": (
        {"domain": "x", "language": "y", "context": [*EARLIER, USER], "response1": BAD}
        | {"response2": GOOD, "overall_preference": 2, "individual_preference": [{"score": 2}]},
        *("compared", LATER, ["domain", "language", "individual_preference"]),
    ),
    "nvidia/HelpSteer2, preferences": (
        {"split": "train", "prompt": Q, "response_1": GOOD, "response_2": BAD}
        | {"preference_strength": -2, "preference_statement": "s", "preference_elaboration": "e"},
        *("compared", PAIR, ["split", "preference_statement", "preference_elaboration"]),
    ),
    "stanfordnlp/SHP": (
        {"post_id": "5", "domain": "x", "upvote_ratio": 0.9, "history": Q, "c_root_id_A": "a"}
        | {"c_root_id_B": "b", "score_A": 9, "score_B": 3, "human_ref_A": GOOD}
        | {"human_ref_B": BAD, "labels": 1, "score_ratio": 3.0},
        *("compared", PAIR, ["post_id", "domain", "c_root_id_A", "c_root_id_B"]),
    ),
    "stanfordnlp/SHP, the other one, as text": (
        {"history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": "0", "score_ratio": 3.0},
        *("compared", PAIR, []),
    ),
    "lmsys/chatbot_arena_conversations": (
        {"question_id": "5", "model_a": "a", "model_b": "b", "winner": "model_b", "judge": "j"}
        | {"conversation_a": OTHER, "conversation_b": TALK, "turn": 1, "anony": True},
        *("compared", PAIR, ["question_id", "model_a", "model_b", "judge"]),
    ),
    "lmsys/mt_bench_human_judgments": (
        {"question_id": 5, "model_a": "a", "model_b": "b", "winner": "model_a", "judge": "j"}
        | {"conversation_a": [*EARLIER, *TALK], "conversation_b": [*EARLIER, *OTHER], "turn": 2},
        *("compared", LATER, ["model_a", "model_b", "judge"]),
    ),
    "lmarena-ai/arena-human-preference-55k": (
        {"id": "5", "model_a": "a", "model_b": "b", "prompt": json.dumps([Q])}
        | {"response_a": json.dumps([BAD]), "response_b": json.dumps([GOOD])}
        | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
        *("compared", PAIR, ["id", "model_a", "model_b"]),
    ),
    "lmarena-ai/arena-human-preference-140k": (
        {"id": "5", "model_a": "a", "model_b": "b", "winner": "model_a", "language": "en"}
        | {"conversation_a": [parts("user", Q), parts("assistant", GOOD)]}
        | {"conversation_b": [parts("user", Q), parts("assistant", BAD)], "is_code": False},
        *("compared", PAIR, ["id", "model_a", "model_b", "language"]),
    ),
    "lmarena-ai/search-arena-24k": (
        {"messages_a": OTHER, "messages_b": TALK, "winner": "model_b", "turn": 1, "intent": "x"},
        *("compared", PAIR, ["intent"]),
    ),
    "PKU-Alignment/PKU-SafeRLHF": (
        {"prompt": Q, "response_0": BAD, "response_1": GOOD, "prompt_source": "x"}
        | {"is_response_0_safe": True, "better_response_id": 1, "safer_response_id": 0},
        *("compared", PAIR, ["prompt_source"]),
    ),
    "tatsu-lab/alpaca_farm": (
        {"instruction": Q, "input": "Here.", "output_1": BAD, "output_2": GOOD}
        | {"preference": 2, "raw_preference": 3},
        *("compared", PAIR | {"prompt": [said("user", f"{Q}\nHere.")]}, []),
    ),
    "NCSOFT/offsetbias": (
        {"instruction": Q, "output_1": GOOD, "output_2": BAD, "label": 1, "category": "x"},
        *("compared", PAIR, ["category"]),
    ),
    "openai/webgpt_comparisons": (
        {"question": {"dataset": "eli5", "id": "5", "full_text": Q}, "answer_0": GOOD}
        | {"quotes_0": {"title": ["t"], "extract": ["e"]}, "score_0": 0.5, "answer_1": BAD}
        | {"quotes_1": {"title": ["t"], "extract": ["e"]}, "score_1": -0.5},
        *("compared", PAIR, ["quotes_0", "quotes_1"]),
    ),
    "berkeley-nest/Nectar": (
        {"prompt": f"{HUMAN} ", "turns": 2, "source": ["x"], "good_natured": True}
        | {
            "answers": [
                {"answer": t, "model": "m", "rank": r} for t, r in ((BAD, 7.0), (GOOD, 1.0))
            ]
        },
        *("rated", LATER, ["source"]),
    ),
    "lvwerra/stack-exchange-paired": (
        {"qid": 5, "question": Q, "date": "2020-01-01", "metadata": ["x"]}
        | {"response_j": GOOD, "response_k": BAD},
        *("question", PAIR, ["date", "metadata"]),
    ),
    "answers with a score each": (
        {"qid": 5, "question": Q, "metadata": ["x"]}
        | {"answers": [{"text": GOOD, "pm_score": 4.5}, {"text": BAD, "pm_score": 1.0}]},
        *("rated", PAIR | SCORES, ["metadata"]),
    ),
    "llamafactory/demo_data, dpo_en_demo": (
        {"conversations": [turn("human", Q)], "chosen": turn("gpt", GOOD)}
        | {"rejected": turn("gpt", BAD)},
        *("sharegpt", PAIR, []),
    ),
    "LLaMA-Factory's Alpaca, with a history": (
        {"instruction": Q, "input": "", "chosen": GOOD, "rejected": BAD, "system": "Be brief."}
        | {"history": [["Hello.", "Hello!"]]},
        *("question", PAIR | {"prompt": [SYSTEM, *EARLIER, USER]}, []),
    ),
    "ms-swift": (
        {"messages": [SYSTEM, *TALK], "rejected_response": BAD},
        *("implicit", WITH_SYSTEM, []),
    ),
    "distilabel's generations": (
        {"instruction": Q, "generations": [BAD, GOOD], "ratings": [1.0, 4.5], "model_name": "m"},
        *("rated", PAIR | SCORES, ["model_name"]),
    ),
    "HuggingFaceTB/smoltalk2": (
        {"chosen": TALK, "rejected": OTHER, "prompt": Q, "source": "x"}
        | {"chat_template_kwargs": {"enable_thinking": False}},
        *("implicit", PAIR, ["source"]),
    ),
    "xinlai/Math-Step-DPO-10K": (
        {"dataset": "x", "prompt": Q, "initial_reason_steps": "Step 1.", "chosen": GOOD}
        | {"rejected": BAD, "full_chosen": "f", "full_rejected": "f", "answer": "5"},
        "explicit",
        TEXT,  # without the steps before, which are named
        ["dataset", "initial_reason_steps", "full_chosen", "full_rejected", "answer"],
    ),
}

# name: (a row, what is said of it)
REFUSED = {
    "openbmb/UltraInteract_pair": (
        {"task": "x", "dataset": "y", "trajectory": [turn("user", Q)], "chosen": "Step: a"}
        | {"rejected": "Step: b", "id": "5", "parent_id": "4"},
        r'no column is known to hold it.*--column_mapping "prompt=trajectory"',
    ),
    "Vezora/Code-Preference-Pairs": (
        {"input": Q, "accepted": GOOD, "rejected": BAD, "ID": 5},
        r"columns input, accepted, rejected, ID are no preferences.*column_mapping",
    ),
    "openai/summarize_from_feedback": (
        {"info": {"id": "5", "post": Q, "title": "t"}, "choice": 0, "worker": "w"}
        | {"summaries": [{"text": GOOD, "policy": "p"}, {"text": BAD, "policy": "p"}]},
        r"columns info, choice, worker, summaries are no preferences.*column_mapping",
    ),
    "prometheus-eval/Preference-Collection": (
        {"orig_criteria": "c", "orig_instruction": Q, "orig_response_A": GOOD}
        | {"orig_response_B": BAD, "orig_preference": "A", "instruction": "i", "output": "o"},
        "single answers with none to compare them with",
    ),
    "OpenAssistant/oasst1": (
        {"message_id": "5", "parent_id": "4", "text": Q, "role": "prompter", "rank": None},
        r"columns message_id, parent_id, text, role, rank are no preferences",
    ),
    "trl-lib/kto-mix-14k": (
        {"prompt": [USER], "completion": [YES], "label": True},
        r"label of good or bad \(unpaired.*cannot be paired",
    ),
    "KTO in plain text": (
        {"prompt": Q, "completion": GOOD, "label": False},
        r"label of good or bad \(unpaired.*KTO, or bring a chosen and a rejected",
    ),
    "llamafactory/demo_data, kto_en_demo": (
        {"messages": TALK, "label": True},
        r"label of good or bad \(unpaired",
    ),
    "trl-lib/math_shepherd": (
        {"prompt": Q, "completions": ["Step 1.", "Step 2."], "labels": [True, False]},
        "stepwise supervision",
    ),
    "HuggingFaceH4/ultrachat_200k": (
        {"prompt": Q, "prompt_id": "5", "messages": TALK},
        r"single answers with none to compare them with \(data of supervised fine-tuning\)",
    ),
    "tatsu-lab/alpaca": (
        {"instruction": Q, "input": "", "output": GOOD, "text": "t"},
        "supervised fine-tuning",
    ),
    "openai/gsm8k": ({"question": Q, "answer": GOOD}, "supervised fine-tuning"),
    "trl-lib/ultrafeedback-prompt": ({"prompt": [USER]}, "prompts alone"),
    "HuggingFaceH4/hhh_alignment": (
        {"input": Q, "targets": {"choices": [GOOD, BAD], "labels": [1, 0]}},
        r"columns input, targets are no preferences that are known",
    ),
    "Anthropic/model-written-evals": (
        {"question": Q, "answer_matching_behavior": GOOD, "answer_not_matching_behavior": BAD},
        r'--column_mapping "prompt=question',
    ),
    "databricks/databricks-dolly-15k": (
        {"instruction": Q, "context": "", "response": GOOD, "category": "x"},
        "supervised fine-tuning",
    ),
    "lmsys/lmsys-chat-1m": (
        {"conversation_id": "5", "model": "m", "conversation": TALK, "turn": 1},
        "supervised fine-tuning",
    ),
    "openwebtext": ({"text": Q}, "prompts alone"),
    "LLaMA-Factory's former Alpaca": (
        {"instruction": Q, "input": "", "output": [GOOD, BAD]},
        "are no preferences that are known",
    ),
}


def reading(*rows: dict, **given):
    return reading_of(Rows("data", Dataset.from_list([*rows])), given.get("layout"))


def test_there_are_forty_data_sets():
    assert len(READ) + len(REFUSED) > 50
    assert {layout for _, layout, _, _ in READ.values()} == LAYOUTS.keys() - {"scored"}


@pytest.mark.parametrize("row, layout, pair, unread", READ.values(), ids=READ)
def test_a_public_data_set_is_read(row, layout, pair, unread):
    found = reading(row)
    assert found.layout == layout
    assert to_pair(found.rows[0], layout, True, found.parts) == pair
    said = found.unread(str if isinstance(pair["prompt"], str) else list, "{{ messages }}")
    names = said.removeprefix("not read: ").partition(" (")[0].partition(" and ")[0]
    assert names == ", ".join(unread)


@pytest.mark.parametrize("row, says", REFUSED.values(), ids=REFUSED)
def test_a_public_data_set_is_refused(row, says):
    with pytest.raises(SystemExit, match=says) as error:
        reading(row)
    assert len(str(error.value).splitlines()) == 1
