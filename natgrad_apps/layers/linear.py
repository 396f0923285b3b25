"""`torch.nn.Linear` on ``[d_in]``, ``[N, d_in]``, ``[N, ..., d_in]`` (shared positions), or a sparse matrix ``[N, d_in]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from natgrad_apps.layers._sparse import SparseInputs
from natgrad_apps.layers.base import Geometry, LayerAdapter, LayerInputs
from natgrad_apps.linalg.products import gram
from natgrad_apps.linalg.sparse import SparseMatrix


class LinearInputs(LayerInputs):
    """Inputs of a linear layer: a view of the tensor it received, ``[N, S, d_in]``."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self.units, self.positions = x.shape[0], x.shape[1]

    def rows(self) -> Tensor:
        """All inputs, ``[N, S, d_in]``."""
        return self._x

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """``sum a a^T`` and ``sum a``. Cost ``N S d_in^2``."""
        flat = self._x.flatten(0, 1)
        return gram(flat), flat.sum(0)

    def reduced(self) -> Tensor:
        """Mean over positions, ``[N, d_in]``."""
        return self._x.squeeze(1) if self.positions == 1 else self._x.mean(1)

    def subsample(self, units: slice, positions: slice) -> LinearInputs:
        """Views of the selected rows."""
        return LinearInputs(self._x[units, positions])

    def joined(self, others: Sequence[LayerInputs]) -> LinearInputs | None:
        """A copy with all rows, for calls with one position each, such as the steps of a recurrent layer."""
        rows = [call._x for call in (self, *others) if isinstance(call, LinearInputs) and call.positions == 1]
        return LinearInputs(torch.cat(rows, 1)) if len(rows) == 1 + len(others) else None


def _rows(x: Tensor) -> Tensor:
    """``[d]``, ``[N, d]`` or ``[N, ..., d]`` as ``[N, S, d]``."""
    if x.ndim == 1:
        return x.reshape(1, 1, -1)
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.numel() else x.reshape(x.shape[0], 0, x.shape[-1])


class LinearAdapter(LayerAdapter):
    """`torch.nn.Linear`: the weight is the matrix already."""

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)

    def geometry(self, module: nn.Module) -> Geometry:
        """``d_out`` and ``d_in`` are the features."""
        assert isinstance(module, nn.Linear)
        return Geometry(d_in=module.in_features, d_out=module.out_features)

    def inputs(self, module: nn.Module, x: Tensor) -> LayerInputs:
        """A view as ``[N, S, d_in]``, or sparse rows."""
        del module
        return SparseInputs(x) if isinstance(x, SparseMatrix) else LinearInputs(_rows(x))

    def output_gradients(self, module: nn.Module, g: Tensor) -> Tensor:
        """A view as ``[N, S, d_out]``."""
        del module
        return _rows(g)

    def weight_to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The weight itself."""
        del module
        return weight

    def matrix_to_weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The matrix itself."""
        del module
        return matrix
