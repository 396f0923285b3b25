"""Independent elements."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions.base import Normal, log_sum


@dataclass(frozen=True)
class DiagonalNormal(Normal):
    """``P = diag(precision)``.

    Cost: ``n`` for every method.

    Attributes:
        precision: Positive, in the shape of a draw.
    """

    precision: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the precision."""
        return self.precision.shape

    @property
    def like(self) -> Tensor:
        """The precision."""
        return self.precision

    @cached_property
    def _std(self) -> Tensor:
        return self.precision.rsqrt()

    def root(self, z: Tensor) -> Tensor:
        """``z / sqrt(precision)``."""
        return z * self._std

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """As in `Normal`, without a second tensor."""
        return torch.empty_like(self._std).normal_(generator=generator).mul_(self._std)

    def draw_kept(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A draw, and its standard normal numbers."""
        z = torch.empty_like(self._std).normal_(generator=generator)
        return z * self._std, z

    def mirror(self, kept: Tensor, source: Normal) -> Tensor | None:
        """The same standard normal numbers mirrored, whatever the variances were."""
        return (kept * self._std).neg_() if isinstance(source, DiagonalNormal) else None

    def multiply_precision(self, v: Tensor) -> Tensor:
        """``precision v``."""
        return v * self.precision

    def multiply_covariance(self, v: Tensor) -> Tensor:
        """``v / precision``."""
        return v / self.precision

    def variances(self) -> Tensor:
        """``1 / precision``."""
        return self.precision.reciprocal()

    def trace(self) -> Tensor:
        """``sum 1 / precision``."""
        root: Tensor = torch.linalg.vector_norm(self._std)
        return root.square()

    def logdet_precision(self) -> Tensor:
        """``sum log precision``."""
        return log_sum(self.precision)
