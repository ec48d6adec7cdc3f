import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from common.data import UNLABELLED, MultiTaskDataset
from common.errors import UserError
from common.losses import (
    LossSum,
    balanced_class_weights,
    complete_weights,
    contrastive_loss,
    distance_loss,
    ranking_loss,
    similarity_loss,
    task_loss,
    uncertainty_weighted,
)
from common.rows import LabelledRows

NONE = UNLABELLED


def unit(rows: int, dim: int = 4, seed: int = 0) -> torch.Tensor:
    values = torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=-1)


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_the_mean_is_the_sum_by_the_count_and_zero_of_none():
    assert LossSum(torch.tensor(6.0), 4).mean == 1.5
    assert LossSum(torch.tensor(0.0), 0).mean == 0


@pytest.mark.parametrize("near", [False, True])
def test_contrastive_loss_restated(near):
    anchors, positives, near_misses = unit(3, seed=1), unit(3, seed=2), unit(3, seed=3)
    candidates = [*positives, *near_misses] if near else list(positives)
    total = 0.0
    for i in range(3):
        to_positives = [math.exp(dot(anchors[i], c) / 0.1) for c in candidates]
        to_anchors = [math.exp(dot(positives[i], a) / 0.1) for a in anchors]
        total -= (math.log(to_positives[i] / sum(to_positives)) + math.log(to_anchors[i] / sum(to_anchors))) / 2
    loss = contrastive_loss(anchors, positives, near_misses if near else None, temperature=0.1)
    assert loss.total.item() == pytest.approx(total, abs=1e-9)
    assert loss.count == 3


@pytest.mark.parametrize("near", [False, True])
def test_the_mean_of_the_contrastive_loss_is_the_mean_of_torchs_cross_entropies(near):
    anchors, positives, near_misses = unit(5, seed=1), unit(5, seed=2), unit(5, seed=3)
    candidates = torch.cat([positives, near_misses]) if near else positives
    expected = (
        F.cross_entropy(anchors @ candidates.T / 0.05, torch.arange(5))
        + F.cross_entropy(positives @ anchors.T / 0.05, torch.arange(5))
    ) / 2
    torch.testing.assert_close(contrastive_loss(anchors, positives, near_misses if near else None).mean, expected)


def test_ranking_loss_restated():
    left, right, scores = unit(5, seed=1), unit(5, seed=2), torch.tensor([3.0, 1.0, 3.0, 0.0, 5.0])
    total = 1.0
    for i in range(5):
        for j in range(5):
            if scores[i] > scores[j]:
                total += math.exp((dot(left[j], right[j]) - dot(left[i], right[i])) / 0.1)
    loss = ranking_loss(left, right, scores, temperature=0.1)
    assert loss.total.item() == pytest.approx(math.log(total), abs=1e-9)
    assert loss.count == 1


def test_ranking_loss_of_equal_scores_is_zero_with_a_gradient():
    left = unit(3).requires_grad_()
    loss = ranking_loss(left, unit(3, seed=1), torch.ones(3)).mean
    loss.backward()
    assert loss.item() == 0
    assert left.grad.abs().max() == 0


def test_distance_loss_restated():
    projected, teacher = 3 * unit(4, 3, seed=2), unit(4, 3, seed=3)
    loss = distance_loss(projected, teacher)
    assert loss.total.item() == pytest.approx(sum(1 - dot(projected[i], teacher[i]) / 3 for i in range(4)), abs=1e-9)
    assert loss.count == 4


def test_similarity_loss_restated():
    student, teacher = unit(4, 6, seed=1), unit(4, 3, seed=3)
    differences = [
        (dot(student[i], student[j]) - dot(teacher[i], teacher[j])) ** 2 for i in range(4) for j in range(4) if i != j
    ]
    loss = similarity_loss(student, teacher)
    assert loss.total.item() == pytest.approx(sum(differences), abs=1e-9)
    assert loss.count == 12


def test_a_single_sentence_has_no_similarities():
    loss = similarity_loss(unit(1, 6).requires_grad_(), unit(1, 3))
    assert (loss.total.item(), loss.count, loss.mean.item()) == (0, 0, 0)


def test_gradients():
    a, b, c = (unit(3, seed=seed).requires_grad_() for seed in (1, 2, 3))
    scores = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    fixed = c.detach()
    assert torch.autograd.gradcheck(lambda *columns: contrastive_loss(*columns).total, (a, b, c))
    assert torch.autograd.gradcheck(lambda x, y: ranking_loss(x, y, scores).total, (a, b))
    assert torch.autograd.gradcheck(lambda x: distance_loss(x, fixed).total, (a,))
    assert torch.autograd.gradcheck(lambda x: similarity_loss(x, fixed).total, (a,))


def test_task_loss_restated():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, NONE, 1, 0])
    total = sum(
        math.log(sum(math.exp(v) for v in row.tolist())) - row[label].item()
        for row, label in zip(logits, labels.tolist(), strict=True)
        if label != NONE
    )
    loss = task_loss(logits, labels)
    assert loss.total.item() == pytest.approx(total, abs=1e-5)
    assert loss.count == 4


