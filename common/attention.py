"""Attention among the tokens of a padded batch, and how everything else is computed without the padding."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.batching import token_budget_batches
from common.dropout import dropout

MAX_PADDING = 128  # places in a group of rows on a processor; more, and two groups cost less (an estimate, not timed)
LONGEST = 1024  # tokens of a row, for which attention is written out


class Tokens:
    """The tokens of a padded batch, one after another: most of a layer treats each by itself, and padding not at all.

    For attention, rows of like length form groups, padded to the longest in each (on an accelerator, one group).

    Args:
        attention_mask: (batch, length), true at tokens.
    """

    def __init__(self, attention_mask: Tensor) -> None:
        mask = attention_mask.bool()
        self.shape = mask.shape
        self.padded = not bool(mask.all())
        if not self.padded:
            self.shapes, self.masks = [mask.shape], [None]
            return
        lengths, padding = [mask.size(1)] * len(mask), math.inf
        if mask.device.type == "cpu":
            ends = (mask * torch.arange(1, mask.size(1) + 1, device=mask.device)).amax(dim=1).clamp(min=1)  # (batch,)
            lengths, padding = ends.tolist(), MAX_PADDING
        groups = token_budget_batches(lengths, math.inf, padding)
        group_masks = [mask[rows, : lengths[rows[0]]] for rows in groups]  # each (rows, length of the longest)
        places = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        self.shapes = [group.shape for group in group_masks]
        self.masks = [group[:, None, None] for group in group_masks]
        in_groups = torch.cat([group.flatten() for group in group_masks])  # (places,): those of all groups, padding too
        self.places_in_batch = torch.cat(
            [places[rows, : group.size(1)][group] for rows, group in zip(groups, group_masks, strict=True)]
        )
        self.places_in_groups = in_groups.nonzero().squeeze(1)  # (tokens,)
        self.token_of_place = (in_groups.cumsum(0) - 1).clamp(min=0)  # (places,): at padding any, for it is masked

    def take(self, states: Tensor) -> Tensor:
        """(batch, length, dim) to (tokens, dim)."""
        flat = states.flatten(0, 1)
        return flat.index_select(0, self.places_in_batch) if self.padded else flat

    def put_back(self, states: Tensor) -> Tensor:
        """(tokens, dim) to (batch, length, dim), zero at padding."""
        if self.padded:
            zeros = states.new_zeros(self.shape.numel(), states.size(1))
            states = zeros.index_copy(0, self.places_in_batch, states)
        return states.view(*self.shape, -1)

    def attend(self, query_key_value: Tensor, heads: int, dropout_share: float) -> Tensor:
        """Multi-head self-attention within each row: (tokens, 3 dim), queries, keys and values, to (tokens, dim)."""
        if self.padded:
            query_key_value = query_key_value.index_select(0, self.token_of_place)
        dim = query_key_value.size(1) // 3
        parts = query_key_value.split([shape.numel() for shape in self.shapes])
        attended = []
        for part, (rows, length), mask in zip(parts, self.shapes, self.masks, strict=True):
            query, key, value = part.view(rows, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            found = attention(query, key, value, mask, dropout_share)  # (rows, heads, length, width)
            attended.append(found.transpose(1, 2).reshape(rows * length, dim))
        joined = torch.cat(attended)
        return joined.index_select(0, self.places_in_groups) if self.padded else joined


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_share: float = 0.0) -> Tensor:
    """softmax(QK^T / sqrt(width)) V (Vaswani et al. 2017, section 3.2.1), with dropout on the softmax.

    On a processor it is written out in bf16, which rounds scores and weights, and where there is dropout: torch's own
    function took two to six times as long. That one needs no memory for the weights, and so has the very long rows.

    Args:
        query, key, value: (batch, heads, length, width), as what is returned.
        mask: (batch, 1, 1, length), True where a token is to be seen; None: everywhere.
    """
    torchs_is_slow = dropout_share or (query.dtype == torch.bfloat16 and query.size(-2) <= LONGEST)
    if query.device.type != "cpu" or not torchs_is_slow:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_share)
    scores = query * query.size(-1) ** -0.5 @ key.transpose(-1, -2)  # (batch, heads, length, length)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    return (dropout(weights, dropout_share) if dropout_share else weights) @ value
