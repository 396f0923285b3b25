"""VON and IVON: diagonals of Hessians, from probes and from the noise of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natgrad_apps.bayes import IVON, VON, Prior, Regression, Variational
from natgrad_apps.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")
N = 40


def test_probes_give_the_diagonal_of_the_hessian() -> None:
    """A network without noise (``lambda -> 0``), so that the dense Hessian is known; the mean over 4000 probes within 5 standard errors."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    x, y = torch.randn(N, 2), torch.randn(N, 1)
    method = VON(lr=0.0, decay=0.0, probes=4000)
    vi = Variational(model, method=method, task=Regression(2.0), num_data=N, prior=Prior(1.0), temperature=1e-30)
    vi.step(x, y)
    names = [n for n, _ in model.named_parameters()]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        result: torch.Tensor = (y - outputs).square().mean()  # precision / 2 = 1
        return result

    rows = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in model.parameters()))
    sizes = [p.numel() for p in model.parameters()]
    blocks = [[h.reshape(n, m) for h, m in zip(row, sizes, strict=True)] for row, n in zip(rows, sizes, strict=True)]
    hessian = torch.cat([torch.cat(row, 1) for row in blocks])
    found = vi._learner.averages()["hessian"]  # type: ignore[attr-defined]
    # Var(z_i (H z)_i) = sum_{j != i} H_ij^2
    error = ((hessian.square().sum(1) - hessian.diagonal().square()) / 4000).sqrt()
    assert float(((found - hessian.diagonal()).abs() / error).max()) < 5
    assert float(hessian.diagonal().min()) < float(hessian.diagonal().max()) / 10, "entries must differ for the test to mean something"


def test_von_has_the_mean_field_optimum_of_linear_regression() -> None:
    """One weight: the Hessian is a number and every probe gives it, so ``1/Sigma = b x^T x + p`` and the mean is the posterior's."""
    x, y = torch.randn(N, 1), torch.randn(N, 1)
    model = nn.Linear(1, 1, bias=False)
    vi = Variational(model, method=VON(lr=0.5, decay=0.5), task=Regression(4.0), num_data=N, prior=Prior(1.5), num_samples=2)
    for _ in range(50):
        vi.step(x, y)
    precision = 4.0 * x.square().sum() + 1.5
    # 2^-50
    torch.testing.assert_close(1 / vi.posterior.variances()["weight"].squeeze(), precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(model.weight.detach().squeeze(), 4.0 * (x * y).sum() / precision, rtol=1e-10, atol=0)


def test_ivon_has_the_diagonal_from_the_noise() -> None:
    """Linear regression: ``E[g e] / Sigma`` is the diagonal of the Hessian. 4000 antithetic samples, and one full update."""
    x, y = torch.randn(N, 3) * torch.tensor([1.0, 2.0, 0.5]), torch.randn(N, 1)
    model = nn.Linear(3, 1, bias=False)
    method = IVON(lr=0.0, betas=(0.0, 0.0), initial_curvature=2.0)
    vi = Variational(model, method=method, task=Regression(4.0), num_data=N, prior=Prior(1.5), num_samples=4000)
    vi.step(x, y)
    hessian = 4.0 * x.mT @ x / N
    gamma, h, h0 = 1.5 / N, hessian.diagonal(), 2.0
    # Pairs cancel the odd terms exactly; what is left is e_i (H e)_i / sigma: variance 2 H_ii^2 + sum_{j != i} H_ij^2 of 2000 pairs.
    error = ((h.square() + hessian.square().sum(1)) / 2000).sqrt()
    found = vi._learner.averages()["hessian"]  # type: ignore[attr-defined]
    # The update with b2 = 0 is h0 + a + a^2 / (2 c), a = estimate - h0, c = h0 + gamma; solved for a > -c, that is a positive estimate.
    c = h0 + gamma
    a = c * ((1 + 2 * (found - h0) / c).sqrt() - 1)
    assert float(((a + h0 - h).abs() / error).max()) < 5


def test_ivon_stays_positive() -> None:
    """Estimates of both signs, far larger than ``h``: the correction keeps ``h + gamma`` above zero."""
    model = nn.Linear(3, 1)
    vi = Variational(model, method=IVON(lr=0.0, betas=(0.9, 0.5), initial_curvature=1e-3), task=Regression(), num_data=N)
    for _ in range(200):
        vi.step(torch.randn(4, 3), 10 * torch.randn(4, 1))
    assert min(float(v.min()) for v in vi.posterior.variances().values()) > 0
    assert all(bool(v.isfinite().all()) for v in vi.posterior.variances().values())


def test_illegal_values() -> None:
    with pytest.raises(ConfigError, match="probes must be an integer >= 1, got 0"):
        VON(probes=0)
    with pytest.raises(ConfigError, match=r"clip must be > 0 .* got 0"):
        IVON(clip=0)