@given(st.lists(st.sampled_from([0, 1, 2, NONE]), min_size=1, max_size=20), st.data(), st.booleans())
def test_the_losses_of_the_parts_add_up_to_that_of_the_whole(labels, data, weighted):
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64) if weighted else None
    cut, labels = data.draw(st.integers(0, len(labels))), torch.tensor(labels)
    whole = task_loss(logits, labels, weights)
    parts = [task_loss(logits[some], labels[some], weights) for some in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(part.count for part in parts) == whole.count


def test_rows_without_a_label_have_no_gradient():
    logits = torch.randn(3, 2, requires_grad=True)
    task_loss(logits, torch.tensor([1, NONE, 0])).total.backward()
    assert logits.grad[[0, 2]].all() and not logits.grad[1].any()


def test_no_labelled_row_is_no_loss():
    loss = task_loss(torch.randn(2, 3), torch.tensor([NONE, NONE]))
    assert (loss.total.item(), loss.count, loss.mean.item()) == (0, 0, 0)


def test_class_weights_multiply_each_rows_loss():
    weights, logits, labels = torch.tensor([3.0, 1.0, 0.5]), torch.randn(4, 3), torch.tensor([0, 2, NONE, 1])
    each = F.cross_entropy(logits[[0, 1, 3]], torch.tensor([0, 2, 1]), reduction="none")
    torch.testing.assert_close(task_loss(logits, labels, weights).total, (each * weights[[0, 2, 1]]).sum())
    assert task_loss(logits, labels, weights).count == 3


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_class_weight_does_not_cancel_where_all_rows_are_of_its_class(label):
    weights, logits, labels = torch.tensor([3.0, 1.0, 0.5]), torch.randn(4, 3), torch.full((4,), label)
    expected = weights[label] * F.cross_entropy(logits, labels)
    torch.testing.assert_close(task_loss(logits, labels, weights).mean, expected)


def test_uncertainty_weighting_restated():
    loss, s = torch.tensor(2.0), torch.tensor(0.5, requires_grad=True)
    weighted = uncertainty_weighted(loss, s)
    weighted.backward()
    assert weighted.item() == pytest.approx(math.exp(-0.5) * 2 + 0.25)
    assert s.grad.item() == pytest.approx(-math.exp(-0.5) * 2 + 0.5)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 9)), min_size=1, max_size=6), st.floats(-2, 2))
def test_uncertainty_weighted_parts_add_up_to_the_whole(parts, log_variance):
    rows, log_variance = sum(count for _, count in parts), torch.tensor(log_variance)
    whole = uncertainty_weighted(torch.tensor(sum(total for total, _ in parts) / rows), log_variance)
    added = sum(uncertainty_weighted(torch.tensor(total / rows), log_variance, count / rows) for total, count in parts)
    torch.testing.assert_close(added, whole, atol=1e-5, rtol=1e-5)


@pytest.fixture
def uneven(tokenizer) -> MultiTaskDataset:
    labels = ["x", "y", "x", None, "x", "z"]
    rows = LabelledRows(["text"] * 6, {"t": labels}, [f"f, line {i}" for i in range(6)])
    return MultiTaskDataset(rows, {"t": ["x", "y", "z"]}, tokenizer)


def test_balanced_class_weights_are_scikit_learns(uneven):
    expected = compute_class_weight("balanced", classes=np.array(["x", "y", "z"]), y=["x", "y", "x", "x", "z"])
    np.testing.assert_allclose(balanced_class_weights(uneven)["t"].numpy(), expected, rtol=1e-6)


def test_balanced_class_weights_average_to_one_over_the_labelled_rows(uneven):
    weights = balanced_class_weights(uneven)["t"]
    assert sum(weights[i].item() for i in uneven.classes["t"] if i != NONE) / 5 == pytest.approx(1)


def test_a_class_that_no_row_has_leaves_the_others_weights_alone(tokenizer):
    rows = LabelledRows(["text"] * 3, {"t": ["x", "y", "y"]}, ["f, line 2", "f, line 3", "f, line 4"])
    data = MultiTaskDataset(rows, {"t": ["w", "x", "y", "z"]}, tokenizer)
    weights = balanced_class_weights(data)["t"]
    assert weights.isfinite().all()
    expected = compute_class_weight("balanced", classes=np.array(["x", "y"]), y=["x", "y", "y"])
    np.testing.assert_allclose(weights[1:3].numpy(), expected, rtol=1e-6)


def test_task_weights_are_shared_out():
    assert complete_weights(["a", "b"], {}) == {"a": 0.5, "b": 0.5}
    assert complete_weights(["a", "b", "c"], {"b": 0.6}) == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})
    assert complete_weights(["a", "b"], {"a": 2.0, "b": 1.0}) == {"a": 2.0, "b": 1.0}


WEIGHT_MISTAKES = [
    ({"z": 0.5}, r'no task "z" learns \(these do: a, b\)'),
    ({"a": 0.0}, "must be above 0"),
    ({"a": -1.0}, "must be above 0"),
    ({"a": float("nan")}, "must be above 0"),
    ({"a": float("inf")}, "must be above 0"),
    ({"a": 1.0}, "leaves nothing of 1 for b"),
    ({"a": 1.5}, "leaves nothing of 1 for b"),
]


@pytest.mark.parametrize(("given", "message"), WEIGHT_MISTAKES)
def test_weights_that_make_no_sense_are_refused(given, message):
    with pytest.raises(UserError, match=message) as caught:
        complete_weights(["a", "b"], given)
    assert caught.value.argument == "task_weight"
