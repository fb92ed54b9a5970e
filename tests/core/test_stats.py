"""Intervals against distributions whose answer is known."""

import numpy as np
import pytest

from dpo.core.stats import (
    Interval,
    Unanimous,
    bootstrap,
    length_controlled,
    paired,
    share,
    t_difference,
    t_interval,
    t_quantile,
    win_rate,
)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """95% intervals of 400 samples of a known distribution: 91 to 99% of them hold its mean."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        interval = bootstrap(rng.exponential(size=120), resamples=1000)
        held += interval.low <= 1.0 <= interval.high
    assert 0.91 < held / 400 < 0.99


@pytest.mark.parametrize("each", [3, 6])
def test_pairs_of_one_prompt_are_resampled_together(each):
    """Some prompts are easy, others hard: their pairs are right or wrong together. By prompt, 95%
    intervals hold the truth 91 to 99 times in a hundred; by pair, fewer than 91 times. So do those
    of the difference between two runs that find other prompts hard."""
    rng, prompts, trials = np.random.default_rng(7), np.repeat(np.arange(120), each), 200
    held = dict.fromkeys(("by prompt", "by pair", "difference"), 0)
    for _ in range(trials):
        chances = rng.beta(2.2, 0.8, size=(2, 120, 1))
        right = (rng.random((2, 120, each)) < chances).astype(float).reshape(2, -1)
        found = {
            "by prompt": bootstrap(right[0] - 2.2 / 3, 1000, prompts=prompts),
            "by pair": bootstrap(right[0] - 2.2 / 3, 300),
            "difference": paired(right, 1000, prompts)[0][1],
        }
        for name, interval in found.items():
            held[name] += interval.low <= 0 <= interval.high
    rates = {name: count / trials for name, count in held.items()}
    assert rates.pop("by pair") < 0.91, rates
    assert all(0.91 <= rate <= 0.99 for rate in rates.values()), rates


def test_prompts_with_one_pair_each_change_no_digit():
    rng = np.random.default_rng(8)
    values, digests = rng.normal(size=(3, 124)), rng.permutation(10**6)[:124] - 5
    assert bootstrap(values[0], prompts=digests) == bootstrap(values[0])
    right = (values > -0.5).astype(float)
    assert share(right[0], digests) == share(right[0])
    assert paired(right, 500, digests) == paired(right, 500)


def test_prompts_may_have_different_numbers_of_pairs():
    """The mean is that of the pairs; and few prompts are few, however many their pairs."""
    values, prompts = np.array([1.0, 1.0, 1.0, 0.0]), np.array([9, 9, 9, 4])
    assert share(values, prompts).mean == 0.75
    assert share(np.ones(80), np.repeat(np.arange(8), 10)) == share(np.ones(8))


def test_ties_alone_say_no_more_than_there_are_of_them():
    every, few = share(np.full(124, 0.5)), share(np.full(8, 0.5))
    assert (every.mean, round(every.low, 3), round(every.high, 3)) == (0.5, 0.485, 0.515)
    assert few.low < every.low and few.high > every.high


def test_a_win_rate_holds_the_truth_as_often_as_it_says(few_resamples):
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(150):
        preferred = rng.choice([0, 0.5, 1], p=[0.3, 0.1, 0.6], size=(150, 1))
        interval = win_rate(preferred)
        held += interval.low <= 0.65 <= interval.high
    assert 0.91 < held / 150 < 0.99


def test_eight_of_eight_is_not_certain():
    """Wilson's interval, where a resample never differs: 8 / (8 + 1.96²)."""
    every, none = share(np.ones(8)), share(np.zeros(8))
    assert (every.mean, every.high, none.mean, none.low) == (1, 1, 0, 0)
    assert round(every.low, 3) == 0.676 and round(none.high, 3) == 0.324
    assert win_rate(np.ones((8, 2))) == every
    some = np.array([1, 0, 0.5, 1])
    assert share(some) == bootstrap(some)


@pytest.mark.parametrize("prompts", [1, 2, 8])
def test_prompts_that_are_alike_make_nothing_certain(prompts):
    """Two of three pairs right, for each prompt: every resample says the same."""
    right, of = np.tile([1.0, 1, 0], prompts), np.repeat(np.arange(prompts), 3)
    found = share(right, of)
    assert found.mean == pytest.approx(2 / 3) and found.high - found.low > 0.3
    few = bootstrap(right[:3], prompts=of[:3])
    assert (few.low, few.high) == (0, 1)
    assert paired(np.stack([right[:3], np.zeros(3)]), prompts=of[:3])[0][1].low <= 0


