"""Rows that are pooled into terms of different sizes, as the nodes of several graphs are, under the reduce rule."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad_apps.layers.base import LayerInputs
from natgrad_apps.layers.linear import LinearInputs
from natgrad_apps.linalg.products import gram


class GroupedInputs(LayerInputs):
    """Inputs averaged over the rows of each term (Eschenhagen et al. 2023, section 3.3: K-FAC-reduce averages inputs, sums gradients).

    Args:
        inputs: With one unit a row; their positions are averaged too.
        groups: Term of each row, ``[rows]``.
        terms: Number of terms.
    """

    def __init__(self, inputs: LayerInputs, groups: Tensor, terms: int) -> None:
        self._inputs, self._groups = inputs, groups
        self.units, self.positions = terms, 1

    def rows(self) -> Tensor:
        """``[*K, terms, 1, d_in]``."""
        rows = self._inputs.reduced()
        counts = torch.bincount(self._groups, minlength=self.units).to(rows.dtype)
        return (sum_over(rows, self._groups, self.units) / counts.unsqueeze(-1)).unsqueeze(-2)

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """Of the averages."""
        rows = self.reduced()
        return gram(rows), rows.sum(-2)

    def reduced(self) -> Tensor:
        """The averages, ``[*K, terms, d_in]``."""
        return self.rows().squeeze(-2)

    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """Selected terms."""
        return LinearInputs(self.rows()[..., units, positions, :])


def sum_over(rows: Tensor, groups: Tensor, terms: int) -> Tensor:
    """Sums of the rows of each term: ``[*K, rows, d] -> [*K, terms, d]``."""
    return rows.new_zeros((*rows.shape[:-2], terms, rows.shape[-1])).index_add_(-2, groups, rows)
