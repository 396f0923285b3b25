"""Every family against dense matrices: roots, products, moments of draws, entropy and density."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import (
    DenseNormal,
    DiagonalNormal,
    EigenNormal,
    KroneckerNormal,
    LowRankNormal,
    Normal,
    normal_from_state,
    normal_to_state,
)
from natgrad_apps.bayes.distributions.base import log_sum
from natgrad_apps.errors import ConfigError
from tests.bayes._dense import largest_z, precision_matrix, sample_covariance

pytestmark = pytest.mark.usefixtures("float64")
DRAWS = 100_000
# 5 standard errors of the largest of at most 24^2 entries: a false alarm has a probability below 576 * 6e-7 = 4e-4, once (seeded).
BOUND = 5.0


def spd(size: int, lead: tuple[int, ...] = ()) -> Tensor:
    root = torch.randn(*lead, size, size + 2)
    return root @ root.mT / size


def block_diag(blocks: tuple[Tensor, ...]) -> Tensor:
    matrix: Tensor = torch.block_diag(*blocks)
    return matrix


def kron_per_group(left: Tensor, right: Tensor) -> Tensor:
    return block_diag(tuple(torch.kron(a, b) for a, b in zip(left, right, strict=True)))


def diagonal() -> tuple[Normal, Tensor]:
    precision = torch.rand(3, 4) + 0.2
    return DiagonalNormal(precision), torch.diag(precision.flatten())


def kronecker() -> tuple[Normal, Tensor]:
    s, a, scale = spd(3), spd(5), torch.tensor(0.3)
    normal = KroneckerNormal((torch.linalg.cholesky(s),), (torch.linalg.cholesky(a),), scale)
    return normal, torch.kron(s, a) / scale


def kronecker_blocks() -> tuple[Normal, Tensor]:
    s, a, scale = (spd(2), spd(1)), (spd(3), spd(2)), torch.tensor(2.0)
    normal = KroneckerNormal(tuple(map(torch.linalg.cholesky, s)), tuple(map(torch.linalg.cholesky, a)), scale)
    return normal, torch.kron(block_diag(s), block_diag(a)) / scale


def kronecker_groups() -> tuple[Normal, Tensor]:
    s, a, scale = spd(2, (3,)), spd(3, (3,)), torch.tensor(0.5)
    normal = KroneckerNormal((torch.linalg.cholesky(s),), (torch.linalg.cholesky(a),), scale)
    return normal, kron_per_group(s, a) / scale


def eigen() -> tuple[Normal, Tensor]:
    left, right = (torch.linalg.eigh(spd(size)).eigenvectors for size in (3, 4))
    variance = torch.rand(3, 4) + 0.1
    basis = torch.kron(left, right)
    return EigenNormal((left,), (right,), variance), basis @ torch.diag(1 / variance.flatten()) @ basis.mT


def eigen_groups() -> tuple[Normal, Tensor]:
    left, right = (torch.linalg.eigh(spd(size, (2,))).eigenvectors for size in (2, 3))
    variance = torch.rand(2, 2, 3) + 0.1
    parts = []
    for q, r, v in zip(left, right, variance, strict=True):
        basis = torch.kron(q, r)
        parts.append(basis @ torch.diag(1 / v.flatten()) @ basis.mT)
    return EigenNormal((left,), (right,), variance), block_diag(tuple(parts))


def low_rank() -> tuple[Normal, Tensor]:
    factor, diagonal_part = torch.randn(8, 3), torch.rand(8) + 0.1
    factor[:, 2] = 0  # a direction without curvature: e = 0
    return LowRankNormal(factor, diagonal_part), factor @ factor.mT + torch.diag(diagonal_part)


def dense() -> tuple[Normal, Tensor]:
    matrix = spd(6)
    return DenseNormal(torch.linalg.cholesky(matrix)), matrix


CASES = [diagonal, kronecker, kronecker_blocks, kronecker_groups, eigen, eigen_groups, low_rank, dense]
Case = Callable[[], tuple[Normal, Tensor]]


@pytest.mark.parametrize("case", CASES)
def test_covariance_of_draws(case: Case) -> None:
    normal, precision = case()
    generator = torch.Generator().manual_seed(1)
    estimate = sample_covariance(normal, DRAWS, generator)
    assert largest_z(estimate, precision.inverse(), DRAWS) < BOUND


@pytest.mark.parametrize("case", CASES)
def test_a_transposed_factor_would_be_noticed(case: Case) -> None:
    """The bound has the power to see the faults of earlier implementations: a scale that is off by 3%."""
    normal, precision = case()
    generator = torch.Generator().manual_seed(1)
    estimate = sample_covariance(normal, DRAWS, generator)
    assert largest_z(estimate * 1.03, precision.inverse(), DRAWS) > BOUND


@pytest.mark.parametrize("case", CASES)
def test_products_roots_and_determinants(case: Case) -> None:
    normal, precision = case()
    covariance = precision.inverse()
    n = normal.size
    eye = torch.eye(n).reshape(n, *normal.shape)
    root = normal.root(eye).flatten(1).mT
    # float64 and condition numbers below 1e4: 1e-10 relative leaves a factor 100
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    close(precision_matrix(normal), precision)
    close(normal.multiply_covariance(eye).flatten(1), covariance)
    close(root @ root.mT, covariance)
    close(normal.variances().flatten(), covariance.diagonal())
    close(normal.trace(), covariance.trace())
    close(normal.logdet_precision(), torch.logdet(precision))


def test_wide_triangles_are_inverted_and_multiplied_without_their_zeros() -> None:
    """Factors wider than a strip, two blocks on the right: draws are those of triangular solves."""
    left, right = (torch.linalg.cholesky(spd(450)),), (torch.linalg.cholesky(spd(300)), torch.linalg.cholesky(spd(7)))
    normal, z = KroneckerNormal(left, right, torch.tensor(0.3)), torch.randn(2, 450, 307)
    whole = block_diag(right)
    expected = 0.3**0.5 * torch.linalg.solve_triangular(left[0].mT, z @ whole.inverse(), upper=True)
    # float64, condition numbers of about 1e4 of the factors, sums of 450 terms
    torch.testing.assert_close(normal.root(z), expected, rtol=1e-9, atol=1e-9)
    covariances = [torch.cholesky_inverse(left[0]), torch.cholesky_inverse(whole)]
    torch.testing.assert_close(normal.trace(), 0.3 * covariances[0].trace() * covariances[1].trace(), rtol=1e-9, atol=0)
    torch.testing.assert_close(normal.variances()[-1, -1], 0.3 * covariances[0][-1, -1] * covariances[1][-1, -1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [3, 8, 8003])
def test_sum_of_logarithms(size: int) -> None:
    """Numbers near both ends of the range of float32, whose products leave it."""
    for exponent in (-37.0, 0.0, 38.0):
        x = (torch.rand(size) * 3 + 0.1).mul(10**exponent).float()
        # rounded once to float32
        torch.testing.assert_close(log_sum(x), x.double().log().sum().float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_density_and_entropy_are_those_of_the_multivariate_normal(case: Case) -> None:
    normal, precision = case()
    reference = torch.distributions.MultivariateNormal(torch.zeros(normal.size), precision_matrix=precision)
    v = torch.randn(4, *normal.shape)
    # the oracle inverts the matrix: 1e-9 for condition numbers below 1e4
    torch.testing.assert_close(normal.log_prob(v), reference.log_prob(v.flatten(1)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(normal.log_prob(v[0]), reference.log_prob(v[0].flatten()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(normal.entropy(), reference.entropy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_bit_by_bit(case: Case) -> None:
    normal, _ = case()
    again = normal_from_state(normal_to_state(normal), normal.like)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(normal.draw(generators[0]), again.draw(generators[1]))
    moved = normal.to("cpu")
    assert torch.equal(moved.variances(), normal.variances())


def test_a_saved_family_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"unknown family of distributions 'DiagonalNorm'.*did you mean 'DiagonalNormal'"):
        normal_from_state({"family": "DiagonalNorm"}, torch.zeros(1))
    with pytest.raises(ConfigError, match=r"needs \['precision'\]"):
        normal_from_state({"family": "DiagonalNormal", "variance": torch.ones(1)}, torch.zeros(1))
