"""Learning from a teacher: an encoder is trained to embed sentences as another one does."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common.cli import UserError
from common.encoder import Encoder, EncoderConfig, SentenceEncoder
from common.losses import SIMILARITY_WEIGHT, Batch, Losses, distillation_loss
from common.widening import head_importance, most_important_heads, widen, widened_projection

PROBE_SENTENCES = 64


class DistillationObjective(nn.Module):
    """Trains an encoder to embed as a teacher does, through a projection that is not part of the encoder.

    Args:
        texts: the data set's sentences, by the `index` of a batch.
        teach: gives the teacher's embeddings of sentences, (rows, teacher dim) with unit rows.
        projection: (teacher dim, dim), where the projection starts.
        similarity_weight: of the similarities within a batch, against the distance of each embedding.
    """

    def __init__(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        teach: Callable[[list[str]], Tensor],
        projection: Tensor,
        similarity_weight: float = SIMILARITY_WEIGHT,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.similarity_weight = similarity_weight
        self.projection = nn.Parameter(projection.clone())
        self._texts, self._teach = texts, teach

    def forward(self, batch: Batch) -> Losses:
        """`input_ids`, `attention_mask` (rows, length) and `index` to {"loss", "distance", "similarity"}."""
        student = self.encoder(batch["input_ids"], batch["attention_mask"]).float()
        teacher = self._teach([self._texts[i] for i in batch["index"].tolist()]).to(student)
        distance, similarity = distillation_loss(student, student @ self.projection.T, teacher, self.similarity_weight)
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


def widened_teacher(teacher: Encoder, texts: Sequence[str]) -> tuple[SentenceEncoder, Tensor]:
    """The project's encoder made from a teacher of half its width, and the projection that goes back to it.

    Each layer keeps the heads whose removal moves the embeddings of some of the texts most.

    Raises:
        UserError: the teacher's shape doubled is not the project's encoder's.
    """
    ours = EncoderConfig()
    fits = isinstance(teacher, SentenceEncoder) and (
        (2 * teacher.dim, 2 * teacher.config.intermediate_size, teacher.config.num_hidden_layers)
        == (ours.hidden_size, ours.intermediate_size, ours.num_hidden_layers)
        and teacher.config.num_attention_heads >= ours.num_attention_heads
    )
    if not fits:
        raise UserError(
            f"--widen takes a BERT-like teacher of {ours.num_hidden_layers} layers, {ours.hidden_size // 2} wide, with "
            f"{ours.num_attention_heads} heads or more, such as all-MiniLM-L6-v2"
        )
    importance = head_importance(teacher, texts[:PROBE_SENTENCES])
    return widen(teacher, most_important_heads(importance, ours.num_attention_heads)), widened_projection(teacher.dim)
