"""The Jacobian's norm: its estimate against the exact one, and the loss that holds it down."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlas.compress.jacobian import JacobianLoss, squared_norms


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def exact(function, x):
    """Mean over the rows of the squared Frobenius norm, by autograd's own Jacobian."""
    jacobian = torch.autograd.functional.jacobian
    return float(torch.stack([jacobian(function, row[None]).square().sum() for row in x]).mean())


def test_the_mean_of_many_estimates_is_the_norm():
    """4,000 directions on a network of three layers: within 3 %; for the input and for a layer's input at once."""
    net = network()
    x = torch.randn(1, 6, dtype=torch.float64)
    many = x.repeat(4000, 1).requires_grad_()
    hidden = net[:2](many)
    for estimate, norm in zip(
        squared_norms(net[2:](hidden), [many, hidden]),
        [exact(net, x), exact(net[2:], net[:2](x).detach())],
        strict=True,
    ):
        assert float(estimate.detach()) == pytest.approx(norm, rel=0.03)


def test_the_batch_is_averaged():
    net = network()
    x = torch.randn(4, 6, dtype=torch.float64)
    many = x.repeat(1500, 1).requires_grad_()
    (estimate,) = squared_norms(net(many), [many])
    assert float(estimate.detach()) == pytest.approx(exact(net, x), rel=0.05)


def test_what_the_scores_do_not_depend_on_has_no_slope():
    net = network()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    apart = torch.tanh(x)  # of another output
    slope, none = squared_norms(net(x), [x, apart])
    assert float(slope.detach()) > 0
    assert float(none.detach()) == 0


def test_the_loss_is_cross_entropy_plus_half_the_weighted_norms():
    torch.manual_seed(1)
    net = network()
    x = torch.randn(64, 6, dtype=torch.float64, requires_grad=True)
    hidden = net[:2](x)
    scores = net[2:](hidden)
    labels = torch.arange(64) % 4
    plain = nn.functional.cross_entropy(scores.float(), labels)
    kept = {"z": scores, "h": hidden}
    torch.manual_seed(5)
    norms = squared_norms(scores.float(), [x, hidden])
    loss = JacobianLoss(0.3, 0.02, kept, scores="z", layers=("h",), strength=0.5)
    torch.manual_seed(5)
    found = loss(torch.zeros(64, 4), labels, x)
    torch.testing.assert_close(
        found.double(), (plain + 0.25 * (0.3 * norms[0] + 0.02 * norms[1])).double(), rtol=1e-5, atol=1e-6
    )
    loss.strength = 0
    assert float(loss(scores, labels, x).detach()) == pytest.approx(float(plain.detach()))


def test_descending_it_lowers_the_norm():
    x = torch.randn(128, 6)
    labels = (x[:, 0] > 0).long()
    after = []
    for weight in (0.0, 1.0):
        net = network().float()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        for _ in range(60):
            inputs = x.clone().requires_grad_()
            value = JacobianLoss(weight)(net(inputs), labels, inputs)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        after.append(exact(net, x[:20]))
    assert 0 < after[1] < 0.5 * after[0]
