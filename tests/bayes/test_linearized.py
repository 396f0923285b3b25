"""Linearized predictions against the dense Jacobian and the dense covariance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from natgrad_apps.bayes import (
    SLANG,
    VOGN,
    Classification,
    FullGaussian,
    NoisyAdam,
    NoisyEKFAC,
    NoisyKFAC,
    Partial,
    Prior,
    Regression,
    Variational,
    linearized,
)
from natgrad_apps.bayes.linearized import Linearized, linearize, sample_linearized
from natgrad_apps.bayes.metrics import crps, gaussian_log_density
from natgrad_apps.bayes.prediction import ClassificationPrediction, LinearizedRegression, RegressionPrediction, predict
from natgrad_apps.errors import ConfigError, ShapeError
from tests.bayes._dense import precision_matrix

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore:.*have no layer adapter")]
METHODS = [NoisyKFAC(), NoisyEKFAC(), NoisyAdam(), VOGN(), SLANG(rank=2), FullGaussian()]


def image() -> nn.Sequential:
    """A convolution, a normalization layer, dropout that must be off, and three classes; inputs ``[N, 2, 4, 4]``."""
    convolutions = nn.Sequential(nn.Conv2d(2, 2, 2, stride=2), nn.Tanh(), nn.GroupNorm(1, 2), nn.Dropout(0.5), nn.Flatten())
    return nn.Sequential(convolutions, nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))


def trained(method: Any) -> Variational:
    model = image()
    model[0][3].p = 0.0  # type: ignore[index]
    vi = Variational(model, method=method, task=Classification(), num_data=30, prior=Prior(2.0))
    for _ in range(3):
        vi.step(torch.randn(6, 2, 4, 4), torch.randint(3, (6,)))
    return vi


def dense(vi: Variational, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``[N, C]`` and ``J Sigma J^T: [N C, N C]`` of all inputs at once, from matrices over all weights."""
    names = [name for part in vi.posterior.parts.values() for name in part.parameters]
    values = {name: vi.posterior.mean[name] for name in names}
    vi.model.eval()
    jacobian = jacrev(lambda v: functional_call(vi.model, v, (x,)))(values)
    outputs = vi.model(x).detach()
    vi.model.train()
    total = outputs.new_zeros(outputs.numel(), outputs.numel())
    for part in vi.posterior.parts.values():
        covariance = torch.linalg.inv(precision_matrix(part.normal))
        rows = [jacobian[name].reshape(outputs.numel(), *values[name].shape) for name in part.parameters]
        packed = torch.stack([part.pack([r[i] for r in rows]).flatten() for i in range(outputs.numel())])
        total += packed @ covariance @ packed.mT
    return outputs, total


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [1, 2**26])
def test_closed_form_is_the_dense_one(method: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearized, "CHUNK", chunk)  # one input at a time, and all of them
    vi = trained(method)
    x = torch.randn(5, 2, 4, 4)
    outputs, covariance = dense(vi, x)
    found = linearize(vi, x, batch_size=3)
    blocks = torch.stack([covariance[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] for n in range(5)])
    torch.testing.assert_close(found.mean, outputs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.covariance, blocks, rtol=1e-8, atol=1e-12)  # inverses of matrices with a condition below 1e4
    assert vi.model.training


def test_draws_have_the_covariance_of_all_inputs_together() -> None:
    vi = trained(NoisyKFAC())
    x = torch.randn(2, 2, 4, 4)
    outputs, covariance = dense(vi, x)
    count = 400
    drawn = sample_linearized(vi, x, count, torch.Generator().manual_seed(0), batch_size=1).reshape(count, 6) - outputs.flatten()
    # Isserlis: Var(f_i f_j) = S_ii S_jj + S_ij^2; 21 numbers within 4.5 standard errors (chance of a failure 1e-4).
    variances = covariance.diagonal()
    error = ((variances[:, None] * variances + covariance.square()) / count).sqrt()
    assert float(((drawn.mT @ drawn / count - covariance) / error).abs().max()) < 4.5


