"""Calls of a layer in one forward pass, as the moments of a batch read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from natgrad_apps.layers.base import LayerInputs


@dataclass(frozen=True)
class Use:
    """One call of a layer: its inputs, and its output gradients ``[*K, N, S, d_out]`` for each Fisher column (none with ``forward_only``).

    Units are sub-sampled already; ``fraction`` is the part that was kept. ``chosen`` are the positions that second
    moments of rows use; sums over the positions of a unit need all of them, because their cross terms have no unbiased
    estimate from a part. ``weights: [N, S]`` are those of the likelihood's terms where each row has its own term, and
    ``support`` the units that have a weight, if they are known.
    """

    inputs: LayerInputs | None
    gradients: tuple[Tensor, ...]
    units: int
    positions: int
    fraction: float = 1.0
    chosen: slice = field(default_factory=lambda: slice(None))
    weights: Tensor | None = None
    support: Tensor | None = None

    @property
    def row_inputs(self) -> LayerInputs | None:
        """Inputs at the chosen positions."""
        return self.inputs if self.inputs is None or self.chosen == slice(None) else self.inputs.subsample(slice(None), self.chosen)

    @property
    def row_weight(self) -> float:
        """What undoes the sub-sampling of units and positions in a sum over rows."""
        return self.positions / (self.fraction * len(range(self.positions)[self.chosen]))


def joined(uses: Sequence[Use]) -> Sequence[Use]:
    """Calls of the same units as one call, where their inputs can be joined: the same moments from fewer and larger products."""
    first, *others = uses
    if not others or any(use.units != first.units or use.fraction != first.fraction or use.weights is not None for use in uses):
        return uses
    inputs = [use.inputs for use in uses if use.inputs is not None]
    whole = inputs[0].joined(inputs[1:]) if len(inputs) == len(uses) else None
    if whole is None:
        return uses
    columns = zip(*(use.gradients for use in uses), strict=True)
    return [replace(first, inputs=whole, gradients=tuple(join(list(column)) for column in columns), positions=whole.positions)]


def same_units(uses: Sequence[Use]) -> list[list[Use]]:
    """Group calls by their number of units; calls of different sizes cannot belong to the same units."""
    groups: dict[int, list[Use]] = {}
    for use in uses:
        groups.setdefault(use.units, []).append(use)
    return list(groups.values())


def join(parts: list[Tensor]) -> Tensor:
    """Rows ``[*K, N, S, d]`` of several calls one after the other along ``S``."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
