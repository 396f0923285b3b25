"""Bayesian linear regression, where every optimum is known in closed form.

With ``X: [n, d]`` (ones appended), noise precision ``b`` and prior precision ``p`` the posterior is ``N(P^-1 b X^T y, P^-1)``,
``P = b X^T X + p I``. The best normal distribution of a family with the right mean minimizes ``1/2 (tr(P Sigma) - log det Sigma)``; for
independent weights that is ``Sigma = diag(1 / P_ii)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import DataSize, FullGaussian, NoisyAdam, NoisyEKFAC, NoisyKFAC, Prior, Regression, Variational
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.bayes.tasks import RegressionTask
from tests.bayes._dense import precision_matrix

pytestmark = pytest.mark.usefixtures("float64")
B, P = 4.0, 1.5


@dataclass(frozen=True)
class Data:
    """Correlated inputs, so that families differ."""

    x: Tensor
    y: Tensor

    @property
    def rows(self) -> Tensor:
        return torch.cat([self.x, torch.ones(len(self.x), 1)], 1)

    @property
    def precision(self) -> Tensor:
        return B * self.rows.mT @ self.rows + P * torch.eye(self.rows.shape[1])

    @property
    def mean(self) -> Tensor:
        solution: Tensor = torch.linalg.solve(self.precision, B * self.rows.mT @ self.y)
        return solution


@pytest.fixture
def data() -> Data:
    x = torch.randn(60, 4) @ torch.randn(4, 4) / 2
    return Data(x, x @ torch.randn(4, 1) + 0.3 + torch.randn(60, 1) / 2)


def fit(data: Data, method: Method, steps: int) -> tuple[Variational, Tensor]:
    """Full batches; two antithetic samples, whose noise cancels in the gradient of a quadratic."""
    model = nn.Linear(4, 1)
    vi = Variational(model, method=method, task=Regression(noise_precision=B), num_data=len(data.x), prior=Prior(P), num_samples=2)
    for _ in range(steps):
        vi.step(data.x, data.y)
    return vi, torch.cat([model.weight.detach().flatten(), model.bias.detach()]).unsqueeze(1)


def precision_of(vi: Variational) -> Tensor:
    (part,) = vi.posterior.parts.values()
    return precision_matrix(part.normal)


def test_full_covariance_reaches_the_posterior(data: Data) -> None:
    vi, mean = fit(data, FullGaussian(lr=1.0, decay=0.5), 45)
    # Newton's step is exact at once, the curvature's beginning has the weight 2^-45 = 3e-14
    torch.testing.assert_close(mean, data.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(precision_of(vi), data.precision, rtol=1e-10, atol=1e-10)


def test_evidence(data: Data) -> None:
    """At the exact posterior the expected ELBO is the log-evidence; antithetic samples still leave the quadratic part to chance."""
    vi, _ = fit(data, FullGaussian(lr=1.0, decay=0.5), 40)
    infos = torch.stack([vi.step(data.x, data.y).nelbo for _ in range(60)])
    covariance = data.rows @ data.rows.mT / P + torch.eye(len(data.x)) / B
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(data.x)), covariance).log_prob(data.y.squeeze(1))
    error = infos.std() / len(infos) ** 0.5
    # 4 standard errors, measured from the 60 values themselves
    assert float((infos.mean() + evidence).abs()) < 4 * float(error)
    assert float(error) < 1


def test_independent_weights_have_the_diagonal_of_the_precision(data: Data) -> None:
    vi, mean = fit(data, NoisyAdam(lr=0.5, momentum=0.0, decay=0.5, fisher="exact"), 300)
    torch.testing.assert_close(precision_of(vi), torch.diag(data.precision.diagonal()), rtol=1e-10, atol=1e-10)
    # a fixed-point iteration whose slowest mode contracts by 1 - 0.5 lambda_min(D^-1 P) a step
    scaled = data.precision / data.precision.diagonal().sqrt().outer(data.precision.diagonal().sqrt())
    slowest = (1 - 0.5 * float(torch.linalg.eigvalsh(scaled)[0])) ** 300
    torch.testing.assert_close(mean, data.mean, rtol=0, atol=max(1e-10, 100 * slowest))
    assert slowest < 1e-4


def test_eigenbasis_is_exact_for_one_output(data: Data) -> None:
    """The Fisher is ``b A`` there, so its eigenbasis is K-FAC's and the damping is exact: the posterior itself."""
    vi, mean = fit(data, NoisyEKFAC(lr=0.3, momentum=0.0, decay=0.5, fisher="exact", inverse_period=1), 150)
    torch.testing.assert_close(mean, data.mean, rtol=1e-8, atol=1e-8)  # (1 - 0.3)^150 = 6e-24, and the rotations' rounding
    torch.testing.assert_close(precision_of(vi), data.precision, rtol=1e-8, atol=1e-8)


