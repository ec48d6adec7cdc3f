"""Objectives that train a sentence encoder: pairs, scored pairs, single sentences, teachers' embeddings.

Their losses compare the rows of a step with each other, so they need all its embeddings at once. They follow the
gradient cache of Gao et al. 2021 ("Scaling deep contrastive learning batch size under memory limited setup"): embed the
whole step, take the gradient of its loss by the embeddings, then run each batch again with that gradient; a step within
the token budget need not be run again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoint import START, model_digest
from common.config import SIMILARITY_WEIGHT
from common.data import SentenceDataset, digest
from common.devices import processes, sum_over_processes
from common.embedding import Encoder
from common.errors import UserError
from common.folders import HEADS, TASKS
from common.losses import (
    LossSum,
    contrastive_loss,
    distance_loss,
    ranking_loss,
    similarity_loss,
)
from common.metrics import correlation
from common.objective import RESULT_FILES, Batch, Metrics, Objective, Step
from common.rows import TrainingRows
from common.teachers import JoinedTeachers, KeptEmbeddings

FITTED_SENTENCES = 1024
RIDGE = 0.1


class SentenceObjective(Objective):
    """Trains an encoder by a loss of a whole step's embeddings; with scored `dev` pairs it keeps the best by Spearman.

    Args:
        dev: scored pairs.

    Raises:
        UserError: a single row, which has nothing to be compared with.
    """

    leftovers = (*RESULT_FILES, HEADS, TASKS)
    smallest_step = 2
    target_width = 0

    def __init__(self, encoder: Encoder, data: SentenceDataset, dev: TrainingRows | None = None) -> None:
        super().__init__()
        if len(data) < 2:
            raise UserError("there is only one row to train on: rows are compared with each other, so give two or more")
        self.encoder, self.data, self.dev = encoder, data, dev
        self.rates, self.thaw, self.evaluates = {}, {}, dev is not None
        dev_digest = digest(dev.rows, dev.scores) if dev else None
        self.contents = {"the dev rows": dev_digest, START: model_digest(encoder)}

    @property
    def max_padding(self) -> float:
        return self.encoder.max_padding

    def named_stages(self) -> dict[str, nn.Module]:
        return self.encoder.named_stages()

    def forward(self, batch: Batch) -> Tensor:
        """A batch of SentenceDataset to (rows, columns, dim) embeddings, unit rows."""
        embeddings = self.encoder(batch["input_ids"], batch["attention_mask"])  # (columns × rows, dim)
        return embeddings.unflatten(0, (-1, len(batch["index"]))).transpose(0, 1)

    def targets(self, batch: Batch) -> Tensor:
        """Give what the loss needs of a batch's rows beside their embeddings: (rows, target_width)."""
        return torch.zeros(len(batch["index"]), self.target_width)

    def step_losses(self, embeddings: Tensor, targets: Tensor) -> dict[str, LossSum]:
        """The losses of a step's (rows, columns, dim) embeddings, by name; their means are added up."""
        raise NotImplementedError

    def backward(self, step: Step) -> None:
        """The gradient of the step's loss by its embeddings, then from these on, batch by batch."""
        numbers = range(len(step.batches))
        with torch.set_grad_enabled(step.fits):
            parts = [step.forward(number) for number in numbers]
        places = Places(step.batches, self.encoder.device)
        embeddings = places.gather([part.detach() for part in parts], len(self.data.ids[0]), self.encoder.dim)
        targets = places.gather([self.targets(batch) for batch in step.batches], self.target_width)
        losses = self.step_losses(embeddings.requires_grad_(), targets)
        total = sum(loss.mean for loss in losses.values())
        # Every process computes the same whole step, so that each counts for its share of it.
        share = 1 / processes().num_processes
        step.track("loss", total.detach() * share)
        for name in self.tracked:
            step.track(name, losses[name].total.detach() * share, losses[name].count * share)
        (total * share).backward()
        gradient = embeddings.grad / share
        for number in numbers:
            again = parts[number] if step.fits else step.forward(number)
            again.backward(gradient[places.of_batch[number]])

    def evaluate(self, **options: Any) -> Metrics:
        """Give Spearman's correlation of the dev pairs' similarities and scores."""
        reached = correlation(self.encoder, self.dev, **options)
        return {"spearman": reached, "score": reached}

    def save(self, folder: Path) -> None:
        self.encoder.save_pretrained(folder)


