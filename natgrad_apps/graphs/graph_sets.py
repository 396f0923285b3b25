"""Sets of small graphs with one class each: an embedded synthetic one, and those of the TU Dortmund collection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import degree

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.data import cache_folder, quietly_read

MOTIFS = "motifs"
TU = "tu:"
MOTIF_NAMES = ("ring of six", "grid of six", "clique of four")
_DEGREES = 8
_RING = [(i, (i + 1) % 6) for i in range(6)]
_GRID = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]
_CLIQUE = [(i, j) for i in range(4) for j in range(i + 1, 4)]


@dataclass(frozen=True)
class GraphSet:
    """Small graphs.

    Attributes:
        name: What the set is called.
        graphs: Each with ``x: [n, d]`` and ``edge_index``.
        y: Class of each.
        classes: Number of classes.
        class_names: Names of the classes; empty if they have none.
    """

    name: str
    graphs: tuple[Data, ...]
    y: Tensor
    classes: int
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Its size in words."""
        return f"{self.name}: {len(self.graphs):,} graphs, {self.features:,} features, {self.classes} classes"

    @property
    def features(self) -> int:
        """``d``."""
        return int(self.graphs[0].x.shape[1])


@dataclass(frozen=True)
class GraphSplit:
    """Indices of graphs.

    Attributes:
        train: Graphs that carry the loss.
        val: Graphs that choose the epoch.
        test: Graphs that accuracy is reported on.
        seed: Of the split.
        name: For results.
    """

    train: Tensor
    val: Tensor
    test: Tensor
    seed: int
    name: str = "graphs"

    def __str__(self) -> str:
        """In words, to stand beside every number."""
        sizes = f"{len(self.train)} train, {len(self.val)} validation, {len(self.test)} test graphs"
        return f"graphs split: {sizes}, split seed {self.seed}"


def load_graph_set(name: str, cache: Path | None = None) -> GraphSet:
    """A set by name.

    Args:
        name: ``motifs``, or ``tu:NAME`` for a set of the TU collection, which torch-geometric downloads unless its files are in the cache.
        cache: Writable folder; None for ``graphs/`` in the user's cache directory.

    Raises:
        ConfigError: There is no such set, or it can be neither read nor downloaded.
    """
    if name == MOTIFS:
        return motifs()
    if not name.startswith(TU) or not name[len(TU) :]:
        raise ConfigError(f"graph classification knows the datasets {MOTIFS!r} and 'tu:NAME', such as tu:MUTAG; got {name!r}")
    from torch_geometric.datasets import TUDataset  # noqa: PLC0415 - seconds

    root = cache_folder(cache) / "tu"
    found: Any = quietly_read(name, lambda: TUDataset(str(root), name[len(TU) :]))
    graphs = tuple(found[i] for i in range(len(found)))
    if not found.num_node_features:
        graphs = tuple(_with_degrees(graph) for graph in graphs)
    y = torch.cat([graph.y for graph in graphs]).long()
    return GraphSet(name, graphs, y, int(found.num_classes))


def motifs(count: int = 300, seed: int = 0) -> GraphSet:
    """Random trees with a motif tied to one node: the class is the motif.

    A tree has 8 to 16 nodes; node ``k`` is tied to one of the nodes before it, each as likely. One further edge ties a random node of it to
    the first node of the motif, and the nodes are put in random order. Features are one-hot degrees up to 8, so a single node tells little.

    Args:
        count: Graphs, the classes in turn.
        seed: Of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    graphs, shapes = [], (_RING, _GRID, _CLIQUE)
    for k in range(count):
        shape = shapes[k % 3]
        n = int(torch.randint(8, 17, (1,), generator=generator))
        parents = [int(torch.randint(i, (1,), generator=generator)) for i in range(1, n)]
        edges = [(i, parent) for i, parent in enumerate(parents, start=1)]
        edges += [(n + a, n + b) for a, b in shape]
        edges.append((int(torch.randint(n, (1,), generator=generator)), n))
        order = torch.randperm(n + 1 + max(max(pair) for pair in shape), generator=generator)
        links = order[torch.tensor(edges).mT]
        graphs.append(_with_degrees(Data(edge_index=torch.cat([links, links.flip(0)], 1), num_nodes=len(order))))
    return GraphSet(MOTIFS, tuple(graphs), torch.arange(count) % 3, 3, MOTIF_NAMES)


def split_graphs(data: GraphSet, train: float, val: float, seed: int) -> GraphSplit:
    """A random split that takes the same share of each class.

    Args:
        data: The graphs.
        train: Share of the graphs.
        val: Share of the graphs; the rest is tested.
        seed: Of the order.

    Raises:
        ConfigError: A part would be empty.
    """
    order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(seed))
    parts: list[list[Tensor]] = [[], [], []]
    for c in range(data.classes):
        own = order[data.y[order] == c]
        first, second = round(train * len(own)), round((train + val) * len(own))
        for part, chosen in zip(parts, (own[:first], own[first:second], own[second:]), strict=True):
            part.append(chosen)
    made = [torch.cat(part).sort().values for part in parts]
    if not all(len(part) for part in made):
        raise ConfigError(
            f"{data.name} has {len(data.y)} graphs, too few to train on {train}, validate on {val} and test on the rest of them"
        )
    return GraphSplit(made[0], made[1], made[2], seed)


def _with_degrees(graph: Data) -> Data:
    """The graph with one-hot degrees, the largest ones together, as features."""
    degrees = degree(graph.edge_index[1], graph.num_nodes).long().clamp_max(_DEGREES)
    graph.x = torch.nn.functional.one_hot(degrees, _DEGREES + 1).float()
    return graph
