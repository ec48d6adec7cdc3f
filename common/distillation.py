"""Learning from a teacher: an encoder is trained to embed sentences as another one does."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common.encoder import Encoder, SentenceEncoder
from common.losses import Batch, Losses, distillation_loss


class DistillationObjective(nn.Module):
    """Trains an encoder to embed as a teacher does, through a projection that is not part of the encoder.

    Args:
        texts: the data set's sentences, by the `index` of a batch.
        teach: gives the teacher's embeddings of sentences, (rows, teacher dim) with unit rows.
        projection: (teacher dim, dim), where the projection starts.
    """

    def __init__(
        self, encoder: Encoder, texts: Sequence[str], teach: Callable[[list[str]], Tensor], projection: Tensor
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Parameter(projection.clone())
        self._texts, self._teach = texts, teach

    def forward(self, batch: Batch) -> Losses:
        """`input_ids`, `attention_mask` (rows, length) and `index` to {"loss", "distance", "similarity"}."""
        student = self.encoder(batch["input_ids"], batch["attention_mask"]).float()
        teacher = self._teach([self._texts[i] for i in batch["index"].tolist()]).to(student)
        distance, similarity = distillation_loss(student, student @ self.projection.T, teacher)
        return {"loss": distance + similarity, "distance": distance, "similarity": similarity}


def random_projection(teacher_dim: int, dim: int) -> Tensor:
    """A random (teacher dim, dim) matrix with orthonormal rows (columns, where the teacher is the wider)."""
    return nn.init.orthogonal_(torch.empty(teacher_dim, dim))


def start_from_teacher(encoder: Encoder, teacher: Encoder, projection: Tensor) -> bool:
    """Give the encoder the teacher's token embeddings, turned into its width by a (teacher dim, dim) projection.

    They are scaled so that tokens weigh as much against the encoder's positions as they did against the
    teacher's. Needs two BERT-like encoders with one vocabulary; returns whether it was done.
    """
    if not (isinstance(encoder, SentenceEncoder) and isinstance(teacher, SentenceEncoder)):
        return False
    if encoder.tokenizer.backend.get_vocab() != teacher.tokenizer.backend.get_vocab():
        return False
    length = min(encoder.tokenizer.max_length, teacher.tokenizer.max_length)
    ours, theirs = (e.embeddings.positions.table[:length].norm(dim=1).mean() for e in (encoder, teacher))
    with torch.no_grad():
        tokens = teacher.embeddings.tokens.weight @ projection.to(teacher.device)
        encoder.embeddings.tokens.weight.copy_(tokens * (ours / theirs))
    return True
