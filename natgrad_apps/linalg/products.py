"""Symmetric products, computed with fewer multiplications than a general product."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """Return ``x^T x`` over the last two dimensions: ``[..., R, d] -> [..., d, d]``, exactly symmetric."""
    product = torch.matmul(x.mT, x)
    return (product + product.mT).mul_(0.5)
