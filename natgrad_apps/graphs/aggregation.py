"""The weighted edges along which a convolution sums, and the inputs of a layer after that sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import is_sparse, to_edge_index

from natgrad_apps.errors import ShapeError
from natgrad_apps.layers._sparse import CHUNK, chunked_moment
from natgrad_apps.layers.base import LayerInputs
from natgrad_apps.layers.linear import LinearInputs
from natgrad_apps.linalg.products import gram
from natgrad_apps.linalg.sparse import SparseMatrix


@dataclass(frozen=True)
class Edges:
    """A linear map over nodes: ``(A x)_i = sum_{e: target_e = i} weight_e x_{source_e}``.

    Attributes:
        source: ``[E]``, node indices.
        target: ``[E]``, node indices.
        weight: ``[E]``.
        nodes: Number of nodes ``N``.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    nodes: int

    @classmethod
    def of(cls, edge_index: Any, edge_weight: Tensor | None, x: Tensor) -> Edges:
        """From a PyG ``edge_index: [2, E]`` (source, target) or a sparse transposed adjacency matrix; a missing weight is 1.

        Args:
            edge_index: The edges.
            edge_weight: Their weights ``[E]``.
            x: Node features ``[N, d]``; they give the number of nodes, the dtype and the device.

        Raises:
            ShapeError: The features have another number of dimensions.
        """
        if x.ndim != 2:
            raise ShapeError(
                f"a graph layer got features of shape {tuple(x.shape)}; its factors need [nodes, features]: join several graphs into one, "
                "as torch_geometric.data.Batch does"
            )
        if is_sparse(edge_index):
            (row, column), edge_weight = to_edge_index(edge_index)
            source, target = column, row
        else:
            source, target = edge_index[0], edge_index[1]
        weight = torch.ones(len(source), dtype=x.dtype, device=x.device) if edge_weight is None else edge_weight.detach().to(x.dtype)
        return cls(source, target, weight, x.shape[0])

    def normalized(self, *, improved: bool, add_self_loops: bool) -> Edges:
        """``D^-1/2 (A + I) D^-1/2`` (Kipf & Welling 2017, equation 2); ``2 I`` if improved, no ``I`` without self-loops."""
        stacked = torch.stack([self.source, self.target])
        index, weight = gcn_norm(stacked, self.weight, self.nodes, improved, add_self_loops, "source_to_target", self.weight.dtype)
        return Edges(index[0], index[1], weight, self.nodes)

    def into(self, targets: Tensor) -> Edges:
        """The edges that end in some nodes, which are counted from 0 in the order given."""
        place = torch.full((self.nodes,), -1, dtype=torch.int64, device=targets.device)
        place[targets] = torch.arange(len(targets), device=targets.device)
        found = place[self.target]
        kept = found >= 0
        return Edges(self.source[kept], found[kept], self.weight[kept], len(targets))

    def aggregate(self, x: Tensor) -> Tensor:
        """``A x``, dense, by a sparse product: ``E d`` multiply-adds and no ``[E, d]`` tensor; fewer where ``x`` is sparse too."""
        if isinstance(x, SparseMatrix):
            return x.combine_rows(self.target, self.source, self.weight, self.nodes)
        matrix = torch.sparse_coo_tensor(
            torch.stack([self.target, self.source]), self.weight, (self.nodes, x.shape[0]), check_invariants=False
        )
        result: Tensor = torch.sparse.mm(matrix, x)
        return result


class AggregatedInputs(LayerInputs):
    """``x~ = A x``, what a convolution multiplies by its weight if it sums over neighbours first; computed for the rows asked for only.

    Args:
        x: Node features ``[N, d]``.
        edges: The map ``A``.
    """

    def __init__(self, x: Tensor, edges: Edges) -> None:
        self._x, self._edges = x, edges
        self.units, self.positions = x.shape[0], 1
        self.chunk = CHUNK if isinstance(x, SparseMatrix) else None

    def rows(self) -> Tensor:
        """All inputs, ``[N, 1, d]``."""
        return self._edges.aggregate(self._x).unsqueeze(1)

    def unit_rows(self, units: Tensor) -> Tensor:
        """``[units, 1, d]``; only the edges that end in these nodes are followed."""
        return self._edges.into(units).aggregate(self._x).unsqueeze(1)

    def second_moment(self) -> tuple[Tensor, Tensor]:
        """``sum x~ x~^T`` and ``sum x~``."""
        if self.chunk is not None:
            return chunked_moment(self)
        rows = self.rows().squeeze(1)
        return gram(rows), rows.sum(0)

    def reduced(self) -> Tensor:
        """The inputs themselves: a node has one position."""
        return self.rows().squeeze(1)

    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """Selected rows."""
        kept = torch.arange(self.units, device=self._x.device)[units]
        return LinearInputs(self.unit_rows(kept)[:, positions])