def test_kronecker_product_with_factored_damping(data: Data) -> None:
    """``(S + gamma/pi) (x) (A + pi gamma I)`` from the closed forms ``S = b`` and ``A = X^T X / n``; its mean is the exact one."""
    vi, mean = fit(data, NoisyKFAC(lr=0.3, momentum=0.0, decay=0.5, fisher="exact", inverse_period=1), 250)
    A = data.rows.mT @ data.rows / 60
    gamma = (P / 60) ** 0.5
    pi = (float(A.trace()) / 5 / B) ** 0.5
    expected = 60 * (B + gamma / pi) * (A + pi * gamma * torch.eye(5))
    torch.testing.assert_close(precision_of(vi), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mean, data.mean, rtol=1e-8, atol=1e-8)


def test_augmentation_counts_rows_several_times(data: Data) -> None:
    """Twice the augmentation is the posterior of the data set written twice."""
    model = nn.Linear(4, 1)
    method = FullGaussian(lr=1.0, decay=0.5)
    vi = Variational(model, method=method, task=Regression(B), num_data=DataSize(60, 2.0), prior=Prior(P), num_samples=2)
    for _ in range(45):
        vi.step(data.x, data.y)
    twice = 2 * (data.precision - P * torch.eye(5)) + P * torch.eye(5)
    torch.testing.assert_close(precision_of(vi), twice, rtol=1e-10, atol=1e-10)


def test_prior_and_noise_are_learned(data: Data) -> None:
    """At a fixed point both closed forms hold: ``1/p = E|w|^2 / n`` and ``1/b = E (y - f)^2``, with expectations taken densely here."""
    model = nn.Linear(4, 1)
    task, prior = Regression(B, learn=True, rate=0.03), Prior(P, learn=True, rate=0.5)
    method = NoisyEKFAC(lr=0.3, momentum=0.0, decay=0.5, fisher="exact", inverse_period=1)  # exact here, and cheap
    vi = Variational(model, method=method, task=task, num_data=60, prior=prior, num_samples=4)
    for _ in range(300):
        vi.step(data.x, data.y)
    covariance = precision_of(vi).inverse()
    mean = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    (precision,) = vi.prior.precision.values()
    expected_p = 5 / (mean.square().sum() + covariance.trace())
    # the precision follows the posterior with the rate 0.5; the noise moves by about 1% a step
    torch.testing.assert_close(precision, expected_p, rtol=0.02, atol=0)
    error = (data.y.squeeze(1) - data.rows @ mean).square().mean() + ((data.rows @ covariance) * data.rows).sum(1).mean()
    # an average of about 1 / 0.03 = 33 steps of 4 samples
    assert isinstance(vi.task, RegressionTask)
    torch.testing.assert_close(vi.task.noise_precision, 1 / error, rtol=0.1, atol=0)
    assert abs(float(precision) / P - 1) > 0.05, "the data must ask for another precision"
