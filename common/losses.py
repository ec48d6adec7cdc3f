"""The losses, as pure functions, and the objectives that feed them from a batch."""

import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import UserError
from common.data import UNLABELLED, MultiTaskDataset
from common.encoder import Encoder
from common.heads import MultiTaskModel

TEMPERATURE = 0.05
SIMILARITY_WEIGHT = 5.0

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


def contrastive_loss(
    anchors: Tensor, positives: Tensor, near_misses: Tensor | None = None, temperature: float = TEMPERATURE
) -> Tensor:
    """In-batch negatives, both ways: each anchor should find its own positive among all, and each positive its anchor.

    InfoNCE (van den Oord et al. 2018) on cosine similarities, as in SimCSE (Gao et al. 2021, section 2);
    near misses join the candidates of the anchors as hard negatives (there, section 4).

    Args:
        anchors, positives, near_misses: (rows, dim), unit rows.
    """
    candidates = positives if near_misses is None else torch.cat([positives, near_misses])
    targets = torch.arange(len(anchors), device=anchors.device)
    forward = F.cross_entropy(anchors @ candidates.T / temperature, targets)
    backward = F.cross_entropy(positives @ anchors.T / temperature, targets)
    return (forward + backward) / 2


def ranking_loss(left: Tensor, right: Tensor, scores: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Pairs scored higher should be more similar than pairs scored lower, whatever the scale of the scores.

    log(1 + sum over pairs i, j with scores[i] > scores[j] of exp((cos_j - cos_i) / temperature)): CoSENT
    (Su 2022), a smooth stand-in for Spearman's correlation.

    Args:
        left, right: (rows, dim), unit rows. scores: (rows,).
    """
    cosine = (left * right).sum(dim=-1)
    differences = (cosine[None, :] - cosine[:, None]) / temperature  # [i, j] = (cos_j - cos_i) / temperature
    wrong_way = differences[scores[:, None] > scores[None, :]]
    return torch.logsumexp(torch.cat([wrong_way.new_zeros(1), wrong_way]), dim=0)


def distillation_loss(
    student: Tensor, projected: Tensor, teacher: Tensor, similarity_weight: float = SIMILARITY_WEIGHT
) -> tuple[Tensor, Tensor]:
    """How far a student is from its teacher: in each embedding, and in the similarities within the batch.

    Cosine distance of the projected student to the teacher, and the mean squared difference of the two
    similarity matrices off the diagonal (Park et al. 2019 for distilling relations), times its weight.

    Args:
        student: (rows, dim), unit rows. projected: (rows, teacher dim). teacher: (rows, teacher dim), unit rows.
    """
    distance = (1 - F.cosine_similarity(projected, teacher, dim=-1)).mean()
    if len(student) < 2:
        return distance, student.sum() * 0
    others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    similarity = F.mse_loss((student @ student.T)[others], (teacher @ teacher.T)[others])
    return distance, similarity_weight * similarity


class PairObjective(nn.Module):
    """Trains an encoder on rows of sentences that belong together: pairs, scored pairs, or single sentences.

    With scores the loss is `ranking_loss`, else `contrastive_loss`; a single sentence is its own pair, seen
    through two dropout masks (unsupervised SimCSE, Gao et al. 2021, section 3).
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Batch) -> Losses:
        """`input_ids`, `attention_mask` (columns × rows, length) and perhaps `scores` to {"loss"}."""
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        rows = len(batch["index"])
        if len(input_ids) == rows:
            input_ids, attention_mask = input_ids.repeat(2, 1), attention_mask.repeat(2, 1)
        if rows == 1:
            warnings.warn("a batch of one row teaches nothing: raise --batch-tokens", stacklevel=2)
        columns = self.encoder(input_ids, attention_mask).float().split(rows)
        if "scores" in batch:
            return {"loss": ranking_loss(*columns[:2], batch["scores"])}
        return {"loss": contrastive_loss(*columns)}


