"""Intervals of means against scipy, the normal approximation and simulations with a known truth."""

import numpy as np
import pytest
from scipy import stats

from dialogue_summarization.intervals import interval, mean_with_interval, resampled_means


def simulated(count, seed=0):
    """Skewed, as scores of dialogues are; their true mean is 0.4."""
    return np.random.default_rng(seed).beta(2, 3, count)


def test_an_interval_repeats_with_its_seed():
    scores = simulated(60)
    assert interval(scores) == interval(scores.tolist(), seed=0)
    assert interval(scores, seed=1) != interval(scores, seed=2)


@pytest.mark.parametrize("count", [40, 500])
def test_an_interval_is_close_to_the_normal_approximation(count):
    scores = simulated(count)
    low, high = interval(scores)
    half = 1.96 * scores.std() / count**0.5
    assert low < scores.mean() < high
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.1 * half)


def test_an_interval_narrows_with_the_root_of_the_data():
    wide, narrow = (np.subtract(*reversed(interval(simulated(count)))) for count in (100, 1600))
    assert wide / narrow == pytest.approx(4, rel=0.15)


def test_intervals_hold_the_true_mean_19_times_of_20():
    bounds = [interval(simulated(100, seed), resamples=1000) for seed in range(400)]
    assert 0.92 <= np.mean([low <= 0.4 <= high for low, high in bounds]) <= 0.98


def test_scores_that_do_not_vary_have_an_interval_without_width_and_one_dialogue_has_none():
    assert interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3), abs=1e-12)
    assert np.isnan([interval([0.3]), interval([[0.3], [0.5]]), mean_with_interval([0.3, np.nan])[1]]).all()


def test_the_interval_is_scipys():
    scores = simulated(200)
    expected = stats.bootstrap((scores,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert interval(scores) == pytest.approx(tuple(expected.confidence_interval), abs=1e-3)


def test_the_same_dialogues_are_drawn_for_every_system():
    scores = simulated(60)
    assert resampled_means(scores + 0.1) == pytest.approx(resampled_means(scores) + 0.1, abs=1e-12)


def test_seeds_that_agree_add_nothing_to_the_interval():
    scores = simulated(100)
    assert interval(np.stack([scores] * 3)) == pytest.approx(interval(scores), abs=1e-12)


def test_the_spread_of_resampled_seeds_is_unbiased():
    """Dialogues without spread: what is left is the standard error of the mean over seeds."""
    values = np.repeat([[0.1], [0.2], [0.4], [0.7]], 50, axis=1)
    expected = np.std([0.1, 0.2, 0.4, 0.7], ddof=1) / 4**0.5
    assert resampled_means(values, resamples=50_000).std() == pytest.approx(expected, rel=0.02)


def test_draws_in_blocks_are_as_many_as_asked_for():
    """Of large test sets not all draws are in memory at once."""
    means = resampled_means(simulated(5_000), resamples=2_000)
    assert len(means) == 2_000 and len(set(means)) > 1_900


def test_dialogues_without_a_value_are_left_out_of_mean_and_interval():
    scores = simulated(50)
    with_gaps = np.concatenate([scores, [np.nan] * 7])
    mean, bounds = mean_with_interval(with_gaps)
    assert mean == pytest.approx(scores.mean(), abs=1e-12) and bounds == interval(scores)
    mean, bounds = mean_with_interval([np.nan])
    assert np.isnan([mean, *bounds]).all()
