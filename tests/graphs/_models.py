"""Small graphs and models for the tests, and their exact Fisher by `torch.func`, which nothing of the package takes part in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from tests._dense import Root

PAIRS = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 3)]
"""Undirected edges of a graph of five nodes."""


def small_graph() -> Tensor:
    """``edge_index: [2, 12]``."""
    return torch.tensor([*PAIRS, *[(b, a) for a, b in PAIRS]]).mT.contiguous()


def dense_adjacency(edge_index: Tensor, nodes: int) -> Tensor:
    """``D^-1/2 (A + I) D^-1/2``, by its definition."""
    matrix = torch.eye(nodes, dtype=torch.float64)
    for source, target in edge_index.mT.tolist():
        matrix[target, source] += 1
    degree = matrix.sum(1)
    return matrix / (degree.unsqueeze(1) * degree.unsqueeze(0)).sqrt()


class TwoLayers(nn.Module):
    """GCN - tanh - GCN."""

    def __init__(self, d_in: int = 4, hidden: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.first, self.last = GCNConv(d_in, hidden), GCNConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.first(x, edge_index)), edge_index)
        return result


class OneLayer(nn.Module):
    """A GCN layer."""

    def __init__(self, d_in: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.last = GCNConv(d_in, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        result: Tensor = self.last(x, edge_index)
        return result


def exact_block(model: nn.Module, inputs: tuple[Tensor, Tensor], names: tuple[str, str], root: Root, weights: Tensor) -> Tensor:
    """``sum_t w_t J_t^T root_t root_t^T J_t / sum_t w_t`` for the matrix ``[W b]`` of one layer, ``[d_out d_in, d_out d_in]``."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    chosen = {name: parameters[name] for name in names}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(model, {**parameters, **values}, inputs)
        return result

    found = jacrev(outputs)(chosen)
    jac = torch.cat([found[names[0]], found[names[1]].unsqueeze(-1)], -1).flatten(-2)
    pulled = torch.einsum("ted,tec->tcd", jac, root)
    total: Tensor = torch.einsum("t,tcd,tcf->df", weights, pulled, pulled) / weights.sum()
    return total


def softmax_gradient(model: nn.Module, inputs: tuple[Tensor, Tensor], labels: Tensor, weights: Tensor) -> None:
    """Leave the gradient of the weighted mean loss in the parameters."""
    losses = F.cross_entropy(model(*inputs), labels, reduction="none")
    ((losses * weights).sum() / weights.sum()).backward()
