import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, recall_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from common.metrics import (
    bootstrap_interval,
    class_table,
    classification_metrics,
    confusion_matrix,
    pearson,
    ranks,
    spearman,
)

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


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_classification_metrics_are_scikit_learns_with_absent_classes(pairs):
    truth, predicted = zip(*pairs, strict=True)
    confusion = confusion_matrix(truth, predicted, 6)
    np.testing.assert_array_equal(confusion, sklearn_confusion(truth, predicted, labels=range(6)))
    metrics = classification_metrics(confusion)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["macro_recall"] == pytest.approx(recall_score(truth, predicted, average="macro", zero_division=0))
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    expected = precision_recall_fscore_support(truth, predicted, labels=range(6), zero_division=0)
    got = [[row[name] for row in class_table(confusion)] for name in ("precision", "recall", "f1", "rows")]
    np.testing.assert_allclose(got, expected)
