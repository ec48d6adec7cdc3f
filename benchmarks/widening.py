"""A smaller BERT made twice as wide without changing what it computes, as a start for training.

After Net2Net (Chen et al. 2016): the stream of width d is carried twice, h = [x; x]. Layer norm of [x; x] is
[norm(x); norm(x)], so every matrix that reads the stream is halved and laid twice side by side, every matrix that
writes it is laid twice, and the feed-forward is doubled in the same way: all exact. Fewer heads and sinusoids in
the place of learned positions are not exact; training repairs what they change.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from common.embedding import Encoder
from common.encoder import EncoderConfig, PositionalEncoding, SentenceEncoder, TransformerLayer
from common.errors import UserError

NOISE = 0.05
IDLE_DEVIATION = 0.02  # of the dimensions a wider head adds: BERT's own initial deviation
PROBE_SENTENCES = 64


def widened_teacher(teacher: Encoder, texts: Sequence[str]) -> SentenceEncoder:
    """The project's encoder made from a teacher of half its width.

    Each layer keeps the heads whose removal moves the embeddings of the first texts most.

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
            f"only a BERT-like teacher of {ours.num_hidden_layers} layers, {ours.hidden_size // 2} wide, with "
            f"{ours.num_attention_heads} heads or more, can be widened, such as all-MiniLM-L6-v2"
        )
    importance = head_importance(teacher, texts[:PROBE_SENTENCES])
    return widen(teacher, most_important_heads(importance, ours.num_attention_heads))


@torch.no_grad()
def widen(
    teacher: SentenceEncoder,
    kept_heads: Sequence[Sequence[int]] | None = None,
    positions: str = "sinusoidal",
    noise: float = NOISE,
) -> SentenceEncoder:
    """An encoder twice as wide that embeds as the teacher does: its embeddings are [e; e] / sqrt(2).

    That is exact with all heads, the teacher's own positions and no noise.

    Args:
        teacher: an encoder with learned positions.
        kept_heads: for each layer the attention heads to keep, as many in each; None keeps all.
        positions: "learned" keeps the teacher's; "sinusoidal" puts the fixed ones in their place, and scales the
            tokens so that positions weigh as much as they did.
        noise: a share of each matrix's deviation, added at random so that the two halves can learn to differ.

    Raises:
        UserError: the teacher's positions are not learned, or the heads kept do not divide the new width.
    """
    if isinstance(teacher.embeddings.positions, PositionalEncoding):
        raise UserError("only an encoder with learned positions can be widened")
    everything = range(teacher.config.num_attention_heads)
    kept_heads = kept_heads or [everything] * teacher.config.num_hidden_layers
    config = replace(
        teacher.config,
        hidden_size=2 * teacher.config.hidden_size,
        intermediate_size=2 * teacher.config.intermediate_size,
        num_attention_heads=len(kept_heads[0]),
        positions=positions,
    )
    encoder = SentenceEncoder(config, teacher.tokenizer).to(teacher.device)
    _widen_embeddings(teacher, encoder)
    for narrow, wide, kept in zip(teacher.layers, encoder.layers, kept_heads, strict=True):
        _widen_layer(narrow, wide, list(kept))
    for module in encoder.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight += noise * module.weight.std() * torch.randn_like(module.weight)
    return encoder


@torch.no_grad()
def head_importance(encoder: SentenceEncoder, sentences: Sequence[str]) -> Tensor:
    """How far the embeddings of sentences move (mean cosine distance) without each head: (layers, heads)."""
    whole = encoder.encode(sentences)
    importance = torch.zeros(encoder.config.num_hidden_layers, encoder.config.num_attention_heads)
    for i, layer in enumerate(encoder.layers):
        weight = layer.attention_output.weight
        width = weight.size(1) // layer.heads
        for head in range(layer.heads):
            columns = weight[:, head * width : (head + 1) * width]
            taken = columns.clone()
            columns.zero_()
            importance[i, head] = float(1 - (whole * encoder.encode(sentences)).sum(axis=1).mean())
            columns.copy_(taken)
    return importance


def most_important_heads(importance: Tensor, count: int) -> list[list[int]]:
    """For each layer of (layers, heads) its `count` heads of highest importance, in their order."""
    return importance.topk(count, dim=1).indices.sort(dim=1).values.tolist()


