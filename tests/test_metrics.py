import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
)

from common.data import MultiTaskDataset
from common.heads import MultiTaskModel
from common.metrics import (
    bootstrap_interval,
    classification_metrics,
    evaluate_tasks,
    judge_tasks,
    pair_similarities,
    pearson,
    spearman,
)
from common.rows import LabelledRows

small_numbers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=40)
LABELS = list("abcdef")


@given(small_numbers)
def test_correlations_are_scipys_ties_included(pairs):
    left, right = np.array(pairs, dtype=float).T
    if len(set(left)) > 1 and len(set(right)) > 1:
        assert spearman(left, right) == pytest.approx(scipy.stats.spearmanr(left, right).statistic, abs=1e-12)
        assert pearson(left, right) == pytest.approx(scipy.stats.pearsonr(left, right).statistic, abs=1e-12)


@pytest.mark.parametrize("correlation", [pearson, spearman])
@pytest.mark.parametrize("constant", [np.full(5, 0.1), np.zeros(5, dtype=np.float32), [2, 2, 2, 2, 2]])
def test_a_constant_correlates_with_nothing_and_says_nothing(correlation, constant, recwarn):
    assert math.isnan(correlation(constant, np.arange(5.0)))
    assert math.isnan(correlation(np.arange(5.0), constant))
    assert not recwarn.list


def test_a_rank_correlation_of_ranks_by_hand():
    left, right = np.array([1.0, 5.0, 3.0, 2.0]), np.array([2.0, 9.0, 1.0, 4.0])
    ranks = [[1, 4, 3, 2], [2, 4, 1, 3]]
    squares = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    assert spearman(left, right) == pytest.approx(1 - 6 * squares / (4 * (4**2 - 1)))


def test_bootstrap_interval_agrees_with_one_by_hand():
    generator = np.random.default_rng(1)
    left = generator.normal(size=300)
    right = left + generator.normal(size=300)
    drawn = []
    for _ in range(1000):
        rows = generator.integers(0, 300, 300)
        drawn.append(np.corrcoef(left[rows], right[rows])[0, 1])
    expected = np.quantile(drawn, [0.025, 0.975])
    assert bootstrap_interval(pearson, left, right, resamples=1000) == pytest.approx(tuple(expected), abs=0.02)


def test_bootstrap_interval_is_the_same_every_time():
    left, right = np.arange(20.0), np.arange(20.0) ** 2 % 7
    assert bootstrap_interval(spearman, left, right, 100) == bootstrap_interval(spearman, left, right, 100)


def test_resamples_without_a_correlation_are_left_out(recwarn):
    left, right = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 2.0])
    assert all(map(math.isfinite, bootstrap_interval(pearson, left, right, 200)))
    assert not recwarn.list


def test_where_no_resample_has_a_correlation_there_is_no_interval(recwarn):
    assert all(map(math.isnan, bootstrap_interval(pearson, np.ones(5), np.arange(5.0), 20)))
    assert not recwarn.list


def test_pair_similarities_are_cosines(tiny_encoder):
    left, right = ["a cat", "two dogs ran", "x"], ["a dog", "rain", "x"]
    a, b = tiny_encoder.encode(left), tiny_encoder.encode(right)
    expected = [a[i] @ b[i] / np.linalg.norm(a[i]) / np.linalg.norm(b[i]) for i in range(3)]
    np.testing.assert_allclose(pair_similarities(tiny_encoder, left, right, batch_tokens=10), expected, atol=1e-5)


# Six classes, of which the last never occurs, and any other may not.
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_classification_metrics_are_scikit_learns_with_absent_classes(pairs):
    truth, predicted = zip(*pairs, strict=True)
    metrics = classification_metrics(truth, predicted, LABELS)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["macro_recall"] == pytest.approx(recall_score(truth, predicted, average="macro", zero_division=0))
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    np.testing.assert_array_equal(metrics["confusion"], confusion_matrix(truth, predicted, labels=range(6)))
    expected = precision_recall_fscore_support(truth, predicted, labels=range(6), zero_division=0)
    got = [[metrics["classes"][label][name] for label in LABELS] for name in ("precision", "recall", "f1", "rows")]
    np.testing.assert_allclose(got, expected)


def test_classification_metrics_by_hand(recwarn):
    metrics = classification_metrics([0, 0, 1, 1], [0, 1, 1, 1], ["no", "yes", "never"])
    assert metrics["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_recall"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metrics["classes"]["yes"] == {
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1": pytest.approx(4 / 5),
        "rows": 2,
    }
    assert metrics["classes"]["never"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0}
    assert not recwarn.list


TEXTS = [f"text number {word}" + " and more" * (i % 3) for i, word in enumerate("abcdefgh")]


@pytest.fixture
def model(tiny_encoder) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(tiny_encoder, {"topic": ["x", "y", "z"], "mood": ["bad", "good"]}).eval()


def labelled(model, **labels) -> MultiTaskDataset:
    rows = LabelledRows(TEXTS, labels, [f"f, line {i}" for i in range(2, 2 + len(TEXTS))])
    return model.dataset(rows)


@pytest.mark.parametrize("batch_tokens", [20, 4096])
def test_a_model_is_measured_on_the_labelled_rows_of_each_task(model, batch_tokens):
    topic = ["x", "y", None, "z", "x", "x", None, "y"]
    results = evaluate_tasks(model, labelled(model, topic=topic, mood=["bad", "good"] * 4), batch_tokens)
    rows = [i for i, label in enumerate(topic) if label]
    answers = [model.predict([TEXTS[i]])[0]["topic"] for i in rows]
    truth = [topic[i] for i in rows]
    assert results["topic"]["rows"] == 6 and results["mood"]["rows"] == 8
    assert results["topic"]["accuracy"] == accuracy_score(truth, [answer["label"] for answer in answers])
    probabilities = np.array([list(answer["probabilities"].values()) for answer in answers])
    expected = log_loss(truth, probabilities / probabilities.sum(axis=1, keepdims=True), labels=["x", "y", "z"])
    assert results["topic"]["loss"] == pytest.approx(expected, abs=1e-5)


def test_a_task_without_labels_is_not_measured(model):
    assert set(evaluate_tasks(model, labelled(model, mood=["bad", "good"] * 4))) == {"mood"}


def test_the_interval_of_accuracy_is_wilsons(model):
    results = judge_tasks(model, labelled(model, mood=["bad", "good"] * 4))["mood"]
    right, n, z = round(results["accuracy"] * 8), 8, 1.959964
    centre, spread = (right + z**2 / 2) / (n + z**2), z * np.sqrt(right * (n - right) / n + z**2 / 4) / (n + z**2)
    assert results["interval_95"] == pytest.approx([centre - spread, centre + spread], abs=1e-6)


def test_the_largest_class_alone_would_reach_its_share(model):
    assert judge_tasks(model, labelled(model, topic=["x"] * 5 + ["y", "z", None]))["topic"]["majority"] == 5 / 7
