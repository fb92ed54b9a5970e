"""Answers name what they were asked about, or do not: told without a list of words."""

import json
import random

from dpo.evaluation import on_topic
from support.place import ROOT

THINGS = [
    *("bakery", "puppet", "umbrella", "museum", "garage"),
    *("library", "sweater", "pizza", "dentist", "tram"),
    *("violin", "harbour", "castle", "kitchen", "magazine"),
    *("glacier", "lantern", "orchard", "saddle", "turbine"),
]
ASKED = [f"Review a {thing} in one sentence." for thing in THINGS]


def measured(policy, against=None):
    against = against or [[f"The {thing} was nice, and I liked it."] for thing in THINGS]
    return on_topic.measure(ASKED, policy, against)


def test_cheer_beside_the_point_is_off_topic():
    cheer = [["I am happy to help with one review sentence, and I liked it."] for _ in THINGS]
    found = measured(cheer)
    assert found["against"]["mean"] == 1 and found["policy"]["mean"] == 0
    assert found["prompts"] == 20 and found["difference"]["high"] < 0


def test_plurals_and_words_made_of_it_are_on_topic():
    answers = [[f"Such {thing}s!", f"{thing.upper()}LIKE"] for thing in THINGS]
    against = [["Nice.", "Fine."]] * 20
    # A word of four letters is not sought within others: a tram is not in tramontana.
    assert measured(answers, against)["policy"]["mean"] == 39 / 40


def test_another_prompts_subject_is_off_topic():
    shuffled = THINGS[1:] + THINGS[:1]
    assert measured([[f"The {thing}."] for thing in shuffled])["policy"]["mean"] == 0


def test_too_few_prompts_say_nothing():
    assert on_topic.measure(ASKED[:19], [["a"]] * 19, [["b"]] * 19) is None
    assert on_topic.measure(["Continue."] * 30, [["a"]] * 30, [["b"]] * 30) is None


def test_of_the_embedded_prompts_the_subject_alone_counts():
    rows = (ROOT / "recipes/data/sentiment/test.jsonl").read_text().splitlines()
    pairs = [json.loads(row) for row in rows]
    asked = [pair["prompt"][0]["content"] for pair in pairs]
    own = [[pair["chosen"][0]["content"]] for pair in pairs]
    others = own.copy()
    random.Random(0).shuffle(others)
    found = on_topic.measure(asked, own, others)
    assert found["prompts"] == len(asked)
    assert found["policy"]["mean"] > 0.75 and found["against"]["mean"] < 0.1
    frame = [["Answer in one sentence: what do you think of a one-sentence review?"]] * len(asked)
    assert on_topic.measure(asked, frame, own)["policy"]["mean"] == 0
