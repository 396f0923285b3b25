"""Chosen modules as Bayesian ones, points besides them, and weights from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import (
    IVON,
    SLANG,
    VOGN,
    Classification,
    FullGaussian,
    NoisyEKFAC,
    NoisyKFAC,
    Partial,
    PointEstimate,
    Prior,
    Regression,
    Vadam,
    Variational,
    last_layer,
    start_from,
)
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.bayes.prediction import predict
from natgrad_apps.errors import ConfigError, NonFiniteWarning


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def data(rows: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(3))
    return x, x.sin().sum(1)


def vi_of(model: Any, method: Method | None = None, **further: Any) -> Variational:
    return Variational(model, method=method or NoisyKFAC(lr=0.05), task=Regression(20.0), num_data=12, **further)


@pytest.mark.parametrize("method", [NoisyKFAC(), NoisyEKFAC(), Vadam(), VOGN(), SLANG(rank=2), IVON(), FullGaussian()])
def test_only_chosen_weights_are_in_the_posterior_and_frozen_ones_stay(method: Method) -> None:
    model = network()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    vi = vi_of(Partial(model, ["2"]), method)
    for _ in range(3):
        vi.step(*data())
    after = model.state_dict()
    assert set(vi.posterior.mean) == set(vi.posterior.sample()) == {"2.weight", "2.bias"}
    assert all(torch.equal(before[n], after[n]) for n in ("0.weight", "0.bias"))
    assert not torch.equal(before["2.weight"], after["2.weight"])
    first, second = predict(vi, data()[0], 2).samples  # epistemic uncertainty comes from the last layer alone
    assert not torch.equal(first, second)


def test_the_last_layer_alone_is_linear_regression_on_the_features(float64: None) -> None:
    # With frozen features the model is linear in its Bayesian weights, so the full posterior is known:
    # precision p I + b Phi^T Phi, mean b Sigma Phi^T y. Newton steps reach it; what is left is rounding.
    model = network()
    x, y = data()
    # A step is taken at a sample, whose noise cancels in an antithetic pair because the gradient is linear.
    vi = vi_of(Partial(model, ["2"]), FullGaussian(lr=1.0, decay=0.0), prior=Prior(2.0), num_samples=2)
    for _ in range(3):
        vi.step(x, y)
    with torch.no_grad():
        phi = torch.cat([model[1](model[0](x)), torch.ones(12, 1)], 1)
    covariance = torch.linalg.inv(2.0 * torch.eye(5) + 20.0 * phi.mT @ phi)
    found = torch.cat([vi.posterior.mean["2.weight"].flatten(), vi.posterior.mean["2.bias"]])
    torch.testing.assert_close(vi.posterior.parts["weights"].normal.multiply_covariance(torch.eye(5)), covariance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, covariance @ phi.mT @ y * 20.0, rtol=1e-9, atol=1e-12)


def test_points_descend_the_expected_loss_and_their_penalty(float64: None) -> None:
    # Adam's first step is lr * sign(gradient) (up to its eps), here against the gradient taken by hand at the same sample.
    model, twin = network(), network()
    start_from(twin, model.state_dict())
    x, y = data()
    partial = Partial(model, ["2"], PointEstimate(lr=1e-3, precision=5.0))
    vi = vi_of(partial, temperature=0.5)
    sample = vi.posterior.sample(torch.Generator().manual_seed(0))  # the first draw of a Variational with seed 0
    start_from(twin, {**twin.state_dict(), **sample})
    (10.0 * (twin(x)[:, 0] - y).square().mean()).backward()
    vi.step(x, y)
    for name in ("0.weight", "0.bias"):
        before, g = twin.state_dict()[name], twin.get_parameter(name).grad
        assert g is not None
        # rtol: Adam divides by |g| + 1e-8.
        torch.testing.assert_close(model.state_dict()[name], before - 1e-3 * (g + 5.0 * 0.5 / 12 * before).sign(), rtol=1e-5, atol=1e-8)
        assert not model.get_parameter(name).requires_grad


def test_trained_points_fit_better_than_frozen_ones() -> None:
    x, y = data()
    errors = []
    for others in (None, PointEstimate(lr=0.02)):
        torch.manual_seed(1)
        vi = vi_of(Partial(network(), ["2"], others), NoisyKFAC(lr=0.1))
        for _ in range(150):
            vi.step(x, y)
        errors.append(float((vi.model(x).detach()[:, 0] - y).square().mean()))
    assert errors[1] < 0.5 * errors[0]  # twelve rows in four random features, against features that move


@pytest.mark.parametrize("others", [None, PointEstimate()])
def test_a_resumed_run_is_the_same_bit_by_bit(others: PointEstimate | None) -> None:
    x, y = data()
    one = vi_of(Partial(network(), ["2"], others))
    for _ in range(3):
        one.step(x, y)
    saved = one.state_dict()
    two = vi_of(Partial(network(), ["2"], others))
    two.load_state_dict(saved)
    for vi in (one, two):
        for _ in range(3):
            vi.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True))
    with pytest.raises(ConfigError, match="same Partial"):
        vi_of(network()).load_state_dict(saved)
    with pytest.raises(ConfigError, match="another choice"):
        vi_of(Partial(network(), ["2"], PointEstimate() if others is None else None)).load_state_dict(saved)


def test_points_follow_the_schedule_and_leave_running_statistics_alone() -> None:
    first, norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
    model = nn.Sequential(first, norm, nn.Linear(4, 1))
    vi = vi_of(Partial(model, ["2"], PointEstimate(lr=0.01)))
    vi.step(*data())
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 1  # the second forward pass is not counted
    before = first.weight.clone()
    vi.set_lr(0.0)
    vi.step(*data())
    assert torch.equal(before, first.weight)


def test_a_gradient_of_a_point_that_is_not_finite_skips_the_whole_step() -> None:
    # The square root of 0 has an infinite derivative, but only the first layer feels it.
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.detach()).abs().sqrt() + 1

    model = nn.Sequential(nn.Linear(3, 4), Root(), nn.Linear(4, 1))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    vi = vi_of(Partial(model, ["2"], PointEstimate()))
    with pytest.warns(NonFiniteWarning, match="outside the posterior"):
        assert vi.step(*data()).skipped
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_weight_that_a_chosen_module_shares_is_bayesian() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert set(Partial(model, ["2"]).chosen()) == {"0.weight", "2.bias"}


def test_names_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown module or parameter of the model '4'"):
        Partial(network(), ["4"])
    with pytest.raises(ConfigError, match="must be a list"):
        Partial(network(), "2")
    with pytest.raises(ConfigError, match="no trainable weight"):
        Partial(network(), ["1"])
    assert last_layer(network()) == "2"
    with pytest.raises(ConfigError, match="no last layer"):
        last_layer(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="lr must be"):
        PointEstimate(lr=0.0)


def test_pretrained_weights_are_checked_and_become_the_mean() -> None:
    source, model = network(), network()
    start_from(model, source.state_dict())
    vi = Variational(model, method=VOGN(), task=Classification(), num_data=5)
    assert all(torch.equal(vi.posterior.mean[n], p) for n, p in source.state_dict().items())
    good = source.state_dict()
    bad = {"0.weight": torch.zeros(4, 2), "0.bias": torch.full((4,), torch.nan), "2.weight": good["2.weight"], "extra": torch.zeros(1)}
    with pytest.raises(ConfigError) as raised:
        start_from(model, bad)
    for text in ("2.bias is missing", "extra is not in the model", "0.weight is [4, 2], the model has [4, 3]", "0.bias has values"):
        assert text in str(raised.value)
    assert all(torch.equal(p, good[n]) for n, p in model.state_dict().items())
    with pytest.raises(ConfigError, match="state_dict"):
        start_from(model, {"0.weight": 3})  # type: ignore[dict-item]
