import math

import pytest
import torch
from torch.nn import functional as F

from common.losses import PairObjective, contrastive_loss, distillation_loss, ranking_loss


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
