import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.cli import UserError
from common.data import UNLABELLED, LabelledRows, MultiTaskDataset
from common.heads import MultiTaskModel
from common.losses import (
    MultiTaskObjective,
    PairObjective,
    balanced_class_weights,
    complete_weights,
    contrastive_loss,
    distillation_loss,
    ranking_loss,
    task_losses,
)


def unit(rows: int, dim: int = 4, seed: int = 0) -> torch.Tensor:
    values = torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=-1)


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


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
    assert loss.item() == pytest.approx(total / 3, abs=1e-9)


def test_ranking_loss_restated():
    left, right, scores = unit(5, seed=1), unit(5, seed=2), torch.tensor([3.0, 1.0, 3.0, 0.0, 5.0])
    total = 1.0
    for i in range(5):
        for j in range(5):
            if scores[i] > scores[j]:
                total += math.exp((dot(left[j], right[j]) - dot(left[i], right[i])) / 0.1)
    assert ranking_loss(left, right, scores, temperature=0.1).item() == pytest.approx(math.log(total), abs=1e-9)


def test_ranking_loss_of_equal_scores_is_zero_with_a_gradient():
    left = unit(3).requires_grad_()
    loss = ranking_loss(left, unit(3, seed=1), torch.ones(3))
    loss.backward()
    assert loss.item() == 0
    assert left.grad.abs().max() == 0


def test_distillation_loss_restated():
    student, projected, teacher = unit(4, 6, seed=1), 3 * unit(4, 3, seed=2), unit(4, 3, seed=3)
    distance = sum(1 - dot(projected[i], teacher[i]) / 3 for i in range(4)) / 4
    differences = [
        (dot(student[i], student[j]) - dot(teacher[i], teacher[j])) ** 2 for i in range(4) for j in range(4) if i != j
    ]
    got_distance, got_similarity = distillation_loss(student, projected, teacher)
    assert got_distance.item() == pytest.approx(distance, abs=1e-9)
    assert got_similarity.item() == pytest.approx(5 * sum(differences) / 12, abs=1e-9)


def test_distillation_of_a_single_sentence_has_no_similarities():
    assert distillation_loss(unit(1, 6), unit(1, 3), unit(1, 3))[1].item() == 0


def test_gradients():
    a, b, c = (unit(3, seed=seed).requires_grad_() for seed in (1, 2, 3))
    scores = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(contrastive_loss, (a, b, c))
    assert torch.autograd.gradcheck(lambda x, y: ranking_loss(x, y, scores), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: sum(distillation_loss(x, y, c.detach())), (a, b))


def test_simcse_sees_each_sentence_through_two_dropout_masks(tiny_encoder):
    input_ids, mask = tiny_encoder.tokenizer.pad(tiny_encoder.tokenizer(["one thing", "another thing entirely"]))
    batch = {"input_ids": input_ids, "attention_mask": mask, "index": torch.tensor([0, 1])}
    tiny_encoder.train()
    torch.manual_seed(0)
    loss = PairObjective(tiny_encoder)(batch)["loss"]
    torch.manual_seed(0)
    first, second = tiny_encoder(input_ids.repeat(2, 1), mask.repeat(2, 1)).split(2)
    assert not torch.equal(first, second)
    torch.testing.assert_close(loss, contrastive_loss(first, second))


TASKS = {"topic": ["a", "b", "c"], "sentiment": ["x", "y"]}
NONE = UNLABELLED


@pytest.fixture
def objective(tiny_encoder):
    torch.manual_seed(0)
    return MultiTaskObjective(MultiTaskModel(tiny_encoder, TASKS).eval(), {"topic": 0.7, "sentiment": 0.3})


def labelled_batch(objective, labels, texts=("one text", "another text here", "third")):
    tokenizer = objective.model.encoder.tokenizer
    input_ids, mask = tokenizer.pad(tokenizer(list(texts)))
    return {"input_ids": input_ids, "attention_mask": mask, "labels": torch.tensor(labels)}


