"""Which two answers make a pair: with known scores, so that the right pairs are known."""

import math
from collections import Counter

import pytest

from dpo.pairs.picking import Answer, Picking


def answers(*given: tuple[str, int, float]) -> list[Answer]:
    return [Answer(number, *each) for number, each in enumerate(given)]


FOUR = answers(
    ("It was quite good.", 10, 0.5),
    ("Bad.", 3, -0.9),
    ("The best of all that we have seen.", 20, 0.9),
    ("One could say that it is so.", 19, 0.1),
)


def test_the_best_is_held_against_the_worst():
    assert Picking().pick("Say", FOUR) == ([(2, 1)], None)


def test_the_best_is_held_against_any_of_the_others():
    drawn = Counter(Picking("best-random").pick(f"Say {n}", FOUR)[0][0] for n in range(300))
    assert drawn.keys() == {(2, 0), (2, 1), (2, 3)} and min(drawn.values()) > 60
    again = [Picking("best-random").pick(f"Say {n}", FOUR)[0] for n in range(3)]
    assert again == [Picking("best-random").pick(f"Say {n}", FOUR)[0] for n in range(3)]


def test_all_that_differ_by_the_margin_are_paired():
    pairs, _ = Picking("all", min_margin=0.8).pick("Say", FOUR)
    assert pairs == [(2, 1), (0, 1), (3, 1), (2, 3)]
    assert len(Picking("all").pick("Say", FOUR)[0]) == 6


def test_those_closest_in_length_are_paired():
    assert Picking("like-length").pick("Say", FOUR)[0] == [(2, 3)]
    assert Picking("like-length", min_margin=1).pick("Say", FOUR)[0] == [(0, 1)]


def test_lengths_can_be_held_together():
    assert Picking(max_length_difference=7).pick("Say", FOUR)[0] == [(0, 1)]
    assert Picking(max_length_difference=0).pick("Say", FOUR) == ([], "length")


def test_labels_are_drawn_by_bradley_terry():
    two = answers(("Good.", 2, 0.5), ("Bad it was.", 3, 0.0))
    way = Picking("bradley-terry", label_temperature=0.25)
    pairs = [way.pick(f"Say {n}", two)[0][0] for n in range(2000)]
    wrong, expected = pairs.count((1, 0)) / 2000, 1 / (1 + math.exp(0.5 / 0.25))
    assert abs(wrong - expected) < 3 * math.sqrt(expected * (1 - expected) / 2000)
    assert pairs.count((0, 1)) + pairs.count((1, 0)) == 2000


def test_near_duplicates_make_no_pair():
    text = "The answer to this question of yours is forty two"
    near = answers((text, 9, 1.0), (f"{text} then.", 9, 0.0), ("No idea.", 2, 0.5))
    assert Picking().pick("Say", near)[0] == [(0, 2)]
    assert Picking(near_duplicate=1).pick("Say", near)[0] == [(0, 1)]
    assert Picking().pick("Say", near[:2]) == ([], "alike")
    same = answers(("It  is so.", 3, 1.0), ("It is so.", 3, 0.0))  # blanks apart
    assert Picking(near_duplicate=1).pick("Say", same) == ([], "alike")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "one_answer"),
        (FOUR[:1], "one_answer"),
        (answers(("A good one.", 2, 0.5), ("The other.", 2, 0.5)), "tie"),
    ],
)
def test_what_cannot_be_paired_is_said(given, why):
    for how in ("best-worst", "best-random", "all", "like-length", "bradley-terry"):
        assert Picking(how).pick("Say", given) == ([], why)


def test_too_small_a_margin_is_said():
    assert Picking(min_margin=2).pick("Say", FOUR) == ([], "margin")
