"""Block-diagonal matrices, for factors that are too wide to be kept whole. One block is the usual case and costs nothing extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.linalg.products import matmul_nt


def split(size: int, cap: int) -> list[slice]:
    """Ranges of at most `cap` rows, as equal in size as possible: the structure of a factor of width `size`.

    >>> split(10, 4)
    [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
    """
    count = -(-size // cap)
    base, extra = divmod(size, count)
    ranges, start = [], 0
    for i in range(count):
        stop = start + base + (i < extra)
        ranges.append(slice(start, stop))
        start = stop
    return ranges


@dataclass(frozen=True)
class BlockDiagonal:
    """``diag(B_1, ..., B_m)`` with blocks ``[*K, d_i, d_i]``; the width is ``d = sum d_i``."""

    blocks: Sequence[Tensor]

    @property
    def transposed(self) -> BlockDiagonal:
        """The transposed matrix (views)."""
        return BlockDiagonal([b.mT for b in self.blocks])

    def after(self, v: Tensor) -> Tensor:
        """``v B`` for ``v: [..., r, d]``."""
        if len(self.blocks) == 1:
            return matmul_nt(v, self.blocks[0].mT)  # eigenvectors are stored by columns, so this is contiguous
        parts = v.split([b.shape[-1] for b in self.blocks], dim=-1)
        return torch.cat([matmul_nt(p, b.mT) for p, b in zip(parts, self.blocks, strict=True)], dim=-1)

    def times_transposed(self, v: Tensor) -> Tensor:
        """``B v^T`` for ``v: [..., r, d]``, the product that is fastest on CPU: see `sandwich`."""
        if len(self.blocks) == 1:
            return matmul_nt(self.blocks[0], v)
        parts = v.split([b.shape[-1] for b in self.blocks], dim=-1)
        return torch.cat([matmul_nt(b, p) for b, p in zip(self.blocks, parts, strict=True)], dim=-2)

    def diagonal(self) -> Tensor:
        """``[*K, d]``."""
        return torch.cat([b.diagonal(dim1=-2, dim2=-1) for b in self.blocks], dim=-1)

    def shifted(self, value: Tensor) -> BlockDiagonal:
        """``B + value I`` with ``value`` a 0-d tensor or one number for each group, ``[*K]``."""
        shifted = []
        for block in self.blocks:
            copy = block.clone()
            copy.diagonal(dim1=-2, dim2=-1).add_(value.unsqueeze(-1))
            shifted.append(copy)
        return BlockDiagonal(shifted)


def sandwich(left: BlockDiagonal, v: Tensor, right: BlockDiagonal) -> Tensor:
    """``L v R^T`` for ``v: [..., d_out, d_in]``: two products ``x y^T`` of contiguous operands, ``L (R v^T)^T``, and no transposed copy."""
    return left.times_transposed(right.times_transposed(v))
