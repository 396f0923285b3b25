"""Sums of precisions and traces of products against dense matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DenseNormal, DiagonalNormal, EigenNormal, KroneckerNormal, LowRankNormal, Normal, products
from natgrad_apps.bayes.distributions.products import dense_precision, isotropic, precision_diagonal, precision_sum, trace_of_product
from natgrad_apps.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")


def lower(*shape: int) -> Tensor:
    m = torch.randn(*shape)
    factor: Tensor = torch.linalg.cholesky(torch.eye(shape[-1]) + m @ m.mT)
    return factor


def basis(*shape: int) -> Tensor:
    vectors: Tensor = torch.linalg.qr(torch.randn(*shape))[0]
    return vectors


def kronecker(*lead: int) -> KroneckerNormal:
    return KroneckerNormal((lower(*lead, 2, 2), lower(*lead, 1, 1)), (lower(*lead, 4, 4),), torch.tensor(0.3))


def eigen(*lead: int) -> EigenNormal:
    return EigenNormal((basis(*lead, 2, 2), basis(*lead, 1, 1)), (basis(*lead, 4, 4),), torch.rand(*lead, 3, 4) + 0.1)


def diagonal(*shape: int) -> DiagonalNormal:
    return DiagonalNormal(torch.rand(*shape) + 0.5)


PAIRS: dict[str, Callable[[], tuple[Normal, Normal]]] = {
    "diagonal, diagonal": lambda: (diagonal(3, 4), diagonal(3, 4)),
    "diagonal, kronecker": lambda: (diagonal(3, 4), kronecker()),
    "diagonal, eigen": lambda: (diagonal(2, 3, 4), eigen(2)),
    "diagonal, dense": lambda: (diagonal(5), DenseNormal(lower(5, 5))),
    "diagonal, low rank": lambda: (diagonal(5), LowRankNormal(torch.randn(5, 2), torch.rand(5) + 0.1)),
    "kronecker, diagonal": lambda: (kronecker(), diagonal(3, 4)),
    "kronecker, kronecker": lambda: (kronecker(), kronecker()),
    "kronecker in groups": lambda: (kronecker(2), kronecker(2)),
    "kronecker, eigen": lambda: (kronecker(2), eigen(2)),
    "eigen, diagonal": lambda: (eigen(), diagonal(3, 4)),
    "eigen, eigen": lambda: (eigen(2), eigen(2)),
    "dense, dense": lambda: (DenseNormal(lower(5, 5)), DenseNormal(lower(5, 5))),
    "dense, diagonal": lambda: (DenseNormal(lower(5, 5)), diagonal(5)),
    "dense, low rank": lambda: (DenseNormal(lower(5, 5)), LowRankNormal(torch.randn(5, 2), torch.rand(5) + 0.1)),
    "low rank, diagonal": lambda: (LowRankNormal(torch.randn(5, 2), torch.rand(5) + 0.1), diagonal(5)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_traces(pair: str) -> None:
    prior, own = PAIRS[pair]()
    expected = (dense_precision(prior) @ torch.linalg.inv(dense_precision(own))).trace()
    torch.testing.assert_close(trace_of_product(prior, own), expected, rtol=1e-10, atol=0)  # condition numbers below 1e3


@pytest.mark.parametrize("pair", PAIRS)
def test_diagonals(pair: str) -> None:
    for normal in PAIRS[pair]():
        torch.testing.assert_close(precision_diagonal(normal).flatten(), dense_precision(normal).diagonal(), rtol=1e-12, atol=1e-12)


def best_diagonal(total: Tensor, root: Tensor) -> Tensor:
    """``Q diag(Q^T P Q) Q^T``."""
    return root @ torch.diag((root.mT @ total @ root).diagonal()) @ root.mT


def basis_of(normal: EigenNormal) -> Tensor:
    left, right = torch.block_diag(*normal.left), torch.block_diag(*normal.right)
    return torch.kron(left, right)


def divergence(own: Normal, total: Tensor) -> Tensor:
    """``KL(own || N(0, total^-1))``."""
    zero = torch.zeros(own.size)
    q = torch.distributions.MultivariateNormal(zero, precision_matrix=dense_precision(own))
    kl: Tensor = torch.distributions.kl_divergence(q, torch.distributions.MultivariateNormal(zero, precision_matrix=total))
    return kl


@pytest.mark.parametrize("pair", ["diagonal, dense", "dense, dense", "diagonal, low rank"])
def test_sums_that_are_exact(pair: str) -> None:
    prior, own = PAIRS[pair]()
    expected = dense_precision(own) + dense_precision(prior)
    torch.testing.assert_close(dense_precision(precision_sum(own, prior)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prior", ["diagonal", "kronecker", "eigen"])
def test_sums_in_a_basis_keep_the_diagonal_there(prior: str) -> None:
    other = {"diagonal": diagonal(3, 4), "kronecker": kronecker(), "eigen": eigen()}[prior]
    for own in (diagonal(3, 4), mine := eigen()):
        root = torch.eye(12) if own is not mine else torch.kron(torch.block_diag(*mine.left), torch.block_diag(*mine.right))
        total = dense_precision(own) + dense_precision(other)
        expected = root @ torch.diag((root.mT @ total @ root).diagonal()) @ root.mT
        torch.testing.assert_close(dense_precision(precision_sum(own, other)), expected, rtol=1e-10, atol=1e-10)


def test_the_best_diagonal_has_the_least_divergence() -> None:
    own, prior = eigen(), kronecker()
    total = dense_precision(own) + dense_precision(prior)
    best = precision_sum(own, prior)
    assert isinstance(best, EigenNormal)
    for _ in range(5):
        moved = EigenNormal(best.left, best.right, best.variance * torch.exp(0.1 * torch.randn(3, 4)))
        assert divergence(best, total) < divergence(moved, total)


def test_the_best_kronecker_product_has_the_least_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    own, prior = kronecker(), kronecker()
    total = dense_precision(own) + dense_precision(prior)
    few = precision_sum(own, prior)
    monkeypatch.setattr(products, "FLIPS", 100)
    best = precision_sum(own, prior)
    assert isinstance(best, KroneckerNormal)
    assert 0 <= divergence(few, total) - divergence(best, total) < 1e-3 * 12
    for _ in range(10):
        left = tuple(b + 0.02 * torch.randn(b.shape).tril() for b in best.left)
        right = tuple(b + 0.02 * torch.randn(b.shape).tril() for b in best.right)
        assert divergence(best, total) < divergence(KroneckerNormal(left, right, best.scale), total)


def test_a_multiple_of_itself_is_added_exactly() -> None:
    own = kronecker(2)
    three = KroneckerNormal(own.left, own.right, own.scale / 3)
    torch.testing.assert_close(dense_precision(precision_sum(own, three)), 4 * dense_precision(own), rtol=1e-10, atol=1e-10)


def test_isotropic() -> None:
    for normal in (diagonal(3, 4), kronecker(2), eigen(), DenseNormal(lower(5, 5))):
        found = isotropic(normal, torch.tensor(2.5))
        torch.testing.assert_close(dense_precision(found), 2.5 * torch.eye(normal.size))
        precision_sum(normal, found)


def test_pairs_without_a_closed_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="EigenNormal does not go with a posterior of the family KroneckerNormal"):
        trace_of_product(eigen(), kronecker())
    with pytest.raises(ConfigError, match="same method"):
        precision_sum(kronecker(), eigen())
    with pytest.raises(ConfigError, match="max_factor_size"):
        trace_of_product(kronecker(), KroneckerNormal((lower(3, 3),), (lower(4, 4),), torch.tensor(1.0)))
