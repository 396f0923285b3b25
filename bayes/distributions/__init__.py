"""Zero-mean normal distributions over tensors, by the structure of their precision."""

from __future__ import annotations

from natgrad_apps.bayes.distributions.base import Normal, normal_from_state, normal_to_state
from natgrad_apps.bayes.distributions.dense import DenseNormal
from natgrad_apps.bayes.distributions.diagonal import DiagonalNormal
from natgrad_apps.bayes.distributions.eigen import EigenNormal
from natgrad_apps.bayes.distributions.kronecker import KroneckerNormal
from natgrad_apps.bayes.distributions.low_rank import LowRankNormal

__all__ = [
    "DenseNormal",
    "DiagonalNormal",
    "EigenNormal",
    "KroneckerNormal",
    "LowRankNormal",
    "Normal",
    "normal_from_state",
    "normal_to_state",
]
