"""The losses, as pure functions: a sum and what it is a sum of, never a mean.

A step's loss is the sum over all its batches and processes, divided once by the count over all of them; so every row
weighs the same, whatever batch it stands in. All of them take float32, outside autocast.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import UNLABELLED, MultiTaskDataset
from common.errors import UserError

TEMPERATURE = 0.05


class LossSum(NamedTuple):
    """A sum of losses, and how many were added up."""

    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.count, 1)


def contrastive_loss(
    anchors: Tensor, positives: Tensor, near_misses: Tensor | None = None, temperature: float = TEMPERATURE
) -> LossSum:
    """In-batch negatives, both ways: each anchor should find its own positive among all, and each positive its anchor.

    InfoNCE (van den Oord et al. 2018) on cosine similarities, as in SimCSE (Gao et al. 2021, section 2);
    near misses join the candidates of the anchors as hard negatives (there, section 4). One loss a row.

    Args:
        anchors, positives, near_misses: (rows, dim), unit rows.
    """
    candidates = positives if near_misses is None else torch.cat([positives, near_misses])  # (rows or 2 rows, dim)
    targets = torch.arange(len(anchors), device=anchors.device)
    forward = F.cross_entropy(anchors @ candidates.T / temperature, targets, reduction="sum")
    backward = F.cross_entropy(positives @ anchors.T / temperature, targets, reduction="sum")
    return LossSum((forward + backward) / 2, len(anchors))


def ranking_loss(left: Tensor, right: Tensor, scores: Tensor, temperature: float = TEMPERATURE) -> LossSum:
    """Pairs scored higher should be more similar than pairs scored lower, whatever the scale of the scores.

    log(1 + sum over pairs i, j with scores[i] > scores[j] of exp((cos_j - cos_i) / temperature)): CoSENT
    (Su 2022), a smooth stand-in for Spearman's correlation. One loss for all rows together.

    Args:
        left, right: (rows, dim), unit rows. scores: (rows,).
    """
    cosine = (left * right).sum(dim=-1)  # (rows,)
    differences = (cosine[None, :] - cosine[:, None]) / temperature  # [i, j] = (cos_j - cos_i) / temperature
    wrong_way = differences[scores[:, None] > scores[None, :]]
    return LossSum(torch.logsumexp(torch.cat([wrong_way.new_zeros(1), wrong_way]), dim=0), 1)


def distance_loss(projected: Tensor, teacher: Tensor) -> LossSum:
    """The cosine distance of a student's projected embeddings to its teacher's, (rows, dim) each. One loss a row."""
    return LossSum((1 - F.cosine_similarity(projected, teacher, dim=-1)).sum(), len(projected))


def similarity_loss(student: Tensor, teacher: Tensor) -> LossSum:
    """The squared difference of a student's and its teacher's similarities: one loss a pair of different rows.

    Distilling relations (Park et al. 2019).

    Args:
        student: (rows, dim), unit rows. teacher: (rows, teacher dim), unit rows.
    """
    others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)  # (rows, rows)
    difference = (student @ student.T)[others] - (teacher @ teacher.T)[others]
    return LossSum(difference.square().sum(), len(difference))


def task_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> LossSum:
    """The cross-entropy of a task's labelled rows, each times the weight of its class. One loss a labelled row.

    Args:
        logits: (rows, classes). labels: (rows,), UNLABELLED where there is none. class_weights: (classes,).
    """
    total = F.cross_entropy(logits, labels, class_weights, ignore_index=UNLABELLED, reduction="sum")
    return LossSum(total, int((labels != UNLABELLED).sum()))


def uncertainty_weighted(loss: Tensor, log_variance: Tensor, share: float = 1.0) -> Tensor:
    """A task's mean loss weighed by how certain the task is: exp(-s) × loss + s / 2, s its learned log variance.

    Kendall, Gal & Cipolla 2018, section 3.2, for classification.

    Args:
        share: of the task's rows, where `loss` is the part of the mean that they make up.
    """
    return torch.exp(-log_variance) * loss + share * log_variance / 2


def complete_weights(tasks: Sequence[str], given: Mapping[str, float]) -> dict[str, float]:
    """A weight for every task: those given, and an equal share of what they leave of 1 for the others.

    Raises:
        UserError: a name that is no task, a weight that is not positive, nothing left for the others.
    """
    for task, weight in given.items():
        if task not in tasks:
            raise UserError(f'{task}={weight:g}: no task "{task}" learns (these do: {", ".join(tasks)})', "task_weight")
        if not 0 < weight < float("inf"):
            raise UserError(f"{task}={weight:g}: must be above 0", "task_weight")
    others = [task for task in tasks if task not in given]
    left = 1 - sum(given.values())
    if others and left <= 0:
        raise UserError(f"{sum(given.values()):g} leaves nothing of 1 for {', '.join(others)}", "task_weight")
    return {task: given[task] if task in given else left / len(others) for task in tasks}


def balanced_class_weights(data: MultiTaskDataset) -> dict[str, Tensor]:
    """For each task (classes,) weights that make its classes count alike: rows / (classes × rows of the class).

    Classes without a row do not count.
    """
    weights = {}
    for task, labels in data.tasks.items():
        counts = torch.tensor([data.classes[task].count(i) for i in range(len(labels))], dtype=torch.float32)
        weights[task] = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
    return weights
