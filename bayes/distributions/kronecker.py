"""The matrix-variate normal distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions.base import Normal
from natgrad_apps.linalg.products import matmul_nt

# On CPU: rows of a triangular matrix that are kept together without the zeros to their left; smaller matrices are solved as they are.
_STRIP = 192


@dataclass(frozen=True)
class KroneckerNormal(Normal):
    r"""``P = (L L^T) (x) (R R^T) / scale``: the posterior of noisy K-FAC, with ``L L^T = S_in``, ``R R^T = A_in``, ``scale = lambda/N``.

    Draws are ``W = sqrt(scale) L^-T Z R^-1`` for standard normal ``Z``: in row-major order ``vec(W) = sqrt(scale) (L^-T (x) R^-T) vec(Z)``,
    so ``Cov = scale (L L^T)^-1 (x) (R R^T)^-1``. Marginal variances ``scale diag((L L^T)^-1) diag((R R^T)^-1)^T``.

    Shapes: blocks of ``left`` ``[*K, d, d]`` whose widths add up to ``d_out``, of ``right`` to ``d_in``; ``scale`` 0-d.
    Cost: ``d_out d_in (d_out + d_in) / 2`` for a draw, four times that for a product; ``(d_out^3 + d_in^3) / 3`` once for inverses of the
    factors.
    Reference: Gupta & Nagar, Matrix variate distributions, 1999; Zhang, Sun, Duvenaud & Grosse, Noisy natural gradient as variational
    inference, ICML 2018, arXiv 1712.02390, equation 16.

    Attributes:
        left: Lower Cholesky factors of the blocks over the rows.
        right: Lower Cholesky factors of the blocks over the columns.
        scale: Factor of the covariance.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """``[*K, d_out, d_in]``."""
        rows, columns = (sum(b.shape[-1] for b in blocks) for blocks in (self.left, self.right))
        return torch.Size((*self.left[0].shape[:-2], rows, columns))

    @property
    def like(self) -> Tensor:
        """A Cholesky factor."""
        return self.left[0]

    def root(self, z: Tensor) -> Tensor:
        """``sqrt(scale) L^-T z R^-1 = (sqrt(scale) L^-T) (R^-T z^T)^T``."""
        left, right = self._inverse_roots
        return left.times_transposed(right.times_transposed(z))

    def multiply_precision(self, v: Tensor) -> Tensor:
        """``L L^T v R R^T / scale``."""
        half = _on_columns(self.right, v, lambda r, x: x @ r @ r.mT)
        return _on_rows(self.left, half, lambda c, x: c @ (c.mT @ x)) / self.scale

    def multiply_covariance(self, v: Tensor) -> Tensor:
        """``scale (L L^T)^-1 v (R R^T)^-1``."""
        half = _on_columns(self.right, v, lambda r, x: _solve(r, x.mT).mT)
        return _on_rows(self.left, half, _solve) * self.scale

    @cached_property
    def _inverse_roots(self) -> tuple[_Upper, _Upper]:
        """``sqrt(scale) L^-T`` and ``R^-T``: a product is faster than a triangular solve, and has every draw until the next refresh."""
        return _Upper.inverse_transposed(self.left, self.scale.sqrt()), _Upper.inverse_transposed(self.right)

    @cached_property
    def _variances(self) -> Tensor:
        # (L L^T)^-1 = L^-T L^-1, whose diagonal is that of the squared rows of L^-T.
        rows, columns = (root.squared_rows() for root in self._inverse_roots)
        return rows.unsqueeze(-1) * columns.unsqueeze(-2)

    @cached_property
    def _trace(self) -> Tensor:
        rows, columns = (root.squared_rows().sum(-1) for root in self._inverse_roots)
        return (rows * columns).sum()

    def trace(self) -> Tensor:
        """``scale tr (L L^T)^-1 tr (R R^T)^-1``, summed over groups."""
        return self._trace

    def variances(self) -> Tensor:
        """See the class."""
        return self._variances

    @cached_property
    def _logdet(self) -> Tensor:
        columns, rows = self.shape[-1], self.shape[-2]
        logs = [2 * columns * _log_diagonal(b) for b in self.left] + [2 * rows * _log_diagonal(b) for b in self.right]
        return torch.stack(logs).sum() - self.size * self.scale.log()

    def logdet_precision(self) -> Tensor:
        """``d_in log det L L^T + d_out log det R R^T - d_out d_in log scale``, summed over groups."""
        return self._logdet


_Product = Callable[[Tensor, Tensor], Tensor]


def _on_rows(blocks: Sequence[Tensor], v: Tensor, apply: _Product) -> Tensor:
    """A block-diagonal matrix from the left."""
    if len(blocks) == 1:
        return apply(blocks[0], v)
    parts = v.split([b.shape[-1] for b in blocks], dim=-2)
    return torch.cat([apply(b, part) for b, part in zip(blocks, parts, strict=True)], dim=-2)


def _on_columns(blocks: Sequence[Tensor], v: Tensor, apply: _Product) -> Tensor:
    """A block-diagonal matrix from the right."""
    if len(blocks) == 1:
        return apply(blocks[0], v)
    parts = v.split([b.shape[-1] for b in blocks], dim=-1)
    return torch.cat([apply(b, part) for b, part in zip(blocks, parts, strict=True)], dim=-1)


def _solve(factor: Tensor, v: Tensor) -> Tensor:
    return torch.cholesky_solve(v, factor.expand(*v.shape[:-2], *factor.shape[-2:]))


@dataclass(frozen=True)
class _Upper:
    """A block-diagonal matrix of upper triangular blocks, as strips of rows: the zeros to the left of a strip are not kept.

    Attributes:
        strips: Consecutive rows ``[*K, w, c]``, and the columns that they cover.
    """

    strips: tuple[tuple[Tensor, slice], ...]

    @staticmethod
    def inverse_transposed(factors: Sequence[Tensor], scale: Tensor | None = None) -> _Upper:
        """``diag(L_1, L_2, ...)^-T``, times a 0-d tensor."""
        strips, first = [], 0
        for factor in factors:
            inverse, size = _inverse(factor), factor.shape[-1]
            inverse = inverse if scale is None else inverse * scale
            step = _STRIP if factor.device.type == "cpu" else size
            for start in range(0, size, step):
                rows = inverse[..., start:, start : start + step].mT.contiguous()
                strips.append((rows, slice(first + start, first + size)))
            first += size
        return _Upper(tuple(strips))

    def times_transposed(self, v: Tensor) -> Tensor:
        """``U v^T`` for ``v: [..., r, d]``."""
        parts = [matmul_nt(rows, v[..., columns]) for rows, columns in self.strips]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def squared_rows(self) -> Tensor:
        """Sums of squares of the rows, ``[*K, d]``."""
        return torch.cat([rows.square().sum(-1) for rows, _ in self.strips], dim=-1)


def _inverse(factor: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix ``[..., d, d]``: ``[[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]``.

    On CPU, cost ``d^3 / 3``, mostly in products, where a solver with the identity takes ``d^3 / 2``.
    """
    size = factor.shape[-1]
    if size <= _STRIP or factor.device.type != "cpu":
        eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
        solved: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        return solved
    half = size // 2
    first, last = _inverse(factor[..., :half, :half]), _inverse(factor[..., half:, half:])
    result = torch.zeros_like(factor)
    result[..., :half, :half] = first
    result[..., half:, half:] = last
    result[..., half:, :half] = (last @ (factor[..., half:, :half] @ first)).neg_()
    return result


def _log_diagonal(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum()
