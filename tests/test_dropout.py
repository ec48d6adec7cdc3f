import pytest
import torch

from common.dropout import Dropout, dropout


def test_the_share_is_dropped_and_the_mean_stays():
    values = dropout(torch.ones(1000, 1000), 0.1)
    assert (values == 0).float().mean() == pytest.approx(0.1, abs=0.002)
    assert values.mean() == pytest.approx(1, abs=0.003)
    assert values.unique().tolist() == pytest.approx([0, 1 / 0.9], abs=1e-4)


def test_each_value_is_drawn_by_itself():
    dropped = torch.stack([dropout(torch.ones(10), 0.5) == 0 for _ in range(4000)]).float()  # (draws, values)
    together = torch.corrcoef(dropped.T) - torch.eye(10)
    assert together.abs().max() < 0.1
    assert (dropped.mean(dim=0) - 0.5).abs().max() < 0.05


def test_torchs_random_state_decides():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append([dropout(torch.ones(3, 7), 0.5), dropout(torch.ones(3, 7), 0.5)])
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0][0], drawn[2][0])


def test_the_gradient_goes_where_values_were_kept():
    values = torch.randn(50, 3, requires_grad=True)
    found = dropout(values, 0.3)
    found.sum().backward()
    torch.testing.assert_close(values.grad * values, found)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_or_everything_is_dropped(share, expected):
    assert torch.equal(dropout(torch.ones(5), share), torch.full((5,), expected))


def test_nothing_is_dropped_from_nothing():
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)


def test_half_precision_stays_half_precision():
    assert dropout(torch.ones(5, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16


def test_the_module_drops_in_training_alone():
    values, module = torch.ones(100), Dropout(0.5)
    assert not torch.equal(module(values), values)
    assert torch.equal(module.eval()(values), values)
