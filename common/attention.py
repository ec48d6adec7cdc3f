"""Attention among the tokens of a padded batch, and how everything else is computed without the padding."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.batching import token_budget_batches
from common.dropout import dropout

MAX_PADDING = 128  # in a group of rows on a processor: with more, two groups cost less than one


class Tokens:
    """The tokens of a padded batch, one after another: most of a layer treats each by itself, and padding not at all.

    For attention, rows of like length form groups, padded to the longest in each (on an accelerator, one group).

    Args:
        attention_mask: (batch, length), true at tokens.
    """

    def __init__(self, attention_mask: Tensor) -> None:
        mask = attention_mask.bool()
        self.batch = mask.shape
        self.padded = not bool(mask.all())
        if not self.padded:
            self.shapes, self.masks = [mask.shape], [None]
            return
        lengths, padding = [mask.size(1)] * len(mask), math.inf
        if mask.device.type == "cpu":
            ends = (mask * torch.arange(1, mask.size(1) + 1)).amax(dim=1).clamp(min=1)  # (batch,)
            lengths, padding = ends.tolist(), MAX_PADDING
        groups = token_budget_batches(lengths, math.inf, padding)
        own = [mask[rows, : lengths[rows[0]]] for rows in groups]  # each (rows, length of the longest)
        numbers = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        self.shapes = [group.shape for group in own]
        self.masks = [group[:, None, None] for group in own]
        in_groups = torch.cat([group.flatten() for group in own])  # (places,): those of all groups, padding too
        places = torch.cat([numbers[rows, : group.size(1)][group] for rows, group in zip(groups, own, strict=True)])
        self.places_in_batch = places  # (tokens,)
        self.places_in_groups = in_groups.nonzero().squeeze(1)  # (tokens,)
        self.token_of_place = (in_groups.cumsum(0) - 1).clamp(min=0)  # (places,): at padding any, for it is masked

    def take(self, states: Tensor) -> Tensor:
        """(batch, length, dim) to (tokens, dim)."""
        flat = states.flatten(0, 1)
        return flat.index_select(0, self.places_in_batch) if self.padded else flat

    def put_back(self, states: Tensor) -> Tensor:
        """(tokens, dim) to (batch, length, dim), zero at padding."""
        if self.padded:
            zeros = states.new_zeros(self.batch.numel(), states.size(1))
            states = zeros.index_copy(0, self.places_in_batch, states)
        return states.view(*self.batch, -1)

    def attend(self, query_key_value: Tensor, heads: int, dropout_share: float) -> Tensor:
        """Multi-head self-attention within each row: (tokens, 3 dim), queries, keys and values, to (tokens, dim)."""
        if self.padded:
            query_key_value = query_key_value.index_select(0, self.token_of_place)
        parts = query_key_value.split([shape.numel() for shape in self.shapes])
        attended = []
        for part, (rows, length), mask in zip(parts, self.shapes, self.masks, strict=True):
            query, key, value = part.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            found = attention(query, key, value, mask, dropout_share)  # (rows, heads, length, width)
            attended.append(found.transpose(1, 2).reshape(rows * length, -1))
        joined = torch.cat(attended)
        return joined.index_select(0, self.places_in_groups) if self.padded else joined


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_share: float = 0.0) -> Tensor:
    """softmax(QK^T / sqrt(width)) V (Vaswani et al. 2017, section 3.2.1), with dropout on the softmax.

    On a processor it is written out: torch's own function took two to six times as long in bf16.

    Args:
        query, key, value: (batch, heads, length, width), as what is returned.
        mask: (batch, 1, 1, length), True where a token is to be seen; None: everywhere.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_share)
    scores = query * query.size(-1) ** -0.5 @ key.transpose(-1, -2)  # (batch, heads, length, length)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    return (dropout(weights, dropout_share) if dropout_share else weights) @ value
