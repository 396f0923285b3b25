"""`gram` and `matmul_nt` against plain products, on every path that a shape or a dtype selects."""

from __future__ import annotations

import pytest
import torch

from natgrad_apps.linalg import gram, matmul_nt, products
from natgrad_apps.linalg.products import gram_nt

# Rows and widths below and above the thresholds between the plain product, strips, and chunks of rows; widths that no strip divides.
SHAPES = [(1, 1), (5, 3), (64, 33), (300, 400), (2100, 128), (9000, 97), (260, 515)]


@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_equals_the_product_and_is_exactly_symmetric(rows: int, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, width, dtype=dtype, generator=torch.Generator().manual_seed(0))
    result = gram(x)
    assert result.dtype == dtype
    assert torch.equal(result, result.mT)
    # Each entry sums `rows` products of unit size: rounding is below rows * eps, in practice far below.
    torch.testing.assert_close(result.double(), x.double().mT @ x.double(), rtol=0, atol=rows * torch.finfo(dtype).eps * 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [7, 130])
def test_gram_of_batches_and_of_several_row_dimensions(dtype: torch.dtype, width: int) -> None:
    x = torch.randn(2, 3, 40, 60, width, dtype=dtype, generator=torch.Generator().manual_seed(1))
    tolerance = 14400 * torch.finfo(dtype).eps * 20
    wide = x.double()
    for rows in (1, 2, 3):
        flat = wide.flatten(-rows - 1, -2)
        torch.testing.assert_close(gram(x, rows=rows).double(), flat.mT @ flat, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 128, 81), (100, 32, 49), (3, 7, 5), (2, 4, 30, 6, 10)])
def test_gram_of_columns_seen_as_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    # The layout of a convolution's output gradients: [N, c_out, S] seen as [N, S, c_out], with and without groups before it.
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2)).mT
    flat = x.double().flatten(-3, -2)
    result = gram(x, rows=2)
    assert torch.equal(result, result.mT)
    torch.testing.assert_close(result.double(), flat.mT @ flat, rtol=0, atol=flat.shape[-2] * torch.finfo(dtype).eps * 20)


def test_gram_of_no_rows_is_zero() -> None:
    assert torch.equal(gram(torch.zeros(0, 4)), torch.zeros(4, 4))
    assert torch.equal(gram(torch.zeros(2, 0, 4)), torch.zeros(2, 4, 4))
    assert torch.equal(gram(torch.zeros(0, 4, 6).mT, rows=2), torch.zeros(4, 4))
    assert torch.equal(gram(torch.zeros(5, 4, 0).mT, rows=2), torch.zeros(4, 4))


def test_gram_shows_a_nan_wherever_it_is() -> None:
    x = torch.ones(4000, 128)
    x[3999, 127] = torch.nan
    assert gram(x)[127].isnan().all()


def test_gram_is_differentiable() -> None:
    x = torch.randn(300, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    (gradient,) = torch.autograd.grad(gram(x).square().sum(), x)
    expected = 4 * x @ (x.mT @ x)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-8)


def test_gram_nt() -> None:
    y = torch.randn(300, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    result = gram_nt(y)
    assert torch.equal(result, result.mT)
    torch.testing.assert_close(result, y @ y.mT, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matmul_nt_for_every_layout(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(n, 200, dtype=dtype, generator=generator) for n in (150, 180))
    expected = x.double() @ y.double().mT
    wide = torch.randn(150, 400, dtype=dtype, generator=generator)
    for left, right in (
        (x, y),
        (x.mT.contiguous().mT, y),
        (x, y.mT.contiguous().mT),
        (wide[:, ::2].copy_(x), y),
    ):
        torch.testing.assert_close(matmul_nt(left, right).double(), expected, rtol=0, atol=200 * torch.finfo(dtype).eps * 20)
    batched = matmul_nt(x.expand(2, -1, -1), y.expand(2, -1, -1))
    torch.testing.assert_close(batched[1].double(), expected, rtol=0, atol=200 * torch.finfo(dtype).eps * 20)


def test_float32_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_load_onednn", lambda: None)
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(6))
    assert torch.equal(matmul_nt(x, x), x @ x.mT)
    result = gram(x)
    assert torch.equal(result, result.mT)
    torch.testing.assert_close(result, x.mT @ x, rtol=0, atol=1e-3)


def test_matmul_nt_is_differentiable() -> None:
    x = torch.randn(200, 200, generator=torch.Generator().manual_seed(7), requires_grad=True)
    (gradient,) = torch.autograd.grad(matmul_nt(x, torch.eye(200)).sum(), x)
    torch.testing.assert_close(gradient, torch.ones(200, 200))
