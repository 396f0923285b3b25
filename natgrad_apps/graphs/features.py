"""Node features, dense or sparse: what is done to them before a network sees them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from natgrad_apps.linalg.sparse import SparseMatrix

Layout = Literal["auto", "sparse", "dense"]
DENSITY = 0.1
"""Share of entries above which a dense product is the faster one (1 thread, 64 outputs: 0.9 % of 18,333 x 6,805 entries take 0.15 s forward
and backward sparse and 1.3 s dense; 35 % of 13,752 x 767 take 0.29 s and 0.11 s)."""


def select_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows with these indices."""
    return x.select(index) if isinstance(x, SparseMatrix) else x[index]


def row_normalized(x: Tensor) -> Tensor:
    """Rows divided by their sums; rows that sum to zero stay as they are."""
    sums = x.row_sums() if isinstance(x, SparseMatrix) else x.sum(1)
    divisor = torch.where(sums != 0, sums, torch.ones_like(sums))
    return x.scaled_rows(1 / divisor) if isinstance(x, SparseMatrix) else x / divisor.unsqueeze(1)


def with_layout(x: Tensor, layout: Layout) -> Tensor:
    """Features as they are multiplied.

    Args:
        x: Features ``[N, d]``.
        layout: ``auto`` leaves sparse features sparse, unless more than `DENSITY` of their entries are not zero, and dense ones dense.
    """
    if isinstance(x, SparseMatrix):
        return x.dense() if layout == "dense" or (layout == "auto" and x.density > DENSITY) else x
    return SparseMatrix.from_dense(x) if layout == "sparse" else x


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of entries, which leaves a zero zero; hands on the same tensor where it does nothing."""
    if not training or p <= 0:
        return x
    return x.with_entries(F.dropout(x.entries, p)) if isinstance(x, SparseMatrix) else F.dropout(x, p)
