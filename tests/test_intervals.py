"""Intervals hold the truth as often as they say; tests call ties different as often as they say."""

import numpy as np
import pytest

from crossmodal import intervals


@pytest.mark.parametrize(("pictures", "truth"), [(100, 0.5), (500, 0.9), (2000, 0.1)])
def test_share_holds_the_truth_in_95_of_100(pictures, truth):
    chance = np.random.default_rng(pictures)
    held = 0
    for trial in range(1000):
        low, high = intervals.share(chance.random(pictures) < truth, resamples=1000, seed=trial)
        held += low <= truth <= high
    assert 930 <= held <= 970


def test_share_of_captions_goes_by_picture():
    """Five captions of a picture rise and fall together: taken for independent, they would hold the truth far too seldom."""
    chance = np.random.default_rng(0)
    held = alone = 0
    for trial in range(1000):
        hits = chance.binomial(5, chance.beta(0.4, 0.6, size=400))
        low, high = intervals.share(hits, np.full(400, 5), resamples=1000, seed=trial)
        held += low <= 0.4 <= high
        low, high = intervals.share(np.arange(2000) < hits.sum(), resamples=1000, seed=trial)
        alone += low <= 0.4 <= high
    assert 930 <= held <= 970
    assert alone < 800


def test_class_mean_holds_the_truth():
    chance = np.random.default_rng(0)
    labels = np.repeat(np.arange(50), 8)
    held = 0
    for trial in range(1000):
        recall = chance.beta(4, 2, size=50)
        low, high = intervals.class_mean(chance.random(400) < recall[labels], labels, 500, trial)
        held += low <= recall.mean() <= high
    assert 930 <= held <= 970


def test_classes_of_one_picture_are_a_share():
    hits = np.arange(1000) < 150
    low, high = intervals.class_mean(hits, np.arange(1000))
    assert (low, high) == pytest.approx((0.128, 0.172), abs=0.004)


def test_perfect_scores_have_an_interval():
    low, high = intervals.share(np.ones(100))
    assert 0.9 < low < 0.99
    assert high == 1


def test_ties_are_called_different_in_5_of_100():
    chance = np.random.default_rng(0)
    apart = chance.binomial(1000, 0.2, size=10000)
    only_b = chance.binomial(apart, 0.5)
    alarms = sum(intervals.mcnemar(int(n - b), int(b)) < 0.05 for n, b in zip(apart, only_b, strict=True))
    assert 400 <= alarms <= 600


def test_ties_of_captions_are_called_different_in_5_of_100():
    chance = np.random.default_rng(1)
    alarms = 0
    for trial in range(2000):
        skill = chance.beta(1, 1.5, size=300)
        alarms += intervals.paired((chance.binomial(5, skill) - chance.binomial(5, skill)) / 1500, resamples=1000, seed=trial)[0] < 0.05
    assert 75 <= alarms <= 125


@pytest.mark.parametrize(("a", "b"), [(3, 9), (9, 3), (6, 6), (0, 5), (40, 60)])
def test_mcnemar_by_summing_the_binomial(a, b):
    from math import comb

    chances = [comb(a + b, n) / 2 ** (a + b) for n in range(a + b + 1)]
    as_far = [abs(n - (a + b) / 2) - abs(a - (a + b) / 2) for n in range(a + b + 1)]
    by_hand = sum(p for p, d in zip(chances, as_far, strict=True) if d > 0) + 0.5 * sum(
        p for p, d in zip(chances, as_far, strict=True) if d == 0
    )
    assert intervals.mcnemar(a, b) == pytest.approx(by_hand, abs=1e-9)
    difference = np.array([1.0] * b + [-1.0] * a + [0.0] * 50)
    assert intervals.paired(difference)[0] == pytest.approx(by_hand, abs=1e-9)


def test_a_real_difference_is_found():
    difference = np.array([1.0] * 60 + [-1.0] * 20 + [0.0] * 920) / 1000
    p, (low, high) = intervals.paired(difference)
    assert p < 1e-4
    assert 0 < low < 0.04 < high < 0.07
