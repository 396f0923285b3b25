"""What is preconditioned, and what uses the diagonal fallback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch_geometric.nn import MessagePassing

from natgrad_apps.graphs.layers import AGGREGATED, PRE_AGGREGATION, ConvBiasAdapter, GCN2ConvAdapter, GCNConvAdapter
from natgrad_apps.layers.base import LayerAdapter
from natgrad_apps.preconditioner import Preconditioner

SELF_AGGREGATING = ("SAGEConv", "GINConv", "GINEConv", "SGConv", "GraphConv", "ClusterGCNConv")
"""Convolutions that sum over neighbours before their linear layers."""


@dataclass(frozen=True)
class Covered:
    """One block.

    Attributes:
        name: Name of the block.
        module: Class of the module, or ``"parameter"``.
        treatment: How its Fisher block is approximated.
        shape: ``[d_out, d_in]``, the bias column included.
        parameters: Number of weights.
        share: Part of all trainable weights.
    """

    name: str
    module: str
    treatment: str
    shape: tuple[int, ...]
    parameters: int
    share: float


def coverage(model: nn.Module, preconditioner: Preconditioner) -> list[Covered]:
    """Every block of a model, layers first.

    Args:
        model: The model that the preconditioner is of.
        preconditioner: Such as ``optimizer.preconditioner``.
    """
    total = sum(p.numel() for p in preconditioner.blocks.parameters)
    inside = _linear_parts(model)
    found = []
    for name, block in preconditioner.blocks.items():
        count = sum(p.numel() for p in block.parameters)
        kind, treatment = "parameter", "diagonal fallback"
        if block.layer is not None:
            module = block.layer.modules[0]
            kind = type(module).__name__
            treatment = f"{type(block.curvature).__name__}, {_place(block.layer.adapter, inside.get(id(module)))}"
        found.append(Covered(name, kind, treatment, block.spec.shape, count, count / total))
    return found


def describe(rows: Sequence[Covered]) -> str:
    """A table of `coverage` as text."""
    header = ("block", "module", "treatment", "shape", "weights", "share")
    cells = [(r.name, r.module, r.treatment, "x".join(map(str, r.shape)), str(r.parameters), f"{100 * r.share:.2f}%") for r in rows]
    widths = [max(len(row[i]) for row in (header, *cells)) for i in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (header, *cells)]
    return "\n".join(lines)


def _linear_parts(model: nn.Module) -> dict[int, str]:
    """Class of the convolution that a module lies in, by the module's identity."""
    found = {}
    for module in model.modules():
        if isinstance(module, MessagePassing):
            found.update({id(child): type(module).__name__ for child in module.modules() if child is not module})
    return found


def _place(adapter: LayerAdapter, parent: str | None) -> str:
    if isinstance(adapter, (GCNConvAdapter, GCN2ConvAdapter)) or parent in SELF_AGGREGATING:
        return AGGREGATED
    if isinstance(adapter, ConvBiasAdapter):
        return "bias of the output"
    return PRE_AGGREGATION if parent is not None else "per node"
