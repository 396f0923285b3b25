"""Temperature scaling and conformal sets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.calibration import calibrate, conformal_sets, fit_temperature


def test_temperature_is_the_minimum_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 4, generator=generator)
    y = (logits / 2.5 + -torch.log(-torch.log(torch.rand(200, 4, generator=generator)))).argmax(-1)  # drawn at T = 2.5 (Gumbel)
    T = fit_temperature(logits, y)

    def loss(t: float) -> float:
        return float(nn.functional.cross_entropy(logits.double() / t, y))

    assert loss(T) <= min(loss(T * 1.01), loss(T / 1.01))
    assert 1.8 < T < 3.5
    with pytest.raises(ConfigError, match="validation nodes"):
        fit_temperature(logits[:0], y[:0])


def test_conformal_sets_cover_as_promised() -> None:
    """Exchangeable draws: the coverage over 400 repetitions with n = 99 is Binomial around ceil(100 * 0.9) / 100 = 0.90."""
    generator = torch.Generator().manual_seed(0)
    hits = []
    for _ in range(400):
        p = torch.randn(100, 5, generator=generator).mul(2).softmax(-1)
        y = torch.multinomial(p, 1, generator=generator).squeeze(1)
        sets = conformal_sets(p[:99], y[:99], p[99:], 0.1)
        hits.append(bool(sets[0, y[99]]))
    # standard deviation sqrt(0.9 * 0.1 / 400) = 0.015; three of them
    assert abs(sum(hits) / 400 - 0.9) < 0.045
    assert conformal_sets(p[:5], y[:5], p[99:], 0.1).all(), "five nodes cannot promise 90 %"
    hand = conformal_sets(
        torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 0, 0]), torch.tensor([[0.5, 0.5], [0.7, 0.3]]), 0.5
    )
    # scores 0.1, 0.4, 0.8; rank ceil(4 * 0.5) = 2: classes with p >= 0.6
    assert hand.tolist() == [[False, False], [True, False]]


def test_sets_use_one_half_of_the_validation_nodes_and_their_temperature_the_other() -> None:
    generator = torch.Generator().manual_seed(3)
    z, y = torch.randn(60, 4, generator=generator), torch.randint(4, (60,), generator=generator)
    val = torch.arange(10, 50)
    found = calibrate(z, y, val, 0.2)
    T = fit_temperature(z[val], y[val])
    assert found.temperature == T
    torch.testing.assert_close(found.log_p, (z.double() / T).log_softmax(-1), rtol=0, atol=1e-14)
    first, second = val[::2], val[1::2]
    p = (z.double() / fit_temperature(z[first], y[first])).softmax(-1)
    assert torch.equal(found.sets, conformal_sets(p[second], y[second], p, 0.2))
    assert found.selection_nll == pytest.approx(float(nn.functional.nll_loss(p[first].log(), y[first])), abs=1e-12)
    other = y.clone()
    other[second] = (other[second] + 1) % 4
    again = calibrate(z, other, val, 0.2)
    assert again.selection_nll == found.selection_nll, "the half that sets the threshold has no say in choices"
    assert not torch.equal(again.sets, found.sets)


def test_one_validation_node_is_too_few() -> None:
    with pytest.raises(ConfigError, match="at least two validation nodes, got 1"):
        calibrate(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), torch.tensor([1]), 0.1)
