"""Standardization with the statistics of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from natgrad_apps.bayes.data.table import Floats

RELATIVE_ZERO = 1e-10
"""A deviation below this share of the mean's size is rounding: float64 columns that never vary have up to 1e-16 of it."""


@dataclass(frozen=True)
class Scaling:
    """``z = (v - mean) / scale``, column by column.

    A column that is constant over the training rows has ``scale = 1``: it becomes 0 there, and a test row that differs stays finite.

    Attributes:
        mean: ``[D]``, or ``[]`` for a target.
        scale: Same shape, positive; the standard deviation with the divisor N, or the root mean square of all columns' ones.
    """

    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, values: Floats, one_unit: bool = False) -> Scaling:
        """Mean and deviation over the first dimension.

        Args:
            values: ``[N, D]`` or ``[N]``.
            one_unit: Whether the columns are amounts of the same thing, as pixels are: they share the root mean square of their deviations,
                so that a column which hardly varies in these rows is not blown up in others.
        """
        mean, std = values.mean(0), values.std(0)
        if one_unit:
            std = np.full_like(std, np.sqrt(np.square(std).mean()))
        constant = std <= RELATIVE_ZERO * np.abs(mean)
        return cls(np.asarray(mean), np.asarray(np.where(constant, 1.0, std)))

    def apply(self, values: Floats) -> Floats:
        """Standardized values."""
        return np.asarray((values - self.mean) / self.scale)

    def invert(self, values: Floats) -> Floats:
        """Values in their own units."""
        return np.asarray(values * self.scale + self.mean)

    def to_dict(self) -> dict[str, Any]:
        """As plain lists."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Scaling:
        """Inverse of `to_dict`."""
        return cls(np.asarray(saved["mean"], dtype=np.float64), np.asarray(saved["scale"], dtype=np.float64))
