"""Independent elements in a Kronecker-factored eigenbasis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions.base import Normal, log_sum
from natgrad_apps.linalg.blocks import BlockDiagonal, sandwich


@dataclass(frozen=True)
class EigenNormal(Normal):
    """``Sigma = (Q_L (x) Q_R) diag(variance) (Q_L (x) Q_R)^T``: the posterior of noisy EKFAC.

    ``W = Q_L [Z * sqrt(variance)] Q_R^T`` for standard normal ``Z``; marginal variances ``(Q_L * Q_L) variance (Q_R * Q_R)^T``.

    Shapes: variance ``[*K, d_out, d_in]``; blocks of ``left`` ``[*K, d, d]`` whose widths add up to ``d_out``, of ``right`` to ``d_in``.
    Cost: ``2 d_out d_in (d_out + d_in)`` for a draw or a product with a vector, once as much for the marginal variances.
    Reference: Bae, Zhang & Grosse, Eigenvalue corrected noisy natural gradient, 2018, arXiv 1811.12565.

    Attributes:
        left: Orthogonal blocks over the rows, eigenvectors as columns.
        right: Orthogonal blocks over the columns.
        variance: Variances in the eigenbasis.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    variance: Tensor

    @property
    def shape(self) -> torch.Size:
        """``[*K, d_out, d_in]``."""
        return self.variance.shape

    @property
    def like(self) -> Tensor:
        """The variances."""
        return self.variance

    def _out(self, v: Tensor) -> Tensor:
        return sandwich(BlockDiagonal(self.left), v, BlockDiagonal(self.right))

    def _scaled(self, v: Tensor, scale: Tensor) -> Tensor:
        rotated = sandwich(BlockDiagonal(self.left).transposed, v, BlockDiagonal(self.right).transposed)
        return self._out(rotated * scale)

    def root(self, z: Tensor) -> Tensor:
        """``Q_L [z * sqrt(variance)] Q_R^T``."""
        return self._out(z * self.variance.sqrt())

    def multiply_precision(self, v: Tensor) -> Tensor:
        """``Q_L [(Q_L^T v Q_R) / variance] Q_R^T``."""
        return self._scaled(v, self.variance.reciprocal())

    def multiply_covariance(self, v: Tensor) -> Tensor:
        """``Q_L [(Q_L^T v Q_R) * variance] Q_R^T``."""
        return self._scaled(v, self.variance)

    @cached_property
    def _variances(self) -> Tensor:
        left, right = (BlockDiagonal([q.square() for q in blocks]) for blocks in (self.left, self.right))
        return sandwich(left, self.variance, right)

    def variances(self) -> Tensor:
        """See the class."""
        return self._variances

    def trace(self) -> Tensor:
        """That of the variances: a rotation does not change it."""
        return self.variance.sum()

    def logdet_precision(self) -> Tensor:
        """``-sum log variance``."""
        return -log_sum(self.variance)
