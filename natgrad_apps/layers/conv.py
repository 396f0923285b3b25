"""Convolutions in one, two and three dimensions: each output position is a shared position whose input is a patch."""

from __future__ import annotations

import math
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from natgrad_apps.layers._patches import PatchInputs
from natgrad_apps.layers._window import Window
from natgrad_apps.layers.base import Geometry, LayerAdapter, LayerInputs

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvAdapter(LayerAdapter):
    """Canonical form of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` (Grosse & Martens 2016, "KFC", section 3).

    ``N`` are the images, ``S`` the output positions, ``d_in`` the elements of a patch (channels of the group, then kernel
    taps), ``d_out`` the output channels of a group; ``K`` the groups. An input without a batch dimension is one image.
    """

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def geometry(self, module: nn.Module) -> Geometry:
        """Sizes of the weight matrix."""
        conv = _conv(module)
        taps = math.prod(conv.kernel_size)
        return Geometry(conv.in_channels // conv.groups * taps, conv.out_channels // conv.groups, conv.groups if conv.groups > 1 else 0)

    def inputs(self, module: nn.Module, x: Tensor) -> LayerInputs:
        """The patches of one call's input ``[N, c_in, *spatial]`` or ``[c_in, *spatial]``."""
        conv = _conv(module)
        dims = len(conv.kernel_size)
        return PatchInputs(x.unsqueeze(0) if x.dim() == dims + 1 else x, window_of(conv))

    def output_gradients(self, module: nn.Module, g: Tensor) -> Tensor:
        """``[N, c_out, *output]`` or ``[c_out, *output]`` as ``[*K, N, S, d_out]``, a view."""
        conv = _conv(module)
        dims = len(conv.kernel_size)
        batched = g.unsqueeze(0) if g.dim() == dims + 1 else g
        flat = batched.flatten(2)
        if conv.groups == 1:
            return flat.mT
        return flat.reshape(flat.shape[0], conv.groups, conv.out_channels // conv.groups, flat.shape[2]).permute(1, 0, 3, 2)

    def weight_to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """``[c_out, c_in / groups, *kernel]`` as ``[*K, d_out, d_in]``, a view."""
        geometry = self.geometry(module)
        return weight.reshape(*geometry.lead, geometry.d_out, geometry.d_in)

    def matrix_to_weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """``[*K, d_out, d_in]`` as ``[c_out, c_in / groups, *kernel]``, a view."""
        return matrix.reshape(_conv(module).weight.shape)


def window_of(conv: Convolution) -> Window:
    """The geometry of a convolution's patches, with padding spelled out."""
    if conv.padding == "valid":
        padding = tuple((0, 0) for _ in conv.kernel_size)
    elif conv.padding == "same":
        totals = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    else:
        padding = tuple((int(amount), int(amount)) for amount in conv.padding)
    return Window(tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation), padding, conv.padding_mode, conv.groups)


def _conv(module: nn.Module) -> Convolution:
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"ConvAdapter handles nn.Conv1d, nn.Conv2d and nn.Conv3d, got {type(module).__name__}")
    return module
