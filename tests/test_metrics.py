import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from common.metrics import bootstrap_interval, pearson, ranks, spearman

small_numbers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=40)


@given(small_numbers)
def test_spearman_is_scipys_ties_included(pairs):
    left, right = np.array(pairs, dtype=float).T
    if len(set(left)) > 1 and len(set(right)) > 1:
        assert spearman(left, right) == pytest.approx(scipy.stats.spearmanr(left, right).statistic, abs=1e-12)
        assert pearson(left, right) == pytest.approx(scipy.stats.pearsonr(left, right).statistic, abs=1e-12)
    else:
        assert np.isnan(spearman(left, right))


@given(st.lists(st.integers(-3, 3), min_size=1))
def test_ranks_are_scipys(values):
    np.testing.assert_array_equal(ranks(np.array(values)), scipy.stats.rankdata(values))


def test_bootstrap_interval_agrees_with_scipys():
    generator = np.random.default_rng(1)
    left = generator.normal(size=300)
    right = left + generator.normal(size=300)
    low, high = bootstrap_interval(pearson, left, right, resamples=2000)
    theirs = scipy.stats.bootstrap(
        (left, right), lambda a, b: pearson(a, b), paired=True, vectorized=False, method="percentile", n_resamples=2000
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bootstrap_interval_is_the_same_every_time():
    left, right = np.arange(20.0), np.arange(20.0) ** 2 % 7
    assert bootstrap_interval(spearman, left, right) == bootstrap_interval(spearman, left, right)
