"""A full precision matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions.base import Normal


@dataclass(frozen=True)
class DenseNormal(Normal):
    """``P = L L^T`` over vectors; draws are ``L^-T z``.

    Cost: ``n^2`` for a draw or a product, ``n^3 / 3`` once for the marginal variances; memory ``n^2``.

    Attributes:
        cholesky: Lower triangular ``L: [n, n]``.
    """

    cholesky: Tensor

    @property
    def shape(self) -> torch.Size:
        """``[n]``."""
        return self.cholesky.shape[-1:]

    @property
    def like(self) -> Tensor:
        """The factor."""
        return self.cholesky

    def root(self, z: Tensor) -> Tensor:
        """``L^-T z``; vectors are rows of ``z``, so this is ``z L^-1``."""
        rows = z.reshape(-1, z.shape[-1])
        result: Tensor = torch.linalg.solve_triangular(self.cholesky, rows, upper=False, left=False)
        return result.reshape(z.shape)

    def multiply_precision(self, v: Tensor) -> Tensor:
        """``L L^T v``."""
        return v @ self.cholesky @ self.cholesky.mT

    def multiply_covariance(self, v: Tensor) -> Tensor:
        """``L^-T L^-1 v``."""
        return torch.cholesky_solve(v.reshape(-1, v.shape[-1]).mT, self.cholesky).mT.reshape(v.shape)

    @cached_property
    def _variances(self) -> Tensor:
        eye = torch.eye(self.size, dtype=self.like.dtype, device=self.like.device)
        inverse: Tensor = torch.linalg.solve_triangular(self.cholesky, eye, upper=False)
        return inverse.square().sum(0)

    def variances(self) -> Tensor:
        """Squared columns of ``L^-1``, summed."""
        return self._variances

    def logdet_precision(self) -> Tensor:
        """``2 sum log L_ii``."""
        return 2 * self.cholesky.diagonal().log().sum()
