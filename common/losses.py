"""The losses, as pure functions of embeddings, and the objective that feeds them from a batch of pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.encoder import Encoder

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
        columns = self.encoder(input_ids, attention_mask).float().split(rows)
        if "scores" in batch:
            return {"loss": ranking_loss(*columns[:2], batch["scores"])}
        return {"loss": contrastive_loss(*columns)}
