"""The embedded preferences: made as their card says, from the model, the reward and the seed."""

import json
import re
import statistics
from itertools import chain
from pathlib import Path

import pytest
import torch
from datasets import load_dataset

import embedded_data
from dpo.evaluation.judges.known_reward import vader_score
from dpo.models.sampling import said
from dpo.pairs.picking import Answer, Picking
from support.place import ROOT

FOLDER = ROOT / "recipes/data/sentiment"
HOW = {
    name: embedded_data.SETTINGS[name]
    for name in ("max_length_difference", "label_temperature", "near_duplicate")
}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict]]:
    return {name: rows(name) for name in ("train", "test")}


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


def test_the_pairs_are_those_that_are_picked_of_all_answers(splits):
    """Every answer that the model gave is there: pairs and labels follow from them and the seed."""
    candidates, found = rows("candidates"), {"train": [], "test": []}
    assert [prompt_of(row) for row in candidates] == [*chain(*embedded_data.prompts().values())]
    picking = Picking(embedded_data.SETTINGS["pick"], **HOW)
    for row in candidates:
        assert len(row["answers"]) == 8
        usable = [
            Answer(n, each["text"], each["tokens"], vader_score(each["text"]))
            for n, each in enumerate(row["answers"])
            if each["finished"] and each["text"]
        ]
        for chosen, rejected in picking.pick(said(row["prompt"]), usable)[0]:
            texts = [row["answers"][at]["text"] for at in (chosen, rejected)]
            assert abs(row["answers"][chosen]["tokens"] - row["answers"][rejected]["tokens"]) <= 4
            pair = {"prompt": row["prompt"]}
            for side, text in zip(("chosen", "rejected"), texts, strict=True):
                pair[side] = [{"role": "assistant", "content": text}]
            pair["vader_chosen"], pair["vader_rejected"] = map(vader_score, texts)
            found[row["split"]].append(pair)
    assert found == splits


def test_label_noise_is_that_of_bradley_terry(splits):
    """Drawn labels against their expectation, within three standard deviations."""
    for pairs in splits.values():
        gaps = torch.tensor([abs(p["vader_chosen"] - p["vader_rejected"]) for p in pairs])
        wrong = torch.sigmoid(-gaps / embedded_data.LABEL_TEMPERATURE)
        drawn = sum(p["vader_chosen"] < p["vader_rejected"] for p in pairs)
        deviation = (wrong * (1 - wrong)).sum().sqrt().item()
        assert abs(drawn - wrong.sum().item()) < 3 * deviation
    gap = statistics.mean(p["vader_chosen"] - p["vader_rejected"] for p in splits["train"])
    assert gap > 0.5


def test_the_card_counts_what_is_there(splits):
    card = (FOLDER / "README.md").read_text()
    assert card.endswith(embedded_data.OF_THE_CARD)
    for split, pairs in splits.items():
        assert f"| pairs, {split} | {len(pairs)} |" in card
    wrong = [
        f"{sum(p['vader_chosen'] < p['vader_rejected'] for p in pairs) / len(pairs):.1%}"
        for pairs in splits.values()
    ]
    assert f"| labels against the score | {' | '.join(wrong)} |" in card
    (command,) = re.findall(r"```text\n(make pairs.*?)```", card, flags=re.DOTALL)
    for name, value in embedded_data.SETTINGS.items():
        assert str(value).removesuffix(".0") in command, name
    assert Path(FOLDER / "margins.png").stat().st_size > 10_000
