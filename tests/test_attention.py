import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import common.attention
from common.attention import Tokens, attention
from common.encoder import EncoderConfig, SentenceEncoder
from tests.conftest import TINY

# Rows with tokens at their beginning, at their end, and with gaps between.
MASKS = st.integers(1, 7).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length).filter(any), min_size=1)
)
MASK = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_attention_is_torchs_own(masked, dtype, tolerance):
    query, key, value = torch.randn(3, 5, 4, 5, 8)
    mask = MASK[:, None, None] if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, mask)
    found = attention(query.to(dtype), key.to(dtype), value.to(dtype), mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


def test_dropout_on_attention_leaves_its_mean():
    query, key, value = torch.randn(3, 5, 4, 5, 8)
    found = torch.stack([attention(query, key, value, MASK[:, None, None], 0.3) for _ in range(3000)])
    assert not torch.equal(found[0], found[1])
    expected = F.scaled_dot_product_attention(query, key, value, MASK[:, None, None])
    torch.testing.assert_close(found.mean(dim=0), expected, atol=0.1, rtol=0)


@given(MASKS)
@settings(deadline=None)
def test_tokens_taken_and_put_back_are_the_batch_without_its_padding(mask):
    mask = torch.tensor(mask)
    batch = torch.randn(*mask.shape, 3)
    tokens = Tokens(mask)
    taken = tokens.take(batch)
    assert len(taken) == mask.sum()
    assert torch.equal(tokens.put_back(taken), batch * mask[..., None])


def test_a_row_without_tokens_leaves_the_others_alone():
    encoder = SentenceEncoder(EncoderConfig(**TINY))
    encoder.set_dropout(1e-4)  # so that attention is written out
    ids = torch.randint(5, 100, (2, 4))
    alone = encoder.eval().token_states(ids[:1], torch.ones(1, 4))
    beside = encoder.token_states(ids, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]))
    torch.testing.assert_close(beside, torch.cat([alone, torch.zeros_like(alone)]))
    encoder.train().token_states(ids, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]))[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("padding", [0, 2, math.inf])
def test_each_row_attends_to_its_own_tokens_whatever_the_groups(padding, monkeypatch):
    monkeypatch.setattr(common.attention, "MAX_PADDING", padding)
    batch = torch.randn(*MASK.shape, 24)
    tokens = Tokens(MASK)
    assert len(tokens.shapes) == {0: 4, 2: 2, math.inf: 1}[padding]
    found = tokens.put_back(tokens.attend(tokens.take(batch), heads=2, dropout_share=0))
    parts = batch.view(*MASK.shape, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(*parts, MASK[:, None, None]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found[MASK], expected[MASK])


def test_the_gradient_of_a_padded_batch_is_that_of_its_rows_one_by_one(monkeypatch):
    monkeypatch.setattr(common.attention, "MAX_PADDING", 2)
    encoder = SentenceEncoder(EncoderConfig(**TINY)).eval()
    ids, lengths, found = torch.randint(5, 100, (4, 6)), (6, 2, 5, 1), []
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    for parts in ([slice(0, 4)], [slice(i, i + 1) for i in range(4)]):
        encoder.zero_grad()
        for rows in parts:
            longest = max(lengths[rows])
            encoder.token_states(ids[rows, :longest], mask[rows, :longest]).square().cumsum(dim=-1).sum().backward()
        found.append([parameter.grad.clone() for parameter in encoder.parameters()])
    for together, one_by_one in zip(*found, strict=True):
        torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)
