r"""Neighbour sampling: mini-batches of a large graph, without compiled extensions.

A batch begins with its seed nodes. Each hop adds, for every node that the hop before found, some of its in-neighbours, drawn without
replacement; the sampled edges are kept, from neighbour to node (Hamilton, Ying & Leskovec, Inductive representation learning on large
graphs, NeurIPS 2017, arXiv 1706.02216, algorithm 2). With as many hops as the network has layers, and every neighbour taken, a seed's
output is that of the whole graph.

A layer that sums *weighted* neighbours (GCN) needs the weights of the whole graph, because a sampled degree is another one; so the
normalized adjacency is sampled, self-loops always kept. Of ``D`` neighbours ``k`` are taken, with weights ``D/k`` times their own, so the
sum over neighbours is unbiased: ``E[sum_{sampled} (D/k) a_ij h_j] = sum_j a_ij h_j`` for given ``h`` (Chen, Zhu & Song, Stochastic
training of graph convolutional networks with variance reduction, ICML 2018, arXiv 1710.10568, equation 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.features import select_rows

ALL = -1


@dataclass(frozen=True)
class Sampled:
    """Nodes and edges that a batch needs.

    Attributes:
        nodes: Indices in the graph, ``[n]``; the seeds first.
        edge_index: Sampled edges between them, ``[2, e]``, counted in `nodes`.
        edges: Indices of these edges in the graph, ``[e]``.
        scale: ``D/k`` of each, ``[e]``; 1 where every neighbour was taken, and for self-loops.
    """

    nodes: Tensor
    edge_index: Tensor
    edges: Tensor
    scale: Tensor


class InNeighbors:
    """Edges of a graph by the node that they end in.

    Args:
        edge_index: ``[2, E]`` (source, target).
        nodes: Number of nodes ``N``.
    """

    def __init__(self, edge_index: Tensor, nodes: int) -> None:
        self.nodes = nodes
        source, target = edge_index
        # Self-loops last within each node, so that the first ones are those that are drawn from.
        order = (2 * target + (source == target)).argsort(stable=True)
        self._edges, self._source = order, source[order]
        counts = torch.bincount(target, minlength=nodes)
        self._starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._loops = torch.bincount(target[source == target], minlength=nodes)

    def sample(self, seeds: Tensor, fanouts: Sequence[int], generator: torch.Generator | None = None) -> Sampled:
        """Nodes and edges around some seeds. Cost: about the number of edges that end in the nodes found before the last hop.

        Args:
            seeds: Distinct node indices.
            fanouts: Neighbours of each node, hop by hop; -1 takes all. Self-loops come on top.
            generator: Where draws come from; None for torch's global one.
        """
        place = torch.full((self.nodes,), -1, dtype=torch.int64)
        place[seeds] = torch.arange(len(seeds))
        nodes, frontier = [seeds], seeds
        found: list[Tensor] = []
        targets: list[Tensor] = []
        scales: list[Tensor] = []
        total = len(seeds)
        for fanout in fanouts:
            slots, owner, scale = self._draw(frontier, fanout, generator)
            found.append(slots)
            targets.append(place[frontier][owner])
            scales.append(scale)
            candidates = self._source[slots]
            new = candidates[place[candidates] < 0].unique()
            place[new] = torch.arange(total, total + len(new))
            total += len(new)
            nodes.append(new)
            frontier = new
        slots = torch.cat(found) if found else seeds[:0]
        ends = torch.cat(targets) if targets else seeds[:0]
        edge_index = torch.stack([place[self._source[slots]], ends])
        return Sampled(torch.cat(nodes), edge_index, self._edges[slots], torch.cat(scales) if scales else torch.ones(0))

    def _draw(self, nodes: Tensor, fanout: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Slots of the edges taken, the place in `nodes` that each belongs to, and ``D/k``."""
        first, counts, loops = self._starts[nodes], self._starts[nodes + 1] - self._starts[nodes], self._loops[nodes]
        owner = torch.arange(len(nodes)).repeat_interleave(counts)
        rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        others = (counts - loops)[owner]
        slots = first[owner] + rank
        scale = torch.ones(len(owner))
        if fanout == ALL:
            return slots, owner, scale
        # The k smallest of D independent uniform keys are a uniform draw without replacement; loops have key 2 and are kept apart.
        loop = rank >= others
        keys = torch.rand(len(owner), generator=generator, dtype=torch.float64)
        order = (owner.double() * 4 + torch.where(loop, torch.full_like(keys, 2.0), keys)).argsort()
        kept = torch.zeros(len(owner), dtype=torch.bool)
        kept[order] = rank < fanout
        kept |= loop
        scale = torch.where(loop | (others <= fanout), scale, others / fanout)
        return slots[kept], owner[kept], scale[kept]


