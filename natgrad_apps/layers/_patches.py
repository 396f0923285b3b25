"""Patches of a convolution's input: where they lie, how to materialise them, and their moments."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from natgrad_apps.layers.base import LayerInputs
from natgrad_apps.linalg import gram


@dataclass(frozen=True)
class Window:
    """Everything that says which input elements a convolution multiplies, for any number of spatial dimensions.

    Attributes:
        kernel: Taps of the kernel along each dimension.
        stride: Step between neighboring output positions.
        dilation: Step between neighboring taps.
        padding: Elements added (before, after) each dimension.
        mode: ``"zeros"``, or a mode of `torch.nn.functional.pad`.
        groups: Number of channel groups.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: str = "zeros"
    groups: int = 1

    def pad(self, x: Tensor) -> Tensor:
        """The input with its padding: ``[N, C, *spatial] -> [N, C, *padded]``."""
        amounts = list(itertools.chain.from_iterable(reversed(self.padding)))
        if not any(amounts):
            return x
        return F.pad(x, amounts, mode="constant" if self.mode == "zeros" else self.mode)

    def output_size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Output positions along each dimension for an input of size `spatial`."""
        return tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation, (before, after) in zip(
                spatial, self.kernel, self.stride, self.dilation, self.padding, strict=True
            )
        )

    def view(self, x: Tensor) -> Tensor:
        """All patches as a view of the padded input `x`: ``[N, C, *padded] -> [N, C, *output, *kernel]``."""
        for i, (kernel, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + i, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        return x


class PatchInputs(LayerInputs):
    """Inputs of a convolution: the raw tensor, from which moments of patches are computed.

    Args:
        x: Input of the convolution, ``[N, C, *spatial]``, detached.
        window: Geometry of the convolution.
    """

    def __init__(self, x: Tensor, window: Window) -> None:
        self.x = x
        self.window = window
        self.output = window.output_size(tuple(x.shape[2:]))
        self.units = x.shape[0]
        self.positions = math.prod(self.output)

    def rows(self) -> Tensor:
        """All patches: ``[*K, N, S, d_in]``."""
        window, dims = self.window, len(self.output)
        view = window.view(window.pad(self.x))
        view = view.unflatten(1, (window.groups, -1))
        order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
        rows = view.permute(order).reshape(window.groups, self.units, self.positions, -1)
        return rows if window.groups > 1 else rows[0]

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """Sums over units and positions of ``a a^T`` and ``a``."""
        rows = self.rows().flatten(-3, -2)
        return gram(rows), rows.sum(-2)

    def reduced(self) -> Tensor:
        """Patches averaged over positions: ``[*K, N, d_in]``."""
        return self.rows().mean(-2)

    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """The patches of some units at some positions."""
        chosen = PatchInputs(self.x[units], self.window)
        if len(range(self.positions)[positions]) == self.positions:
            return chosen
        return RowInputs(chosen.rows()[..., positions, :])


class RowInputs(LayerInputs):
    """Inputs that are already materialised: ``[*K, N, S, d_in]``."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.units, self.positions = rows.shape[-3], rows.shape[-2]

    def rows(self) -> Tensor:
        """All inputs: ``[*K, N, S, d_in]``."""
        return self._rows

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """Sums over units and positions of ``a a^T`` and ``a``."""
        rows = self._rows.flatten(-3, -2)
        return gram(rows), rows.sum(-2)

    def reduced(self) -> Tensor:
        """Inputs averaged over positions: ``[*K, N, d_in]``."""
        return self._rows.mean(-2)

    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """The inputs of some units at some positions."""
        return RowInputs(self._rows[..., units, positions, :])
