"""Inputs of a linear layer that are sparse features."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad_apps.layers.base import LayerInputs
from natgrad_apps.linalg.products import gram
from natgrad_apps.linalg.sparse import SparseMatrix

CHUNK = 2048
"""Rows that are made dense at a time."""


class SparseInputs(LayerInputs):
    """Sparse rows ``[N, d_in]`` of one position each; moments make some rows dense at a time, never all of them."""

    def __init__(self, x: SparseMatrix) -> None:
        self._x = x
        self.units, self.positions, self.chunk = x.shape[0], 1, CHUNK

    def rows(self) -> Tensor:
        """All inputs, dense ``[N, 1, d_in]``."""
        return self._x.dense().unsqueeze(1)

    def unit_rows(self, units: Tensor) -> Tensor:
        """``[units, 1, d_in]``; the others stay sparse."""
        return self._x.select(units).dense().unsqueeze(1)

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """``sum a a^T`` and ``sum a``, `CHUNK` rows at a time."""
        return chunked_moment(self)

    def reduced(self) -> Tensor:
        """The inputs themselves, dense ``[N, d_in]``."""
        return self._x.dense()

    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """Selected rows."""
        assert positions == slice(None)  # there is one
        return SparseInputs(self._x.select(torch.arange(self.units, device=self._x.device)[units]))


def chunked_moment(inputs: LayerInputs) -> tuple[Tensor, Tensor]:
    """`LayerInputs.second_moment` of inputs whose rows are cheap to have in parts.

    Args:
        inputs: With at least one unit.
    """
    second: Tensor | None = None
    first: Tensor | None = None
    for units in torch.arange(inputs.units).split(CHUNK):
        rows = inputs.unit_rows(units).flatten(0, 1)
        second = gram(rows) if second is None else second.add_(gram(rows))
        first = rows.sum(0) if first is None else first.add_(rows.sum(0))
    assert second is not None
    assert first is not None
    return second, first