def task_losses(
    logits: Mapping[str, Tensor], labels: Tensor, class_weights: Mapping[str, Tensor | None] | None = None
) -> dict[str, Tensor]:
    """Each task's cross-entropy, averaged over its labelled rows; a task without any in this batch has no entry.

    Args:
        logits: (rows, classes) for each task. labels: (rows, tasks) in the same order, UNLABELLED where there is none.
        class_weights: (classes,) for a task, to weigh its classes; the average is then the weighted one.
    """
    losses = {}
    for column, (task, scores) in enumerate(logits.items()):
        if bool((labels[:, column] != UNLABELLED).any()):
            weight = (class_weights or {}).get(task)
            losses[task] = F.cross_entropy(scores.float(), labels[:, column], weight, ignore_index=UNLABELLED)
    return losses


def uncertainty_weighted(losses: Mapping[str, Tensor], log_variances: Mapping[str, Tensor]) -> Tensor:
    """The sum of losses, each weighed by how certain its task is: exp(-s) × loss + s / 2, s = log variance.

    Kendall, Gal & Cipolla 2018, section 3.2, for classification; s is learned with the rest.
    """
    return sum(torch.exp(-log_variances[task]) * loss + log_variances[task] / 2 for task, loss in losses.items())


def complete_weights(tasks: Sequence[str], given: Mapping[str, float]) -> dict[str, float]:
    """A weight for every task: those given, and an equal share of what they leave of 1 for the others.

    Raises:
        UserError: a name that is no task, a weight that is not positive, nothing left for the others.
    """
    for task, weight in given.items():
        if task not in tasks:
            raise UserError(f'--task-weight {task}={weight:g}: no task "{task}" (there are: {", ".join(tasks)})')
        if not 0 < weight < float("inf"):
            raise UserError(f"--task-weight {task}={weight:g}: must be above 0")
    others = [task for task in tasks if task not in given]
    left = 1 - sum(given.values())
    if others and left <= 0:
        raise UserError(f"--task-weight: {sum(given.values()):g} leaves nothing of 1 for {', '.join(others)}")
    return {task: given[task] if task in given else left / len(others) for task in tasks}


def balanced_class_weights(data: MultiTaskDataset) -> dict[str, Tensor]:
    """For each task (classes,) weights that make its classes count alike: rows / (classes × rows of the class)."""
    weights = {}
    for task, labels in data.tasks.items():
        counts = torch.tensor([data.classes[task].count(i) for i in range(len(labels))]).clamp(min=1)
        weights[task] = data.labelled(task) / (len(labels) * counts.float())
    return weights


class MultiTaskObjective(nn.Module):
    """Trains a multi-task model on the weighted sum of its tasks' losses.

    Args:
        weights: each task's weight; None learns them (`uncertainty_weighted`).
        class_weights: (classes,) for each task, to weigh its classes.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        weights: Mapping[str, float] | None,
        class_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.weights = weights
        self.log_variances = nn.Parameter(torch.zeros(len(model.tasks))) if weights is None else None
        self.class_weights = dict(class_weights or {})

    def forward(self, batch: Batch) -> Losses:
        """A batch of MultiTaskDataset to {"loss"} and each task's own loss and accuracy, where it has labels.

        `states` (rows, length, dim) in the batch stand in for a pass through the encoder.
        """
        states = batch.get("states")
        if states is None:
            states = self.model.encoder.token_states(batch["input_ids"], batch["attention_mask"])
        logits, labels = self.model.classify(states, batch["attention_mask"]).logits, batch["labels"]
        class_weights = {task: weight.to(labels.device) for task, weight in self.class_weights.items()}
        losses = task_losses(logits, labels, class_weights)
        if self.weights is None:
            total = uncertainty_weighted(losses, dict(zip(self.model.tasks, self.log_variances, strict=True)))
        else:
            total = sum(self.weights[task] * loss for task, loss in losses.items())
        result = {"loss": total}
        for column, task in enumerate(logits):
            if task in losses:
                known = labels[:, column] != UNLABELLED
                right = logits[task].argmax(dim=-1)[known] == labels[known, column]
                result |= {f"{task} loss": losses[task].detach(), f"{task} accuracy": right.float().mean()}
        return result