def test_total_loss_is_the_weighted_sum_by_hand(objective):
    batch = labelled_batch(objective, [[0, 1], [2, NONE], [NONE, 0]])
    losses = objective(batch)
    with torch.no_grad():
        logits = objective.model(batch["input_ids"], batch["attention_mask"])
    topic = sum(
        math.log(sum(math.exp(v) for v in logits["topic"][i])) - logits["topic"][i][c] for i, c in ((0, 0), (1, 2))
    )
    mood = sum(
        math.log(sum(math.exp(v) for v in logits["sentiment"][i])) - logits["sentiment"][i][c]
        for i, c in ((0, 1), (2, 0))
    )
    assert losses["topic loss"].item() == pytest.approx(topic.item() / 2, abs=1e-5)
    assert losses["sentiment loss"].item() == pytest.approx(mood.item() / 2, abs=1e-5)
    assert losses["loss"].item() == pytest.approx(0.7 * topic.item() / 2 + 0.3 * mood.item() / 2, abs=1e-5)


def test_rows_without_a_label_give_that_head_exactly_no_gradient(objective):
    objective(labelled_batch(objective, [[0, NONE], [2, NONE], [1, NONE]]))["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.model.head("sentiment").parameters())
    assert all(
        p.grad.any() for name, p in objective.model.head("topic").named_parameters() if name != "attention.key.bias"
    )


def test_dropping_a_label_is_dropping_the_row_for_that_task(objective):
    with_gap = objective(labelled_batch(objective, [[0, 1], [2, NONE], [1, 0]]))["sentiment loss"]
    without = objective(labelled_batch(objective, [[0, 1], [1, 0]], ("one text", "third")))["sentiment loss"]
    torch.testing.assert_close(with_gap, without, atol=1e-6, rtol=0)


def test_a_task_absent_from_the_batch_has_no_entry(objective):
    losses = objective(labelled_batch(objective, [[0, NONE], [2, NONE], [1, NONE]]))
    assert set(losses) == {"loss", "topic loss", "topic accuracy"}


def test_uncertainty_weighting_restated(objective):
    learned = MultiTaskObjective(objective.model, None)
    with torch.no_grad():
        learned.log_variances.copy_(torch.tensor([0.5, -0.25]))
    batch = labelled_batch(objective, [[0, 1], [2, 0], [1, 0]])
    losses = learned(batch)
    expected = math.exp(-0.5) * losses["topic loss"] + 0.25 + math.exp(0.25) * losses["sentiment loss"] - 0.125
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert learned.log_variances.grad.all()


def test_balanced_class_weights_are_scikit_learns(tokenizer):
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["x", "y", "x", None, "x", "z"]
    rows = LabelledRows(["text"] * 6, {"t": labels}, [f"f, line {i}" for i in range(6)])
    weights = balanced_class_weights(MultiTaskDataset(rows, {"t": ["x", "y", "z"]}, tokenizer))["t"]
    expected = compute_class_weight("balanced", classes=np.array(["x", "y", "z"]), y=["x", "y", "x", "x", "z"])
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


def test_class_weights_weigh_the_average(objective):
    weights = torch.tensor([3.0, 1.0, 0.5])
    logits, labels = torch.randn(4, 3), torch.tensor([[0], [2], [NONE], [1]])
    loss = task_losses({"topic": logits}, labels, {"topic": weights})["topic"]
    each = F.cross_entropy(logits[[0, 1, 3]], torch.tensor([0, 2, 1]), reduction="none")
    torch.testing.assert_close(loss, (each * weights[[0, 2, 1]]).sum() / weights[[0, 2, 1]].sum())


def test_task_weights_are_shared_out():
    assert complete_weights(["a", "b"], {}) == {"a": 0.5, "b": 0.5}
    assert complete_weights(["a", "b", "c"], {"b": 0.6}) == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})
    assert complete_weights(["a", "b"], {"a": 2.0, "b": 1.0}) == {"a": 2.0, "b": 1.0}


@pytest.mark.parametrize("given", [{"z": 0.5}, {"a": 0.0}, {"a": float("nan")}, {"a": 1.5}])
def test_weights_that_make_no_sense_are_refused(given):
    with pytest.raises(UserError, match="--task-weight"):
        complete_weights(["a", "b"], given)
