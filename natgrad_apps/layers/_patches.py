"""The inputs of a convolution: a raw tensor whose patches are materialised only where someone asks for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad_apps.layers._correlation import second_moment
from natgrad_apps.layers._window import Window
from natgrad_apps.layers.base import LayerInputs
from natgrad_apps.linalg.products import gram

# Patches are summed by one product over all spatial dimensions up to this size of its second factor, else dimension by dimension.
_JOINT_COVERAGE = 2**13


class PatchInputs(LayerInputs):
    """Inputs of a convolution: the raw tensor, from which moments of patches are computed.

    Args:
        x: Input of the convolution, ``[N, C, *spatial]``, detached.
        window: Geometry of the convolution.
    """

    def __init__(self, x: Tensor, window: Window) -> None:
        self._x = x
        self._window = window
        self._output = window.output_size(x.shape[2:])
        self._channels = x.shape[1] // window.groups
        self._width = self._channels * math.prod(window.kernel)
        self.units = x.shape[0]
        self.positions = math.prod(self._output)

    def rows(self) -> Tensor:
        """All patches, ``[*K, N, S, d_in]``."""
        window, n, dims = self._window, self.units, self._window.dims
        view = window.view(window.pad(self._x))
        view = view.reshape(n, window.groups, self._channels, *view.shape[2:])
        order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
        return self._ungrouped(view.permute(order).reshape(window.groups, n, self.positions, self._width))

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """Sums over units and positions of ``a a^T`` and ``a``, without all patches in memory; see `second_moment` of ``_correlation``."""
        second = second_moment(self._window.pad(self._x), self._window.unpadded())
        return self._ungrouped(second), self._sums(self._x.sum(0, keepdim=True)).squeeze(-2)

    def reduced(self) -> Tensor:
        """Patches averaged over positions, ``[*K, N, d_in]``: products with 0-1 matrices. Cost ``N C spatial kernel[-1]``."""
        return self._sums(self._x).div_(self.positions)

    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """The patches of some units; of some positions, materialised."""
        chosen = PatchInputs(self._x[units], self._window)
        kept = range(self.positions)[positions]
        return chosen if kept == range(self.positions) else RowInputs(chosen._rows_at(kept))

    def _rows_at(self, positions: range) -> Tensor:
        """Patches at some positions: ``[*K, N, len(positions), d_in]``."""
        window, n = self._window, self.units
        index = torch.arange(positions.start, positions.stop, positions.step, device=self._x.device)
        places = torch.unravel_index(index, self._output)
        view = window.view(window.pad(self._x))
        rows = torch.ops.aten.index(view, [None, None, *places])  # [N, C, positions, *kernel]
        rows = rows.reshape(n, window.groups, self._channels, *rows.shape[2:]).movedim(3, 1).movedim(2, 0)
        return self._ungrouped(rows.reshape(window.groups, n, len(positions), self._width))

    def _sums(self, x: Tensor) -> Tensor:
        """Sums of patches over positions: ``[N, C, *spatial] -> [*K, N, d_in]``."""
        window, n = self._window, x.shape[0]
        if math.prod(x.shape[2:]) * math.prod(window.kernel) <= _JOINT_COVERAGE:
            joint = x.new_ones(1, 1)
            for dim in range(window.dims):
                joint = torch.kron(joint, window.coverage(dim, x.shape[2 + dim], x))
            x = x.flatten(2) @ joint.mT
        else:
            for dim in reversed(range(window.dims)):
                x = (x.movedim(2 + dim, -1) @ window.coverage(dim, x.shape[2 + dim], x).mT).movedim(-1, 2 + dim)
        return self._ungrouped(x.reshape(n, window.groups, self._width).transpose(0, 1))

    def _ungrouped(self, x: Tensor) -> Tensor:
        return x if self._window.groups > 1 else x[0]


class RowInputs(LayerInputs):
    """Inputs that are materialised: ``[*K, N, S, d_in]``."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.units, self.positions = rows.shape[-3], rows.shape[-2]

    def rows(self) -> Tensor:
        """All inputs, ``[*K, N, S, d_in]``."""
        return self._rows

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """Sums over units and positions of ``a a^T`` and ``a``. Cost ``N S d_in^2``."""
        return gram(self._rows, rows=2), self._rows.sum((-3, -2))

    def reduced(self) -> Tensor:
        """Inputs averaged over positions, ``[*K, N, d_in]``."""
        return self._rows.mean(-2)

    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """Views of the selected rows."""
        return RowInputs(self._rows[..., units, positions, :])
