"""The embedded preferences: made as their card says, from the model, the reward and the seed."""

import json
import statistics

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer

import embedded_data
from dpo.evaluation.judges.known_reward import vader_score
from support.place import EMBEDDED_MODEL, ROOT

FOLDER = ROOT / "recipes/data/sentiment"


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict]]:
    return {
        name: [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    }


def prompt_of(pair: dict) -> str:
    return pair["prompt"][0]["content"]


def test_it_loads_as_trl_reads_it(splits):
    data = load_dataset(str(FOLDER))
    assert {name: len(data[name]) for name in data} == {n: len(v) for n, v in splits.items()}
    assert data["train"][0] == splits["train"][0]


def test_prompts_are_many_and_no_subject_is_in_both_splits(splits):
    train, test = ({prompt_of(pair) for pair in splits[name]} for name in ("train", "test"))
    assert len(train) > 400 and len(test) >= 100
    subjects = (FOLDER / "subjects.txt").read_text().splitlines()
    assert len(subjects) == len(set(subjects)) == 160

    def in_prompts(prompts):
        questions = embedded_data.QUESTIONS
        return {s for s in subjects if any(q.format(s) in prompts for q in questions)}

    assert not in_prompts(train) & in_prompts(test)
    assert len(in_prompts(train)) == 128 and len(in_prompts(test)) == 32


def test_rewards_and_labels_follow_from_text_and_seed(splits):
    for pair in splits["train"] + splits["test"]:
        chosen, rejected = (pair[key][0]["content"] for key in ("chosen", "rejected"))
        assert pair["vader_chosen"] == vader_score(chosen) != vader_score(rejected)
        higher, lower = sorted((chosen, rejected), key=vader_score, reverse=True)
        assert embedded_data.label(prompt_of(pair), higher, lower, vader_score) == pair


def test_label_noise_is_that_of_bradley_terry(splits):
    """Drawn labels against their expectation, within three standard deviations."""
    for pairs in splits.values():
        gaps = torch.tensor([abs(p["vader_chosen"] - p["vader_rejected"]) for p in pairs])
        wrong = torch.sigmoid(-embedded_data.REWARD_SCALE * gaps)
        drawn = sum(p["vader_chosen"] < p["vader_rejected"] for p in pairs)
        deviation = (wrong * (1 - wrong)).sum().sqrt().item()
        assert abs(drawn - wrong.sum().item()) < 3 * deviation


def test_the_pairs_are_of_like_length(splits):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    for pair in splits["train"]:
        lengths = [
            len(tokenizer(pair[key][0]["content"])["input_ids"]) for key in ("chosen", "rejected")
        ]
        # A token more: a text that is tokenised anew can come out shorter than it was sampled.
        assert abs(lengths[0] - lengths[1]) <= embedded_data.LENGTH_DIFFERENCE + 2
    gap = statistics.mean(p["vader_chosen"] - p["vader_rejected"] for p in splits["train"])
    assert gap > 0.5


def test_the_card_is_what_the_script_writes(splits):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    assert (FOLDER / "README.md").read_text() == embedded_data.card(splits, tokenizer)