class NodeBatches:
    """Mini-batches of seed nodes with their sampled neighbourhoods, as `torch_geometric.loader.NeighborLoader` gives them.

    Every batch is a `Data` with ``x, edge_index, y``, ``n_id`` (indices of its nodes in the graph), ``e_id`` (of its edges), ``batch_size``
    (the first so many nodes are seeds) and ``input_id`` (places of the seeds in `seeds`), and ``edge_weight`` where the graph has one.
    Order and draws depend on the seed, the epoch and the batch alone, so that `batch` gives any of them again.

    Args:
        data: The graph.
        seeds: Distinct indices of the nodes that batches are made of.
        fanouts: Neighbours of each node, hop by hop; -1 takes all.
        size: Seeds of a batch; the last one of an epoch may have fewer.
        seed: Of order and draws.
        least: A last batch with fewer seeds than this is left out.

    Raises:
        ConfigError: There is no seed node, or a number is not legal.
    """

    def __init__(self, data: GraphData, seeds: Tensor, fanouts: Sequence[int], size: int, seed: int = 0, least: int = 1) -> None:
        if not len(seeds):
            raise ConfigError(f"batches of {data.name} need at least one seed node")
        if size < 1 or not fanouts or any(f != ALL and f < 1 for f in fanouts):
            raise ConfigError(f"a batch size must be >= 1 and each fanout >= 1 or -1 for all neighbours; got {size} and {list(fanouts)}")
        self.data, self.seeds, self.fanouts, self.size, self.seed = data, seeds, tuple(fanouts), size, seed
        self.least, self.epoch = least, 0
        self._neighbors = InNeighbors(data.edge_index.cpu(), data.nodes)
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.seeds), self.size)
        return whole + (rest >= self.least and rest > 0)

    def __iter__(self) -> Iterator[Data]:
        """The batches of an epoch; the next pass is the next epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        for index in range(len(self)):
            yield self.batch(epoch, index)

    def batch(self, epoch: int, index: int, part: slice = slice(None)) -> Data:
        """One batch.

        Args:
            epoch: From 0; each has an order of its own.
            index: From 0.
            part: The seeds of it that are wanted, for processes that share a batch.
        """
        places = self._permutation(epoch)[index * self.size : (index + 1) * self.size][part]
        offset = range(self.size)[part].start
        found = self._neighbors.sample(self.seeds.cpu()[places], self.fanouts, generator_of(self.seed, epoch, index, offset))
        device = self.data.y.device
        nodes = found.nodes.to(device)
        made = Data(
            x=select_rows(self.data.x, nodes),
            edge_index=found.edge_index.to(device),
            y=self.data.y[nodes],
            n_id=nodes,
            e_id=found.edges.to(device),
            batch_size=len(places),
            input_id=places.to(device),
        )
        if self.data.edge_weight is not None:
            made.edge_weight = self.data.edge_weight[made.e_id] * found.scale.to(self.data.edge_weight)
        return made

    def _permutation(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(len(self.seeds), generator=generator_of(self.seed, epoch))
        return self._order[1]


def generator_of(*numbers: int) -> torch.Generator:
    """A source of randomness of its own for each tuple of numbers."""
    [state] = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> 1))
