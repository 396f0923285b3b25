"""The bridge to Pyro: densities, KL divergences, and the ELBO of a fitted network by Pyro's own estimators."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from natgrad_apps.bayes import Classification, NoisyKFAC, Prior, Regression, Variational
from natgrad_apps.bayes.distributions import DenseNormal
from natgrad_apps.bayes.pyro_bridge import MatrixNormal, PrecisionLowRankNormal, StructuredNormal, pyro_guide, pyro_model
from natgrad_apps.errors import ConfigError, ShapeError

pytestmark = pytest.mark.usefixtures("float64")
Pair = tuple[StructuredNormal, MultivariateNormal]


def tril(size: int) -> Tensor:
    root = torch.randn(size, size + 2)
    factor: Tensor = torch.linalg.cholesky(root @ root.mT / size)
    return factor


def matrix_normal() -> Pair:
    loc, left, right = torch.randn(3, 2), tril(3), tril(2)
    precision = torch.kron(left @ left.mT, right @ right.mT) / 0.7
    return MatrixNormal(loc, left, right, 0.7), MultivariateNormal(loc.flatten(), precision_matrix=precision)


def low_rank_normal() -> Pair:
    loc, factor, diagonal = torch.randn(6), torch.randn(6, 2), torch.rand(6) + 0.2
    return PrecisionLowRankNormal(loc, factor, diagonal), MultivariateNormal(
        loc, precision_matrix=factor @ factor.mT + torch.diag(diagonal)
    )


def dense_normal() -> Pair:
    loc, factor = torch.randn(6), tril(6)
    return StructuredNormal(loc, DenseNormal(factor)), MultivariateNormal(loc, precision_matrix=factor @ factor.mT)


CASES = [matrix_normal, low_rank_normal, dense_normal]


@pytest.mark.parametrize("case", CASES)
def test_density_moments_and_entropy(case: Callable[[], Pair]) -> None:
    ours, dense = case()
    value = torch.randn(5, *ours.event_shape)
    # the oracle inverts 6 x 6 matrices with condition numbers below 1e4
    torch.testing.assert_close(ours.log_prob(value), dense.log_prob(value.reshape(5, -1)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.variance.flatten(), dense.variance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.entropy(), dense.entropy(), rtol=1e-9, atol=1e-9)
    draws = ours.rsample((20_000,)).flatten(1)
    error = (dense.variance / 20_000).sqrt()
    assert float(((draws.mean(0) - dense.mean) / error).abs().max()) < 5  # standard errors


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in CASES for b in CASES if (a is matrix_normal) == (b is matrix_normal)])
def test_kl_between_structured_normals(first: Callable[[], Pair], second: Callable[[], Pair]) -> None:
    (q, dense_q), (p, dense_p) = first(), second()
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(dense_q, dense_p), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_kl_to_independent_elements(case: Callable[[], Pair]) -> None:
    q, dense_q = case()
    loc, scale = torch.randn(q.event_shape), torch.rand(q.event_shape) + 0.3
    p: Distribution = Independent(Normal(loc, scale), len(q.event_shape))
    dense_p = MultivariateNormal(loc.flatten(), torch.diag(scale.flatten().square()))
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(dense_q, dense_p), rtol=1e-9, atol=1e-9)


def fitted(*, classes: bool = False) -> tuple[Variational, Tensor, Tensor]:
    x = torch.randn(30, 3)
    y = torch.randint(3, (30,)) if classes else torch.randn(30, 1)
    model = nn.Linear(3, 3 if classes else 1)
    task = Classification() if classes else Regression(4.0)
    vi = Variational(model, method=NoisyKFAC(lr=0.2, momentum=0.0, inverse_period=2), task=task, num_data=30, prior=Prior(1.5))
    for _ in range(40):
        vi.step(x, y)
    return vi, x, y


@pytest.mark.parametrize("elbo", [pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO])
@pytest.mark.parametrize("part", [30, 10], ids=["all data", "a third of the data twice"])
def test_the_elbo_of_pyro_is_ours(elbo: Any, part: int) -> None:
    """Linear regression, where ``E_q`` of the squared error is known: ``b/2 (|y - X mu|^2 + tr(X Sigma X^T)) + n/2 log(2 pi / b)``."""
    vi, x, y = fitted()
    x, y = x[:part], y[:part]
    rows = torch.cat([x, torch.ones(part, 1)], 1)
    mean = torch.cat([vi.posterior.mean["weight"].flatten(), vi.posterior.mean["bias"]])
    (gaussian,) = vi.posterior.parts.values()
    covariance = gaussian.normal.multiply_covariance(torch.eye(4).reshape(4, 1, 4)).flatten(1)
    squares = (y.squeeze(1) - rows @ mean).square().sum() + ((rows @ covariance) * rows).sum()
    expected = 30 / part * (2.0 * squares + part / 2 * torch.log(torch.tensor(2 * torch.pi / 4.0))) + vi.posterior.kl(vi.prior)
    pyro.set_rng_seed(0)
    losses = torch.tensor([elbo().loss(pyro_model(vi), pyro_guide(vi), x, y) for _ in range(200)])
    error = losses.std() / len(losses) ** 0.5
    # 4 standard errors of 200 estimates
    assert float((losses.mean() - expected).abs()) < 4 * float(error)
    assert float(error) < 0.5


# Pyro itself reads a loss that requires gradients as a number.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_the_means_can_be_trained_on() -> None:
    vi, x, y = fitted(classes=True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    infer: Any = pyro.infer
    optim: Any = pyro.optim
    svi = infer.SVI(pyro_model(vi), pyro_guide(vi, trainable=True), optim.Adam({"lr": 0.01}), infer.TraceMeanField_ELBO())
    for _ in range(5):
        assert svi.step(x, y) > 0
    trained = pyro.param("w.Linear.loc")
    (part,) = vi.posterior.parts.values()
    before = part.gather(vi.posterior.mean)
    assert not torch.equal(trained, before)
    assert float((trained - before).abs().max()) < 0.1
    pyro.clear_param_store()


def test_illegal_arguments() -> None:
    with pytest.raises(ShapeError, match=r"loc has the shape \(3,\), the distribution \(4,\)"):
        PrecisionLowRankNormal(torch.zeros(3), torch.zeros(4, 1), torch.ones(4))
    with pytest.raises(ConfigError, match=r"no batch dimensions, cannot expand to \(2,\)"):
        dense_normal()[0].expand((2,))


def test_the_application_does_not_import_pyro() -> None:
    code = "import sys, natgrad_apps.bayes; assert not any(name.split('.')[0] == 'pyro' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
