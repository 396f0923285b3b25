"""Sparse matrices against the dense ones that they stand for, in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from natgrad_apps.linalg.sparse import SparseMatrix

pytestmark = pytest.mark.usefixtures("float64")


def matrix(n: int = 9, d: int = 6) -> tuple[Tensor, SparseMatrix]:
    """A third of the entries are kept; one row and one column are empty."""
    x = torch.randn(n, d) * (torch.rand(n, d) < 1 / 3)
    x[2], x[:, 3] = 0, 0
    return x, SparseMatrix.from_dense(x)


def transposed(sparse: SparseMatrix) -> Tensor:
    view = sparse.t()
    assert isinstance(view, SparseMatrix)
    return view.dense()


def test_it_looks_like_the_tensor() -> None:
    x, sparse = matrix()
    assert (sparse.shape, sparse.dtype, sparse.nnz) == (x.shape, x.dtype, int((x != 0).sum()))
    assert torch.equal(sparse.dense(), x)
    assert torch.equal(transposed(sparse), x.t())
    for other, expected in ((sparse.to(torch.float32), x.float()), (sparse.detach(), x)):
        assert isinstance(other, SparseMatrix)
        assert torch.equal(other.dense(), expected)
    assert "nnz=" in repr(sparse)


@pytest.mark.parametrize("biased", [False, True])
def test_linear_layer_and_its_gradient(biased: bool) -> None:
    x, sparse = matrix()
    weight, bias = torch.randn(4, 6, requires_grad=True), torch.randn(4, requires_grad=True) if biased else None
    g = torch.randn(9, 4)
    parameters = [weight] if bias is None else [weight, bias]
    expected, found = F.linear(x, weight, bias), F.linear(sparse, weight, bias)
    # float64, sums of fewer than 10 terms
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(torch.autograd.grad(found, parameters, g), torch.autograd.grad(expected, parameters, g), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_rows() -> None:
    x, sparse = matrix()
    index = torch.tensor([5, 2, 5, 0])
    assert torch.equal(sparse.select(index).dense(), x[index])
    assert torch.equal(sparse.select(index[:0]).dense(), x[:0])
    torch.testing.assert_close(sparse.row_sums(), x.sum(1), rtol=1e-12, atol=1e-13)
    scale = torch.randn(9)
    torch.testing.assert_close(sparse.scaled_rows(scale).dense(), x * scale.unsqueeze(1), rtol=1e-12, atol=0)


def test_combined_rows_are_a_product_with_an_adjacency_matrix() -> None:
    x, sparse = matrix()
    target, source, weight = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([3, 0, 0, 8, 2]), torch.randn(5)
    adjacency = torch.zeros(3, 9).index_put_((target, source), weight, accumulate=True)
    torch.testing.assert_close(sparse.combine_rows(target, source, weight, 3), adjacency @ x, rtol=1e-12, atol=1e-13)


def test_the_transposed_view_agrees_with_new_entries() -> None:
    """What was found about the places is shared, the values are not."""
    x, sparse = matrix()
    F.linear(sparse, torch.randn(4, 6, requires_grad=True)).sum().backward()
    doubled = sparse.with_entries(2 * sparse.entries)
    assert torch.equal(transposed(doubled), 2 * x.t())
    assert torch.equal(transposed(sparse), x.t())


def test_anything_else_is_refused() -> None:
    _, sparse = matrix()
    with pytest.raises(TypeError, match=r"aten\.relu.*use dense features"):
        torch.relu(sparse)
    with pytest.raises(TypeError, match="two sparse matrices"):
        torch.mm(sparse, sparse.t())


def test_triplets_copies_and_pickles() -> None:
    """Double places count twice in products; a copy is the matrix itself, which is constant."""
    row, column, value = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 1, 2]), torch.randn(4)
    made = SparseMatrix.from_triplets(row, column, value, (2, 3))
    expected = torch.zeros(2, 3).index_put_((row, column), value, accumulate=True)
    vectors = torch.randn(3, 2)
    torch.testing.assert_close(torch.mm(made, vectors), expected @ vectors, rtol=1e-12, atol=1e-13)
    assert copy.deepcopy(made) is made
    assert torch.equal(torch.mm(pickle.loads(pickle.dumps(made)), vectors), torch.mm(made, vectors))
