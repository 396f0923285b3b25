"""Adaptive damping from the ratio of the actual to the predicted decrease of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from natgrad_apps.damping.base import Damping
from natgrad_apps.errors import ConfigError, check_fraction, check_positive


@dataclass(frozen=True)
class LevenbergMarquardt(Damping):
    """Levenberg-Marquardt rule (Martens & Grosse 2015, section 6.5).

    Every `period` steps ``rho = (L(theta) - L(theta + d)) / -(g^T d + 1/2 d^T (F + lambda I) d)``; then ``lambda <-
    omega^period lambda`` if ``rho > 3/4`` and ``lambda <- omega^-period lambda`` if ``rho < 1/4``, within ``[minimum,
    maximum]``. A ratio that is not finite counts as a failure.

    Needs ``optimizer.step(closure)``, where the closure returns the loss on the batch of the step and calls no
    ``backward``. Split over the factors of a Kronecker product, as `FactoredTikhonov`.

    Attributes:
        value: First ``lambda``.
        omega: Decrease for one step, in (0, 1).
        period: Steps between adaptations.
        minimum: Lower bound of ``lambda``.
        maximum: Upper bound of ``lambda``.
    """

    value: float = 1.0
    omega: float = 0.95
    period: int = 5
    minimum: float = 1e-8
    maximum: float = 1e8

    factored: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("omega", self.omega)
        check_positive("omega", self.omega)
        check_positive("minimum", self.minimum)
        check_positive("maximum", self.maximum)
        if not isinstance(self.period, int) or self.period < 1:
            raise ConfigError(f"period must be an integer >= 1, got {self.period!r}")
        if not self.minimum <= self.value <= self.maximum:
            raise ConfigError(f"damping {self.value!r} is outside [minimum, maximum] = [{self.minimum!r}, {self.maximum!r}]")

    def due(self, step: int) -> bool:
        """Every `period` steps, counted from 1."""
        return step % self.period == 0

    def adapt(self, current: Tensor, ratio: Tensor) -> Tensor:
        """See the class."""
        factor = self.omega**self.period
        good = ratio > 0.75
        bad = ~(ratio >= 0.25)  # also where the ratio is NaN
        changed = torch.where(good, current * factor, torch.where(bad, current / factor, current))
        return changed.clamp(self.minimum, self.maximum)
