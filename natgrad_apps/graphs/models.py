"""Graph networks for node classification, all with ``forward(x, edge_index, edge_weight=None) -> logits [N, C]``.

What edges a network is called with: ``fixed``, those of one graph, which its convolutions normalize at the first call; ``weighted``, edges
of graphs that change (sampled batches, an inductive split), which for the networks of `WEIGHTED` were normalized before and come with
their weights; or ``whole``, all edges of other graphs at every call, which are normalized there.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import APPNP, GATConv, GCN2Conv, GCNConv, GINConv, SAGEConv, SGConv
from torch_geometric.nn.dense.linear import Linear

from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.graphs.convolutions import FixedGCNConv
from natgrad_apps.graphs.features import dropout

Edges = Literal["fixed", "weighted", "whole"]


@dataclass(frozen=True)
class ModelOptions:
    """Which network.

    Attributes:
        name: gcn, sage, gat, gin, appnp, sgc, gcnii, or module:Class for your own (called with d_in, classes and kwargs).
        hidden: Width of hidden layers (of each head for gat).
        layers: Number of graph layers (2 for most published results; propagation steps for appnp and sgc).
        dropout: Probability, before each layer but the first.
        input_dropout: Probability on the input features; above 0 the first layer's inputs change every epoch.
        kwargs: Further arguments of your own class.
    """

    name: str = "gcn"
    hidden: int = 16
    layers: int = 2
    dropout: float = 0.5
    input_dropout: float = 0.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class ConvNet(nn.Module):
    """Convolutions with an activation and dropout between them.

    Args:
        convs: The convolutions.
        options: Dropout.
        activation: Between layers.
    """

    def __init__(self, convs: list[nn.Module], options: ModelOptions, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self._dropout, self._input_dropout, self._activation = options.dropout, options.input_dropout, activation

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits ``[N, C]``."""
        x = dropout(x, self._input_dropout, self.training)
        weights = () if edge_weight is None else (edge_weight,)
        for i, conv in enumerate(self.convs):
            if i:
                x = F.dropout(self._activation(x), self._dropout, self.training)
            x = conv(x, edge_index, *weights)
        return x


class PropagatedMLP(nn.Module):
    """APPNP (Gasteiger et al. 2019): two linear layers, then personalised PageRank."""

    def __init__(self, d_in: int, classes: int, options: ModelOptions, *, edges: Edges = "fixed") -> None:
        super().__init__()
        self.first, self.last = Linear(d_in, options.hidden), Linear(options.hidden, classes)
        self.spread = APPNP(K=max(options.layers, 1), alpha=0.1, cached=edges == "fixed", normalize=edges != "weighted")
        self._options = options

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits ``[N, C]``."""
        x = F.relu(self.first(dropout(x, self._options.input_dropout, self.training)))
        logits: Tensor = self.spread(self.last(F.dropout(x, self._options.dropout, self.training)), edge_index, edge_weight)
        return logits


class GCNII(nn.Module):
    """GCNII (Chen et al. 2020): initial residuals and identity maps around shared-weight convolutions."""

    def __init__(self, d_in: int, classes: int, options: ModelOptions, *, edges: Edges = "fixed") -> None:
        super().__init__()
        self.first, self.last = Linear(d_in, options.hidden), Linear(options.hidden, classes)
        own = edges != "weighted"
        kept = {"cached": edges == "fixed", "normalize": own, "add_self_loops": own}
        self.convs = nn.ModuleList([GCN2Conv(options.hidden, 0.1, 0.5, layer=i + 1, **kept) for i in range(options.layers)])
        self._options = options

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits ``[N, C]``."""
        first = F.relu(self.first(dropout(x, self._options.input_dropout, self.training)))
        x = first
        for conv in self.convs:
            x = F.relu(conv(F.dropout(x, self._options.dropout, self.training), first, edge_index, edge_weight))
        logits: Tensor = self.last(F.dropout(x, self._options.dropout, self.training))
        return logits


def _gcn(d_in: int, classes: int, o: ModelOptions, *, edges: Edges) -> nn.Module:
    widths = _widths(d_in, classes, o)
    if edges == "fixed":
        return ConvNet([FixedGCNConv(a, b, cached=True) for a, b in widths], o)
    return ConvNet([GCNConv(a, b, normalize=edges == "whole") for a, b in widths], o)


