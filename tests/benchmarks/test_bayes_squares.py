"""The squares of gradients that are compared with the curvature of the ELBO: each against autograd, the latter against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._mean_field import NOISE_STD
from benchmarks.bayes_mean_field import BATCH
from benchmarks.bayes_squares import EXACT, Gaussian, curvatures, outputs, slopes

pytestmark = pytest.mark.usefixtures("float64")


def _problem(width: int) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(12, 2), torch.ones(12, 1)], 1)
    return (torch.randn(width, 3), torch.randn(1, width + 1)), x, torch.randn(12)


def test_slopes_are_those_of_autograd() -> None:
    weights, x, y = _problem(4)

    def gradients(i: int) -> tuple[Tensor, ...]:
        live = [w.clone().requires_grad_() for w in weights]
        hidden = F.pad((x[i] @ live[0].mT).relu(), (0, 1), value=1.0)
        return torch.autograd.grad(0.5 * ((hidden @ live[1][0] - y[i]) / NOISE_STD).square(), live)

    each = [gradients(i) for i in range(12)]
    found = slopes(weights, x, y)
    hidden = F.pad((x @ weights[0].mT).relu(), (0, 1), value=1.0)
    residual = (hidden @ weights[1][0] - y) / NOISE_STD**2
    for layer in (0, 1):
        rows = torch.stack([g[layer] for g in each])
        # float64, sums of 12 terms
        torch.testing.assert_close(found.mean[layer], rows.mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.squares[layer], rows.square().mean(0), rtol=1e-10, atol=1e-10)
        outputs = rows / residual[:, None, None]
        torch.testing.assert_close(found.gauss_newton[layer], outputs.square().mean(0) / NOISE_STD**2, rtol=1e-9, atol=1e-9)


def test_where_every_unit_is_on_the_curvature_is_the_gauss_newton_matrix() -> None:
    """With all units switched on, ``f`` is linear in each single weight, so the Hessian's diagonal is the Gauss-Newton matrix's."""
    (first, second), x, error = _problem(3)
    first[:, :2] *= 0.1
    first[:, 2] = 1.0  # hidden units of 1 +- 0.15: none is ever switched off
    second = second.abs() + 0.5
    y = outputs((first, second), x)[1] + 0.1 * error  # small residuals: the Hessian is nearly the Gauss-Newton matrix off its diagonal too
    curvature = slopes((first, second), x, y).gauss_newton
    q = Gaussian((first, second), (1e-3 / curvature[0], 1e-3 / curvature[1]))
    found = curvatures(q, x, y, samples=1000)
    for exact, gauss_newton in zip(found[EXACT], found["noisy Adam"], strict=True):
        # A term of Stein's lemma is sum_k H_jk e_k e_j / sigma_j^2, deviating by about the root of the 13 weights in these scales.
        # Both signs have the same. 1,000 pairs: 3.6 / 32 = 0.11, four of which are allowed.
        torch.testing.assert_close(exact, gauss_newton, rtol=0.45, atol=0.0)


def test_the_square_of_a_batch_mean_has_the_closed_form() -> None:
    weights, x, y = _problem(4)
    q = Gaussian(weights, (torch.full_like(weights[0], 1e-20), torch.full_like(weights[1], 1e-20)))
    found = curvatures(q, x, y, samples=1)
    drawn = [slopes(weights, x[rows], y[rows]).mean for rows in torch.randint(12, (4000, BATCH))]
    for layer in (0, 1):
        squares = BATCH * torch.stack([g[layer] for g in drawn]).square()
        error = squares.std(0) / 4000**0.5
        # 4,000 batches; 17 entries, each within five standard errors but for one run in 100,000
        assert bool(((squares.mean(0) - found["Vadam"][layer]).abs() <= 5 * error + 1e-12).all())
        torch.testing.assert_close(found["Vadam, as published"][layer] * BATCH, found["Vadam"][layer])
