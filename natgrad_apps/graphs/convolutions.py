"""Convolutions of our own: those of torch-geometric in a form that is cheaper where the graph does not change."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from natgrad_apps.linalg.sparse import SparseMatrix


class FixedGCNConv(GCNConv):  # type: ignore[misc]  # torch-geometric has no types
    """`GCNConv` on one graph: its sum over neighbours is a product with a sparse matrix that is made at the first call.

    The same numbers up to rounding, without a message for each edge: with 491,722 edges and 64 channels an epoch takes a fifth of the time
    (`benchmarks/sparse_features.py`).
    """

    _matrix: SparseMatrix | None = None

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """``A_hat x W^T + b``, ``[N, d_out]``."""
        if x.device.type == "mps":  # torch has no sparse products there
            plain: Tensor = super().forward(x, edge_index, edge_weight)
            return plain
        if self._matrix is None:
            n = x.shape[0]
            index, weight = gcn_norm(edge_index, edge_weight, n, self.improved, self.add_self_loops, self.flow, x.dtype)
            self._cached_edge_index = index, weight
            self._matrix = SparseMatrix.from_triplets(index[1], index[0], weight, (n, n))
        out = torch.mm(self._matrix, self.lin(x))
        return out if self.bias is None else out + self.bias

    def reset_parameters(self) -> None:
        """Fresh weights; the graph is forgotten."""
        super().reset_parameters()
        self._matrix = None