@pytest.mark.parametrize(("prompts", "certain"), [(2, False), (3, False), (8, True)])
def test_where_all_agree_few_prompts_decide_nothing(prompts, certain):
    """Of what two runs differ by, and of a win rate at equal length, as of a win rate."""
    every, none = np.ones(prompts), np.zeros(prompts)
    found = paired(np.stack([every, none, every]), shares=True)
    better, worse, alike = found[0][1], found[1][0], found[0][2]
    assert (better.mean, better.high, worse.low) == (1, 1, -1)
    assert (better.low > 0) == (worse.high < 0) == certain
    assert alike.mean == 0 and alike.low < 0 < alike.high and isinstance(alike, Unanimous)
    assert found[0][0] == Interval(0, 0, 0)
    of = np.repeat(np.arange(prompts), 3)  # two of three pairs right, for each prompt
    rows = np.stack([np.tile([1.0, 1, 0], prompts), np.zeros(3 * prompts)])
    part = paired(rows, prompts=of, shares=True)
    assert part[0][1].low < 2 / 3 < part[0][1].high
    longer = np.random.default_rng(0).normal(size=(prompts, 1))
    wins = length_controlled(every[:, None], longer)
    assert (wins.low > 0.5) == certain and wins.low < wins.mean < wins.high


def test_rewards_between_0_and_1_are_no_shares():
    """Equal ones differ by nothing, and by a constant where one is higher by it: no interval of how
    often something is right says how far."""
    rewards = np.random.default_rng(0).random(8) / 2
    for by in (0.0, 0.25):
        found = paired(np.stack([rewards + by, rewards]))[0][1]
        assert (found.mean, found.low, found.high) == pytest.approx((by, by, by))


def test_what_was_not_judged_does_not_count():
    preferred = np.array([[1, np.nan], [0, 0], [np.nan, np.nan]])
    assert win_rate(preferred).mean == 0.5


def judged(rng, prompts: int, better: float, by_length: float) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts of a judge that goes by quality, `better` in log-odds, and by length."""
    longer = rng.normal(20, 30, size=(prompts, 1))  # the first model's answers are longer
    odds = better + by_length * np.tanh(longer / longer.std())
    return (rng.random((prompts, 1)) < 1 / (1 + np.exp(-odds))).astype(float), longer


def test_where_only_length_decides_the_controlled_rate_is_a_half():
    preferred, longer = judged(np.random.default_rng(1), 3000, better=0, by_length=3)
    assert win_rate(preferred).mean > 0.65
    interval = length_controlled(preferred, longer, resamples=200)
    assert interval.low < 0.5 < interval.high and interval.high - interval.low < 0.1


def test_the_controlled_rate_finds_what_quality_alone_would_win():
    rng, held = np.random.default_rng(2), 0
    truth = 1 / (1 + np.exp(-0.8))
    for _ in range(100):
        preferred, longer = judged(rng, 300, better=0.8, by_length=2)
        interval = length_controlled(preferred, longer, resamples=200)
        held += interval.low <= truth <= interval.high
    assert held / 100 > 0.88


def test_a_judge_that_length_explains_wholly_is_no_trouble():
    longer = np.linspace(-50, 50, 40)[:, None]
    interval = length_controlled((longer > 0).astype(float), longer)
    assert 0.3 < interval.mean < 0.7 and np.isfinite([interval.low, interval.high]).all()
    assert length_controlled(np.ones((5, 1)), np.zeros((5, 1))) is None


def test_students_t_is_that_of_the_tables():
    """Of 95%, two-sided, as any table has them; of 99% too."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}
    assert {dof: round(t_quantile(dof), 3) for dof in table} == table
    assert [round(t_quantile(dof, 0.99), 3) for dof in (1, 4, 10)] == [63.657, 4.604, 3.169]
    assert t_quantile(1000) == pytest.approx(1.9623, abs=1e-3)


def test_few_seeds_hold_the_mean_as_often_as_they_say():
    """Of five normal values, where a normal's 1.96 errors would hold it 88 times in a hundred; and
    so does the difference between five and three others, of other widths."""
    rng, held, between = np.random.default_rng(11), 0, 0
    for _ in range(600):
        five, three = rng.normal(3, 2, size=5), rng.normal(3, 0.5, size=3)
        interval, difference = t_interval(five), t_difference(five, three)
        held += interval.low <= 3 <= interval.high
        between += difference.low <= 0 <= difference.high
    assert 0.92 < held / 600 < 0.98 and 0.92 < between / 600 < 0.99


def test_an_interval_over_seeds_is_known_by_hand():
    """Mean 2, deviation 1, of three: 4.303 / √3 to either side. Welch of (1, 2, 3) and (2, 4, 6):
    errors 1/3 and 4/3, 2.94 degrees of freedom, rounded down to 2."""
    found = t_interval(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, round(found.low, 3), round(found.high, 3)) == (2, -0.484, 4.484)
    difference = t_difference(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    half = 4.302653 * (5 / 3) ** 0.5
    expected = (-2, -2 - half, -2 + half)
    assert (difference.mean, difference.low, difference.high) == pytest.approx(expected, abs=1e-3)
    same = t_difference(np.ones(2), np.ones(3))
    assert (same.low, same.high) == (0, 0)
