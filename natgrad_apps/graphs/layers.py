r"""Layers of torch-geometric in canonical form. Importing this module registers them.

A convolution ``S = A H W^T + b`` has one gradient and two Kronecker factorisations of its Fisher block. **Aggregated** (Izadi et al. 2020):
inputs ``(A H)_i``, output gradients at ``S_i``, the bias included; exact for the last layer, because node ``i``'s likelihood term depends
on row ``i`` alone. **Pre-aggregation**: inputs ``H_i``, output gradients ``(A^T g)_i`` at ``H W^T``, the bias of the convolution apart from
the weight; what a hook on the inner linear layer sees. `factorization` chooses between them.

| module | aggregated by |
|---|---|
| `GCNConv`, `FixedGCNConv` | this adapter, `AGGREGATED` |
| `GCN2Conv` (GCNII) with shared weights | this adapter, always |
| `SAGEConv`, `GINConv`, `SGConv` | themselves: they sum before their linear layers, which `GraphLinearAdapter` and the core's cover |
| `GATConv`, `GATv2Conv` | nobody: the sum depends on the weight through the attention, so their linear parts are pre-aggregation, their
  bias a block of its own, and the attention vectors use the diagonal fallback |
| `APPNP` | nobody: it has no weight; the linear layers before it are pre-aggregation |
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.nn import ChebConv, GATConv, GATv2Conv, GCN2Conv, GCNConv, MessagePassing, TAGConv
from torch_geometric.nn.dense.linear import Linear

from natgrad_apps.errors import unknown_name
from natgrad_apps.graphs.aggregation import AggregatedInputs, Edges
from natgrad_apps.graphs.convolutions import FixedGCNConv
from natgrad_apps.layers.base import Arguments, Geometry, LayerInputs
from natgrad_apps.layers.discover import register
from natgrad_apps.layers.linear import LinearAdapter, LinearInputs

AGGREGATED, PRE_AGGREGATION = "aggregated", "pre_aggregation"
FACTORIZATIONS = (AGGREGATED, PRE_AGGREGATION)

_choice: ContextVar[str] = ContextVar("factorization", default=AGGREGATED)


@contextlib.contextmanager
def factorization(kind: str) -> Iterator[None]:
    """Which factorisation the optimizers built inside use for `GCNConv`, for as long as they live; ``"aggregated"`` without it.

    ::

        with factorization("pre_aggregation"):
            optimizer = NaturalGradient(model)

    Args:
        kind: ``"aggregated"`` or ``"pre_aggregation"``.

    Raises:
        ConfigError: Another word.
    """
    if kind not in FACTORIZATIONS:
        raise unknown_name("factorization", str(kind), FACTORIZATIONS)
    token = _choice.set(kind)
    try:
        yield
    finally:
        _choice.reset(token)


@register
class GraphLinearAdapter(LinearAdapter):
    """`torch_geometric.nn.Linear`, which is no `torch.nn.Linear`."""

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (Linear,)
    input_name: ClassVar[str] = "x"

    def geometry(self, module: nn.Module) -> Geometry:
        """``d_out`` and ``d_in`` are the channels."""
        assert isinstance(module, Linear)
        return Geometry(d_in=module.in_channels, d_out=module.out_channels)


class _NodeAdapter(LinearAdapter):
    """A convolution whose output rows are nodes."""

    input_name: ClassVar[str] = "x"

    def inputs(self, module: nn.Module, x: Tensor) -> LinearInputs:
        """Refused: the edges are needed."""
        raise TypeError(f"{type(self).__name__} needs the edges of the call to {type(module).__name__}; use call_inputs")


@register
class GCNConvAdapter(_NodeAdapter):
    """`GCNConv`, aggregated: ``x~ = A_hat H``, gradients at the output, ``[W b]`` one matrix.

    A convolution that sums otherwise than over weighted neighbours (another ``aggr``, messages of a subclass) is left to its linear layer.
    """

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (GCNConv, FixedGCNConv)

    def covers(self, module: nn.Module) -> bool:
        """Whether the sum over neighbours is the weighted one, and `factorization` is aggregated."""
        assert isinstance(module, GCNConv)
        return _choice.get() == AGGREGATED and _sums_linearly(module, GCNConv) and type(module.lin) is Linear and module.lin.bias is None

    def geometry(self, module: nn.Module) -> Geometry:
        """``d_out`` and ``d_in`` of the inner linear layer."""
        assert isinstance(module, GCNConv)
        return Geometry(d_in=module.lin.in_channels, d_out=module.lin.out_channels)

    def weight(self, module: nn.Module) -> object:
        """That of the inner linear layer."""
        assert isinstance(module, GCNConv)
        return module.lin.weight

    def children(self, module: nn.Module) -> Sequence[nn.Module]:
        """The inner linear layer."""
        assert isinstance(module, GCNConv)
        return (module.lin,)

    def call_inputs(self, module: nn.Module, x: Tensor, arguments: Arguments) -> LayerInputs:
        """``A_hat H``, with the normalisation that the convolution uses."""
        assert isinstance(module, GCNConv)
        edges = _edges(module, x, arguments.get(1, "edge_index"), arguments.get(2, "edge_weight"), improved=module.improved)
        return AggregatedInputs(x, edges)


@register
class GCN2ConvAdapter(_NodeAdapter):
    """`GCN2Conv` of GCNII with shared weights (Chen et al. 2020, equation 5).

    ``S = (1 - beta) M + beta M W``, ``M = (1 - alpha) A_hat H + alpha H_0``. The inputs are ``beta M``; the matrix is ``W^T``.
    """

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (GCN2Conv,)

    def covers(self, module: nn.Module) -> bool:
        """Whether one weight serves both parts."""
        assert isinstance(module, GCN2Conv)
        return _sums_linearly(module, GCN2Conv) and module.weight2 is None

    def geometry(self, module: nn.Module) -> Geometry:
        """A square matrix."""
        assert isinstance(module, GCN2Conv)
        return Geometry(d_in=module.channels, d_out=module.channels)

    def weight(self, module: nn.Module) -> object:
        """``weight1``."""
        assert isinstance(module, GCN2Conv)
        return module.weight1

    def weight_to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The transposed weight."""
        del module
        return weight.mT

    def matrix_to_weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The transposed matrix."""
        del module
        return matrix.mT

    def call_inputs(self, module: nn.Module, x: Tensor, arguments: Arguments) -> LayerInputs:
        """``beta M``."""
        assert isinstance(module, GCN2Conv)
        edges = _edges(module, x, arguments.get(2, "edge_index"), arguments.get(3, "edge_weight"), improved=False)
        first = arguments.get(1, "x_0").detach().to(x.dtype)[: len(x)]
        joined = (1 - module.alpha) * edges.aggregate(x) + module.alpha * first
        return LinearInputs((module.beta * joined).unsqueeze(1))


@register
class ConvBiasAdapter(_NodeAdapter):
    """The bias that a convolution adds to its output: inputs are ones, and the block is the exact one of K-FAC, ``[d_out, d_out]``."""

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (GCNConv, FixedGCNConv, GATConv, GATv2Conv, ChebConv, TAGConv)

    def covers(self, module: nn.Module) -> bool:
        """Whether there is a bias."""
        return isinstance(self.bias(module), nn.Parameter)

    def weight(self, module: nn.Module) -> object:
        """None: linear layers inside the convolution are layers of their own."""
        del module
        return None

    def geometry(self, module: nn.Module) -> Geometry:
        """Only the bias column."""
        bias = self.bias(module)
        assert isinstance(bias, nn.Parameter)
        return Geometry(d_in=0, d_out=bias.numel())

    def call_inputs(self, module: nn.Module, x: Tensor, arguments: Arguments) -> LinearInputs:
        """Only the number of nodes is used."""
        del module, arguments
        return LinearInputs(torch.empty((x.shape[0], 1, 0), dtype=x.dtype, device=x.device))


def _sums_linearly(module: MessagePassing, known: type[MessagePassing]) -> bool:
    """Whether messages are weighted neighbours and are added up."""
    same = all(getattr(type(module), name) is getattr(known, name) for name in ("message", "message_and_aggregate", "aggregate", "update"))
    return same and module.aggr in {"add", "sum"} and module.flow == "source_to_target" and getattr(module, "decomposed_layers", 1) == 1


def _edges(module: Any, x: Tensor, edge_index: Any, edge_weight: Tensor | None, *, improved: bool) -> Edges:
    """The edges that a convolution sums over, normalized as it does; its own cache is read where there is one."""
    if not module.normalize:
        return Edges.of(edge_index, edge_weight, x)
    if module._cached_edge_index is not None:
        index, weight = module._cached_edge_index
        return Edges.of(index, weight, x)
    if module._cached_adj_t is not None:
        return Edges.of(module._cached_adj_t, None, x)
    return Edges.of(edge_index, edge_weight, x).normalized(improved=improved, add_self_loops=module.add_self_loops)
