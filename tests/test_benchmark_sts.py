import numpy as np
import pytest

from benchmarks.sts import measure_difference
from common.metrics import bootstrap_interval, spearman
from common.rows import TrainingRows

DRAW = np.random.default_rng(0)
SCORES = DRAW.random(200)
NOISE = DRAW.random(200)
PAIRS = TrainingRows([(str(n), str(n)) for n in range(200)], SCORES.tolist(), ("sentence1", "sentence2"))


def similarity(noise):
    return lambda left, right: SCORES + noise * NOISE


def test_a_similarity_does_not_differ_from_itself():
    found = measure_difference(similarity(1), similarity(1), PAIRS)
    assert found["difference"] == 0
    assert found["interval_95"] == (0, 0)


def test_the_difference_is_that_of_the_correlations():
    found = measure_difference(similarity(1), similarity(1.2), PAIRS)
    expected = spearman(SCORES + NOISE, SCORES) - spearman(SCORES + 1.2 * NOISE, SCORES)
    assert found["difference"] == pytest.approx(expected)


def test_the_same_resamples_tell_apart_what_separate_intervals_do_not():
    low, high = measure_difference(similarity(1), similarity(1.2), PAIRS)["interval_95"]
    separate = [bootstrap_interval(spearman, SCORES + noise * NOISE, SCORES) for noise in (1, 1.2)]
    assert separate[0][0] < separate[1][1]  # these overlap
    assert 0 < low < high
