"""Which input elements a convolution multiplies: geometry only, for any number of spatial dimensions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution.

    Attributes:
        kernel: Taps of the kernel along each dimension.
        stride: Step between neighboring output positions.
        dilation: Step between neighboring taps.
        padding: Elements added (before, after) each dimension.
        mode: ``"zeros"``, or a mode of `torch.nn.functional.pad`: ``"circular"``, ``"reflect"``, ``"replicate"``.
        groups: Number of channel groups.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: str = "zeros"
    groups: int = 1

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    def unpadded(self) -> Window:
        """The same window over an input that has been padded."""
        return Window(self.kernel, self.stride, self.dilation, ((0, 0),) * self.dims, "zeros", self.groups)

    def pad(self, x: Tensor) -> Tensor:
        """The input with its padding: ``[N, C, *spatial] -> [N, C, *padded]``."""
        amounts = list(itertools.chain.from_iterable(reversed(self.padding)))
        if not any(amounts):
            return x
        return F.pad(x, amounts, mode="constant" if self.mode == "zeros" else self.mode)

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Output positions along each dimension for an input of size `spatial`."""
        return tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation, (before, after) in zip(
                spatial, self.kernel, self.stride, self.dilation, self.padding, strict=True
            )
        )

    def view(self, x: Tensor, start: int = 0) -> Tensor:
        """Patches of a padded input as a view: ``[N, C, *padded] -> [N, C, *output, *kernel]``.

        Args:
            x: The input, padded.
            start: First spatial dimension that is unfolded; those before stay as they are.
        """
        for i in range(start, self.dims):
            x = x.unfold(2 + i, self.dilation[i] * (self.kernel[i] - 1) + 1, self.stride[i])[..., :: self.dilation[i]]
        return x

    def coverage(self, dim: int, size: int, like: Tensor) -> Tensor:
        """How often each tap meets each input element along one dimension, over all output positions: ``[kernel, size]``.

        A sum of patches is the input times these matrices, one for each dimension. Padding is part of them.
        """
        return _coverage(self, dim, size, like.dtype, like.device)


@functools.lru_cache(maxsize=256)
def _coverage(window: Window, dim: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    before, after = window.padding[dim]
    output = (size + before + after - window.dilation[dim] * (window.kernel[dim] - 1) - 1) // window.stride[dim] + 1
    # Padding tells which input element stands at each place; -1 is a zero.
    source = torch.arange(size, dtype=torch.float64).reshape(1, 1, size)
    if before or after:
        if window.mode == "zeros":
            source = F.pad(source, (before, after), value=-1.0)
        else:
            source = F.pad(source, (before, after), mode=window.mode)
    taps = torch.arange(window.kernel[dim]).unsqueeze(1) * window.dilation[dim]
    met = source.flatten().long()[taps + torch.arange(output) * window.stride[dim]]
    counts = torch.zeros(window.kernel[dim], size + 1, dtype=torch.float64)
    # Zeros are counted in a column of their own, which is then dropped.
    counts.scatter_add_(1, torch.where(met < 0, size, met), torch.ones_like(met, dtype=torch.float64))
    return counts[:, :size].to(device, dtype)
