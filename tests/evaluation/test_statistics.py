"""Tests and intervals against scipy, textbook values and simulations with a known truth."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dialogue_summarization.evaluation.statistics import (
    DETECTABLE,
    compare,
    holm,
    tost,
)
from dialogue_summarization.intervals import interval, resampled_means


def paired(count=200, shift=0.0, seed=0):
    """Two systems on dialogues that are hard or easy for both."""
    generator = np.random.default_rng(seed)
    hard = generator.beta(2, 3, count)
    return hard + generator.normal(shift, 0.08, count), hard + generator.normal(0, 0.08, count)


def test_identical_systems_do_not_differ_and_are_equivalent():
    one, _ = paired()
    found = compare(one, one, same=True)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.p_equivalent < 1e-50 and np.isnan(found.minimum_detectable)


@pytest.mark.parametrize(
    ("count", "p_equivalent"),
    [
        # Were the true difference 0.01 or more, so many dialogues in a row without any would have this chance.
        (6, 0.941), (48, 0.617), (500, 0.00657),
    ],
)  # fmt: skip
def test_equal_scores_of_different_summaries_are_no_certainty(count, p_equivalent):
    for seeds in (1, 3):
        found = compare(np.full((seeds, count), 0.4), np.full((seeds, count), 0.4))
        assert found.p_equivalent == pytest.approx(p_equivalent, abs=1e-3) and found.p == 1
        assert np.isnan(found.minimum_detectable)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("spread", [0, 1e-4])
def test_few_dialogues_say_nothing_however_alike_their_gaps(seeds, count, spread):
    for gap in (0.0, 0.3):
        one = np.tile(0.4 + gap + spread * np.arange(count), (seeds, 1))
        found = compare(one, np.full((seeds, count), 0.4), same=not gap)
        assert min(found.p, found.p_equivalent) >= 2 / 2**count and np.isnan(found.minimum_detectable)
        assert np.isnan([found.low, found.high]).all() == (count == 1) and found.mean == pytest.approx(one.mean() - 0.4)


def test_six_dialogues_can_say_something():
    found = compare(np.linspace(0.5, 0.6, 6), np.full(6, 0.1))
    assert found.p == pytest.approx(2 / 2**6) and found.minimum_detectable > 0


@pytest.mark.parametrize("shift", [0.0, 0.008, 0.012, 0.016])
def test_permutation_test_agrees_with_scipy(shift):
    one, other = paired(shift=shift)
    expected = stats.permutation_test(
        (one - other,), np.mean, permutation_type="samples", n_resamples=10_000, rng=np.random.default_rng(1)
    )
    assert compare(one, other).p == pytest.approx(expected.pvalue, abs=0.03)
    assert compare(one, other).p == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=0.03)


def test_permutation_test_of_eight_equal_signs_is_2_in_256():
    assert compare(np.ones(8), np.zeros(8), resamples=100_000).p == pytest.approx(2 / 256, abs=1e-3)
    assert compare([0.2, 0.2, 0.2, -0.2], np.zeros(4), resamples=100_000).p == pytest.approx(10 / 16, abs=1e-2)


def test_the_paired_interval_is_scipys():
    one, other = paired(shift=0.01)
    found = compare(one, other)
    expected = stats.bootstrap((one - other,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=1e-3)
    assert found.mean == pytest.approx((one - other).mean(), abs=1e-12)


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.03])
def test_equivalence_is_two_one_sided_t_tests(margin):
    one, other = paired()
    gap = one - other
    above = stats.ttest_1samp(gap, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(gap, margin, alternative="less").pvalue
    assert compare(one, other, margin=margin).p_equivalent == pytest.approx(max(above, below), abs=1e-9)


def test_equivalence_and_detectable_by_hand():
    # t = (0 + 0.01) / 0.005 = 2 on either side; the 5 % point of 499 degrees of freedom is 1.648.
    assert tost(0.0, 0.005, 500) == pytest.approx(0.0230, abs=1e-4)
    assert tost(0.01, 0.005, 500) == pytest.approx(0.5)
    assert tost(0.0, 0.0, 500) == pytest.approx(0.99**500) and tost(0.02, 0.0, 500) == 1
    assert pytest.approx(1.959964 + 0.841621, abs=1e-6) == DETECTABLE


def test_a_difference_that_is_detectable_is_found_four_times_of_five():
    error = 0.08 * 2**0.5 / 200**0.5
    shift = DETECTABLE * error
    found = [compare(*paired(shift=shift, seed=seed), resamples=1000).p < 0.05 for seed in range(300)]
    assert 0.73 <= np.mean(found) <= 0.87


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03, then no less than that
        ([0.2], [0.2]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(values, expected):
    assert holm(values) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(values):
    corrected = np.array(holm(values))
    raw = np.array(values)
    assert (corrected >= raw - 1e-12).all() and (corrected <= np.minimum(1, raw * len(raw)) + 1e-12).all()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


def simulated_seeds(seeds, seed):
    """Methods whose checkpoints differ: true difference 0, deviation 0.02 between seeds, 0.08 between dialogues."""
    generator = np.random.default_rng(seed)
    hard = generator.beta(2, 3, 100)
    return [hard + generator.normal(0, 0.02, (seeds, 1)) + generator.normal(0, 0.08, (seeds, 100)) for _ in range(2)]


def interval_of_difference(one, other):
    """That of `compare` for one seed each, without its p-values, which take most of the time."""
    return interval(one - other, resamples=1000)


def test_intervals_of_one_seed_hold_0_19_times_of_20():
    bounds = [interval_of_difference(*paired(100, seed=seed)) for seed in range(400)]
    for seed in range(3):
        found = compare(*paired(100, seed=seed), resamples=1000)
        assert (found.low, found.high) == pytest.approx(bounds[seed], abs=1e-12)
    assert 0.92 <= np.mean([low <= 0 <= high for low, high in bounds]) <= 0.98


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.88), (5, 0.91)])
def test_intervals_over_seeds_hold_0_more_often_than_without_them(seeds, least):
    with_seeds, without = [], []
    for seed in range(200):
        one, other = simulated_seeds(seeds, seed)
        found = compare(one, other, resamples=1000)
        with_seeds.append(found.low <= 0 <= found.high)
        low, high = interval_of_difference(one[0], other[0])
        without.append(low <= 0 <= high)
    assert np.mean(with_seeds) >= least
    assert np.mean(without) < 0.7  # one checkpoint's interval is not about the method


def test_seeds_that_agree_add_nothing_to_the_interval():
    one, other = paired()
    single, triple = compare(one, other), compare(np.stack([one] * 3), np.stack([other] * 3))
    assert (triple.mean, triple.low, triple.high) == pytest.approx((single.mean, single.low, single.high), abs=1e-12)


def test_the_spread_of_resampled_seeds_is_unbiased():
    """Dialogues without spread: what is left is the standard error of the mean over seeds."""
    values = np.repeat([[0.1], [0.2], [0.4], [0.7]], 50, axis=1)
    expected = np.std([0.1, 0.2, 0.4, 0.7], ddof=1) / 4**0.5
    assert resampled_means(values, resamples=50_000).std() == pytest.approx(expected, rel=0.02)


def test_scores_of_other_dialogues_cannot_be_compared():
    with pytest.raises(ValueError, match="500 and 499"):
        compare(np.zeros(500), np.zeros(499))


def test_10000_resamples_of_500_dialogues_take_less_than_2_seconds():
    scores = np.random.default_rng(0).beta(2, 3, 503)
    start = time.process_time()
    compare(scores, scores[::-1])
    assert time.process_time() - start < 2