class Places:
    """Where each of this process's batches stands among the rows of the whole step, on all processes."""

    def __init__(self, batches: Sequence[Batch], device: torch.device) -> None:
        joined, size = processes(), torch.tensor([float(sum(len(batch["place"]) for batch in batches))], device=device)
        sum_over_processes(size)
        self.rows, self.device = int(size), device
        self.of_batch = [batch["place"] * joined.num_processes + joined.process_index for batch in batches]

    def gather(self, parts: Sequence[Tensor], *shape: int) -> Tensor:
        """The (rows, *shape) whole of the step, put together from every process's (rows of a batch, *shape) parts."""
        whole = torch.zeros(self.rows, *shape, device=self.device)
        if not whole.numel():
            return whole
        for part, places in zip(parts, self.of_batch, strict=True):
            whole[places] = part.to(whole)
        sum_over_processes(whole)  # the other processes hold zeros in this one's places
        return whole


class PairObjective(SentenceObjective):
    """Sentences that belong together: pairs (with near misses), or scored pairs where the data has scores.

    With scores the loss is `ranking_loss`, else `contrastive_loss`. A sentence given as its own pair is seen through
    two dropout masks (unsupervised SimCSE, Gao et al. 2021, section 3).
    """

    @property
    def target_width(self) -> int:
        return 0 if self.data.scores is None else 1

    def targets(self, batch: Batch) -> Tensor:
        """A batch's scores, (rows, 1), where there are any."""
        return batch["scores"][:, None] if "scores" in batch else super().targets(batch)

    def step_losses(self, embeddings: Tensor, targets: Tensor) -> dict[str, LossSum]:
        columns = embeddings.unbind(dim=1)  # each (rows, dim)
        if self.data.scores is not None:
            return {"ranking": ranking_loss(*columns[:2], targets[:, 0])}
        return {"contrastive": contrastive_loss(*columns)}


def pair_objective(encoder: Encoder, rows: TrainingRows, dev: TrainingRows | None = None) -> PairObjective:
    """The objective that the rows' columns ask for; a single sentence becomes its own pair."""
    pairs = rows.rows if len(rows.columns) > 1 else [(*row, *row) for row in rows.rows]
    return PairObjective(encoder, SentenceDataset(pairs, encoder.tokenizer, rows.scores), dev)


class DistillationObjective(SentenceObjective):
    """Embed sentences as one or more teachers do, through a projection that is not part of the encoder.

    The loss is the distance of each embedding to the teachers' joined one, and the difference of the similarities
    within a step. The projection starts where it fits the teachers' embeddings best by ridge regression.

    Args:
        data: single sentences.
        similarity_weight: of the similarities, against the distances.
        kept: the folder in which the teachers' embeddings are kept.
    """

    tracked = ("distance", "similarity")

    def __init__(
        self,
        encoder: Encoder,
        data: SentenceDataset,
        teachers: Sequence[Encoder],
        kept: Path,
        *,
        similarity_weight: float = SIMILARITY_WEIGHT,
        dev: TrainingRows | None = None,
    ) -> None:
        super().__init__(encoder, data, dev)
        self.similarity_weight, self.target_width = similarity_weight, sum(teacher.dim for teacher in teachers)
        self._teachers, self._kept = list(teachers), kept  # in a list: their parameters are not the objective's
        self.projection = nn.Parameter(torch.zeros(self.target_width, encoder.dim))
        self.contents |= {
            "the teachers": [model_digest(teacher) for teacher in teachers],
            "the training texts": digest(data.rows),  # a teacher may tell apart what the student's tokens do not
            "the weight of the similarities": similarity_weight,
        }

    def prepare(self, folder: Path, **options: Any) -> None:
        """Join the teachers, on the device and with the training's options, and fit the projection to them."""
        texts = [row[0] for row in self.data.rows]
        first = range(min(len(texts), FITTED_SENTENCES))
        with processes().main_process_first():  # the others find its files
            kept = [KeptEmbeddings(one.to(self.encoder.device), texts, self._kept, **options) for one in self._teachers]
            self._joined = JoinedTeachers(kept, first)
        student = torch.from_numpy(self.encoder.encode([texts[i] for i in first], **options))
        self.projection.data.copy_(ridge_regression(student, self._joined[first]))

    def targets(self, batch: Batch) -> Tensor:
        """The teachers' joined embeddings of a batch's sentences: (rows, joined dim), unit rows."""
        return self._joined[batch["index"].tolist()]

    def step_losses(self, embeddings: Tensor, targets: Tensor) -> dict[str, LossSum]:
        student = embeddings[:, 0]  # (rows, dim)
        similarity = similarity_loss(student, targets)
        return {
            "distance": distance_loss(student @ self.projection.T, targets),
            "similarity": LossSum(self.similarity_weight * similarity.total, similarity.count),
        }


def ridge_regression(student: Tensor, wanted: Tensor) -> Tensor:
    """The (wanted dim, dim) matrix that takes (texts, dim) embeddings nearest to (texts, wanted dim) others."""
    normal = student.T @ student + RIDGE * torch.eye(student.size(1))
    return torch.linalg.solve(normal, student.T @ wanted).T.contiguous()