def _sage(d_in: int, classes: int, o: ModelOptions, *, edges: Edges) -> nn.Module:
    del edges
    return ConvNet([SAGEConv(a, b) for a, b in _widths(d_in, classes, o)], o)


def _gin(d_in: int, classes: int, o: ModelOptions, *, edges: Edges) -> nn.Module:
    del edges
    return ConvNet([GINConv(nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, b))) for a, b in _widths(d_in, classes, o)], o)


def _gat(d_in: int, classes: int, o: ModelOptions, *, edges: Edges) -> nn.Module:
    del edges
    heads, convs, width = 8, [], d_in
    for _ in range(o.layers - 1):
        convs.append(GATConv(width, o.hidden, heads=heads))
        width = heads * o.hidden
    return ConvNet([*convs, GATConv(width, classes, heads=1, concat=False)], o, F.elu)


def _sgc(d_in: int, classes: int, o: ModelOptions, *, edges: Edges) -> nn.Module:
    return ConvNet([SGConv(d_in, classes, K=o.layers, cached=edges == "fixed" and o.input_dropout == 0)], o)


class Builder(Protocol):
    """Makes a network."""

    def __call__(self, d_in: int, classes: int, o: ModelOptions, /, *, edges: Edges) -> nn.Module:
        """With fresh weights."""


MODELS: dict[str, Builder] = {
    "gcn": _gcn,
    "sage": _sage,
    "gat": _gat,
    "gin": _gin,
    "appnp": PropagatedMLP,
    "sgc": _sgc,
    "gcnii": GCNII,
}
WEIGHTED = ("gcn", "appnp", "gcnii")
"""Networks that take normalized edges with their weights, on graphs that change."""
SUMS_FIRST = ("sage", "gin", "sgc")
"""Networks that sum features over neighbours before they multiply them, so that features must be dense."""


def build_model(options: ModelOptions, d_in: int, classes: int, *, edges: Edges = "fixed") -> nn.Module:
    """A network with fresh weights from torch's global generator.

    Args:
        options: Which one.
        d_in: Number of features.
        classes: Number of classes.
        edges: What edges it will be called with; see the module.

    Raises:
        ConfigError: There is no such network, or the user's class cannot be imported or built, or keeps one graph's edges though it will
            see several.
    """
    if ":" in options.name:
        return _own(options, d_in, classes, edges)
    if options.name not in MODELS:
        raise unknown_name("model (or module:Class for your own)", options.name, MODELS)
    if options.kwargs:
        raise ConfigError(f"model.kwargs are for your own module:Class; {options.name!r} takes hidden, layers and dropout")
    return MODELS[options.name](d_in, classes, options, edges=edges)


def _own(options: ModelOptions, d_in: int, classes: int, edges: Edges) -> nn.Module:
    module, _, name = options.name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # where the user's file lies; a console script does not look there
    try:
        made = getattr(importlib.import_module(module), name)(d_in, classes, **options.kwargs)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"model {options.name!r} cannot be built with d_in={d_in}, classes={classes}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model {options.name!r} gave a {type(made).__name__}; a torch.nn.Module is needed")
    keeping = [where for where, part in made.named_modules() if getattr(part, "cached", False) is True]
    if keeping and edges != "fixed":
        raise ConfigError(
            f"model {options.name!r} is called with several graphs here, but {', '.join(keeping)} keeps the edges of the first one; build "
            "it with cached=False"
        )
    return made


def _widths(d_in: int, classes: int, options: ModelOptions) -> list[tuple[int, int]]:
    widths = [d_in, *[options.hidden] * (options.layers - 1), classes]
    return list(itertools.pairwise(widths))


def check_logits(logits: Any, nodes: int, classes: int) -> Tensor:
    """Return the output of a network if it has one row a node and one column a class.

    Raises:
        ConfigError: It does not.
    """
    if not isinstance(logits, Tensor) or logits.shape != torch.Size((nodes, classes)):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"the model must return logits of shape {(nodes, classes)}, one row a node; got {given}")
    return logits