def test_regression_is_gaussian_in_closed_form() -> None:
    # A model that is linear in its weights is its own linearization, so the closed form is what samples converge to.
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    vi = Variational(Partial(model, ["2"]), method=FullGaussian(), task=Regression(4.0), num_data=20)
    x, y = torch.randn(20, 3), torch.randn(20)
    for _ in range(5):
        vi.step(x, y)
    found = predict(vi, x, 3, kind="linearized")
    assert isinstance(found, LinearizedRegression)
    outputs, covariance = dense(vi, x)
    torch.testing.assert_close(found.mean, outputs[:, 0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.epistemic, covariance.diagonal(), rtol=1e-8, atol=1e-12)
    normal = torch.distributions.Normal(outputs[:, 0], (covariance.diagonal() + 0.25).sqrt())
    means, deviations = found.mixture
    torch.testing.assert_close(gaussian_log_density(means, deviations, y)[0], normal.log_prob(y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.quantile(0.9), normal.icdf(torch.tensor(0.9)), rtol=1e-7, atol=1e-7)
    # CRPS of a normal, Gneiting & Raftery 2007, equation 21
    z = (y - normal.mean) / normal.stddev
    phi = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    expected = normal.stddev * (z * (2 * torch.special.ndtr(z) - 1) + 2 * phi - 1 / math.sqrt(math.pi))
    assert crps(means, deviations, y) == pytest.approx(float(expected.mean()), rel=1e-7)
    scaled = found.rescaled(5.0, 2.0)
    torch.testing.assert_close(scaled.mean, found.mean * 2 + 5)
    torch.testing.assert_close(scaled.std, found.std * 2)
    # 1000 draws: the standard error of a variance is sqrt(2 / 1000) = 4.5 % of it; 20 numbers within 4.5 of them
    sampled = predict(vi, x, 1000, torch.Generator().manual_seed(0))
    assert isinstance(sampled, RegressionPrediction)
    torch.testing.assert_close(sampled.epistemic, found.epistemic, rtol=0.2, atol=0)


def test_classes_come_from_draws_of_the_logits() -> None:
    vi = trained(NoisyEKFAC())
    x = torch.randn(4, 2, 4, 4)
    found = predict(vi, x, 7, torch.Generator().manual_seed(2), kind="linearized")
    assert isinstance(found, ClassificationPrediction)
    torch.testing.assert_close(found.samples, sample_linearized(vi, x, 7, torch.Generator().manual_seed(2)).softmax(-1))
    with pytest.raises(ConfigError, match="unknown kind of prediction 'linearised'"):
        predict(vi, x, kind="linearised")  # type: ignore[arg-type]


def test_probit_is_near_the_integral_and_exact_without_uncertainty() -> None:
    f, v = torch.linspace(-4, 4, 9)[:, None], torch.tensor([0.0, 0.5, 2.0, 8.0])
    mean, variance = f.expand(9, 4).reshape(-1, 1), v.expand(9, 4).reshape(-1, 1)
    grid = torch.linspace(-8, 8, 4001)
    weight = torch.exp(-grid.square() / 2)
    exact = (torch.sigmoid(mean + variance.sqrt() * grid) * weight).sum(1) / weight.sum()
    found = Linearized(mean, variance[:, :, None]).probit()
    torch.testing.assert_close(found.sum(1), torch.ones(36))
    assert float((found[:, 1] - exact).abs().max()) < 0.02  # the error of MacKay's approximation, largest near |f| = 2 standard deviations
    logits = torch.randn(3, 5)
    torch.testing.assert_close(Linearized(logits, torch.zeros(3, 5, 5)).probit(), logits.softmax(-1))


def test_recurrent_layers_are_linearized_too() -> None:
    class Last(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            out: Tensor = super().forward(x)[0][:, -1]
            return out

    vi = Variational(nn.Sequential(Last(2, 2, batch_first=True)), method=NoisyAdam(), task=Classification(), num_data=5)
    x = torch.randn(2, 3, 2)
    outputs, covariance = dense(vi, x)
    found = linearize(vi, x)
    torch.testing.assert_close(found.mean, outputs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.covariance[1], covariance[2:, 2:], rtol=1e-8, atol=1e-12)
    assert sample_linearized(vi, x, 3).shape == (3, 2, 2)


def test_information_gain_is_the_divergence_of_the_updated_posterior() -> None:
    # Two outputs, every weight: the conjugate update in matrices over all weights, and torch's divergence of two dense normals.
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    vi = Variational(model, method=FullGaussian(), task=Regression(25.0), num_data=20)
    x, y = torch.randn(6, 2), torch.randn(6, 2)
    for _ in range(3):
        vi.step(x, y)
    (part,) = vi.posterior.parts.values()
    covariance = torch.linalg.inv(precision_matrix(part.normal))
    values = dict(vi.posterior.mean)
    jacobian = jacrev(lambda v: functional_call(model, v, (x,)))(values)
    rows = torch.cat([jacobian[name].flatten(2) for name in part.parameters], -1)
    expected = []
    for j, target, mean in zip(rows, y, model(x).detach(), strict=True):
        after = torch.linalg.inv(torch.linalg.inv(covariance) + 25.0 * j.mT @ j)
        shift = 25.0 * after @ j.mT @ (target - mean)
        normals = [torch.distributions.MultivariateNormal(m, c) for m, c in ((shift, after), (torch.zeros_like(shift), covariance))]
        expected.append(torch.distributions.kl_divergence(*normals))
    closed = linearize(vi, x)
    noise = torch.tensor(0.2)
    # rtol: differences of log-determinants of 17 x 17 matrices
    torch.testing.assert_close(closed.information_gain(y, noise), torch.stack(expected), rtol=1e-7, atol=1e-9)
    # In the mean over targets of the predictive distribution it is the mutual information.
    total = closed.covariance + 0.04 * torch.eye(2)
    drawn = torch.distributions.MultivariateNormal(closed.mean, total).sample(torch.Size([4000]))
    gains = torch.stack([closed.information_gain(t, noise) for t in drawn])
    torch.testing.assert_close(closed.mutual_information(noise), torch.logdet(total / 0.04) / 2, rtol=1e-10, atol=1e-12)
    error = gains.std(0) / 4000**0.5
    assert bool(((gains.mean(0) - closed.mutual_information(noise)).abs() < 4.5 * error).all())
    with pytest.raises(ShapeError, match="targets have the shape"):
        closed.information_gain(y[:, 0], noise)