def _twice(tensor: Tensor) -> Tensor:
    """What writes the stream, or a bias or norm in it: laid twice."""
    return torch.cat([tensor, tensor])


def _halved_twice(weight: Tensor) -> Tensor:
    """What reads the stream: (out, d) to (out, 2 d), half of it from each copy."""
    return torch.cat([weight, weight], dim=1) / 2


def _widen_embeddings(teacher: SentenceEncoder, encoder: SentenceEncoder) -> None:
    narrow, wide = teacher.embeddings, encoder.embeddings
    positions = narrow.positions
    wide.norm.weight.copy_(_twice(narrow.norm.weight))
    wide.norm.bias.copy_(_twice(narrow.norm.bias))
    if encoder.config.positions == "learned":
        wide.tokens.weight.copy_(_twice(narrow.tokens.weight.T).T)
        wide.positions.table.copy_(_twice(positions.table.T).T)
        wide.positions.token_types.copy_(_twice(positions.token_types.T).T)
        return
    # What all positions share belongs to the tokens; what tells them apart is what the sinusoids replace.
    table = positions.table[: teacher.tokenizer.max_length]
    sinusoids = wide.positions.table[: teacher.tokenizer.max_length]
    tokens = _twice((narrow.tokens.weight + positions.token_types[0] + table.mean(dim=0)).T).T
    spread = (_twice(table.T).T - _twice(table.mean(dim=0))).norm()
    scale = (sinusoids - sinusoids.mean(dim=0)).norm() / spread
    wide.tokens.weight.copy_(tokens * scale - sinusoids.mean(dim=0))


def _widen_layer(narrow: TransformerLayer, wide: TransformerLayer, kept: list[int]) -> None:
    _widen_attention(narrow, wide, kept)
    for name in ("attention_norm", "feed_forward_norm"):
        for kind in ("weight", "bias"):
            getattr(getattr(wide, name), kind).copy_(_twice(getattr(getattr(narrow, name), kind)))
    wide.feed_forward.weight.copy_(_twice(_halved_twice(narrow.feed_forward.weight)))
    wide.feed_forward.bias.copy_(_twice(narrow.feed_forward.bias))
    wide.feed_forward_output.weight.copy_(_twice(_halved_twice(narrow.feed_forward_output.weight)))
    wide.feed_forward_output.bias.copy_(_twice(narrow.feed_forward_output.bias))


def _widen_attention(narrow: TransformerLayer, wide: TransformerLayer, kept: list[int]) -> None:
    """Each kept head in the first dimensions of a wider one; the idle ones after them change nothing as yet.

    Idle queries are zero and nothing reads idle values, while idle keys and the weights of idle values are small and
    random: the product is the teacher's, and yet every idle part gets a gradient.
    """
    dim = narrow.attention_output.weight.size(0)
    width, wider = dim // narrow.heads, 2 * dim // len(kept)
    if 2 * dim % len(kept) or wider < width:
        raise UserError(f"{len(kept)} heads of {width} or more do not fit a width of {2 * dim}")
    weight = narrow.query_key_value.weight.view(3, narrow.heads, width, dim)[:, kept]
    bias = narrow.query_key_value.bias.view(3, narrow.heads, width)[:, kept]
    new_weight = torch.randn(3, len(kept), wider, 2 * dim) * IDLE_DEVIATION
    new_bias = torch.zeros(3, len(kept), wider)
    new_weight[0, :, width:] = 0
    new_weight[:, :, :width] = torch.cat([weight, weight], dim=-1) / 2
    new_bias[:, :, :width] = bias
    for tensor in (new_weight, new_bias):
        tensor[0] *= (wider / width) ** 0.5  # attention divides by the root of the head's width
    wide.query_key_value.weight.copy_(new_weight.flatten(0, 2))
    wide.query_key_value.bias.copy_(new_bias.flatten())
    columns = torch.zeros(dim, len(kept), wider)
    columns[:, :, :width] = narrow.attention_output.weight.view(dim, narrow.heads, width)[:, kept]
    wide.attention_output.weight.copy_(_twice(columns.flatten(1)))
    wide.attention_output.bias.copy_(_twice(narrow.attention_output.bias))
