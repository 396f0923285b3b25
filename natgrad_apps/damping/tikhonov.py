"""Constant damping: exact, or split over Kronecker factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from natgrad_apps.damping.base import Damping


@dataclass(frozen=True)
class Tikhonov(Damping):
    """``F_d = F + lambda I`` exactly, for every curvature. K-FAC needs eigendecompositions for it."""


@dataclass(frozen=True)
class FactoredTikhonov(Damping):
    """``F_d = (G + gamma/pi I) (x) (A + pi gamma I)`` with ``gamma = sqrt(lambda)`` for K-FAC (Martens & Grosse 2015, section 6.3).

    ``F + lambda I`` exactly for curvatures that are no single Kronecker product.
    """

    factored: ClassVar[bool] = True
