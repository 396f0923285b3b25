"""Symmetric products and factorizations of symmetric positive definite matrices."""

from __future__ import annotations

from natgrad_apps.linalg.products import gram, matmul_nt
from natgrad_apps.linalg.spd import cholesky_many, eigh_many, inverse_many, matrix_power

__all__ = ["cholesky_many", "eigh_many", "gram", "inverse_many", "matmul_nt", "matrix_power"]
