"""Splits by name: which nodes are trained on, which choose the epoch, which are tested."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.graphs.data import UNLABELLED, GraphData

AUTO = "auto"
SPLITS = ("public", "full", "complete", "random", "shchur")


@dataclass(frozen=True)
class Split:
    """Indices of nodes; the three parts do not overlap.

    Attributes:
        name: How it was made.
        train: Labelled nodes that carry the loss.
        val: Nodes that choose the epoch; may be empty.
        test: Nodes that accuracy is reported on.
        seed: Seed of a random split, None for a fixed one.
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor
    seed: int | None = None

    def __str__(self) -> str:
        """In words, to stand beside every number."""
        seed = "" if self.seed is None else f", split seed {self.seed}"
        return f"{self.name} split: {len(self.train)} train, {len(self.val)} validation, {len(self.test)} test nodes{seed}"


@dataclass(frozen=True)
class SplitOptions:
    """Sizes of a random split.

    Attributes:
        per_class: Training nodes of each class.
        val: Validation nodes in all.
        test: Test nodes in all; 0 takes all that are left.
    """

    per_class: int = 20
    val: int = 500
    test: int = 0


def make_split(data: GraphData, name: str, options: SplitOptions, seed: int) -> tuple[GraphData, Split]:
    """Split a graph.

    Args:
        data: The graph.
        name: ``public`` (its own masks), ``full`` (public, but every node outside validation and test is trained on), ``complete`` (the
            first N - 1000 nodes, the next 500, the last 500; Izadi et al. 2020), ``random`` (some nodes of each class), ``shchur`` (Shchur
            et al. 2018: the largest connected component, 20 training and 30 validation nodes of each class, the rest is tested), or
            ``auto``: public where there is one, else shchur for sets of more than 1000 nodes, else random.
        options: Sizes of ``random``.
        seed: Of the random ones.

    Returns:
        The graph, or its largest component, and the split.

    Raises:
        ConfigError: There is no such split, or the graph is too small for it.
    """
    if name == AUTO:
        name = "public" if data.masks is not None else "shchur" if data.nodes > 1000 else "random"
    if name not in SPLITS:
        raise unknown_name("split", name, (AUTO, *SPLITS))
    if name == "shchur":
        data = data.subgraph(largest_component(data))
        train, rest = _per_class(data, 20, torch.arange(data.nodes), seed)
        val, test = _per_class(data, 30, rest, seed + 1)
        return data, Split(name, train, val, test, seed)
    if name == "random":
        return data, _random(data, options, seed)
    if name == "complete":
        if data.nodes <= 1000:
            raise ConfigError(f"split 'complete' needs more than 1000 nodes, {data.name} has {data.nodes}; use 'random'")
        nodes = torch.arange(data.nodes)
        parts = nodes[:-1000], nodes[-1000:-500], nodes[-500:]
    elif data.masks is None:
        raise ConfigError(f"{data.name} has no split of its own, so {name!r} is not legal; use random or shchur")
    else:
        masks = data.masks
        train_mask = masks.train if name == "public" else ~(masks.val | masks.test)
        parts = train_mask.nonzero().squeeze(1), masks.val.nonzero().squeeze(1), masks.test.nonzero().squeeze(1)
    train, val, test = (part[data.y[part] != UNLABELLED] for part in parts)
    if not len(train):
        raise ConfigError(f"the split {name!r} of {data.name} has no labelled training node")
    return data, Split(name, train, val, test)


def without_class(data: GraphData, split: Split, left_out: int) -> tuple[GraphData, Split, Tensor]:
    """A class that nobody is shown: its nodes lose their label and leave training and validation, and the later classes move down by one.

    Args:
        data: The graph.
        split: Its split.
        left_out: The class.

    Returns:
        The graph with one class fewer, its split with all test nodes that are left of other classes, and which of the whole split's test
        nodes are of the class, ``[test]`` booleans.

    Raises:
        ConfigError: No training node is left, or no node of the class is tested.
    """
    outside = data.y == left_out
    y = torch.where(data.y > left_out, data.y - 1, data.y)
    y = torch.where(outside, torch.full_like(y, UNLABELLED), y)
    train, val, test = (part[~outside[part]] for part in (split.train, split.val, split.test))
    if not len(train) or not bool(outside[split.test].any()):
        raise ConfigError(f"class {left_out} of {data.name} cannot be left out: no other training node, or no test node of it")
    names = tuple(name for c, name in enumerate(data.class_names) if c != left_out)
    smaller = replace(data, y=y, classes=data.classes - 1, masks=None, class_names=names)
    return smaller, replace(split, train=train, val=val, test=test), outside[split.test]


def largest_component(data: GraphData) -> Tensor:
    """Nodes of the largest connected component, ascending; of several equal ones, the one with the smallest node."""
    import numpy as np  # noqa: PLC0415
    from scipy.sparse import coo_matrix  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    row, column = data.edge_index.numpy()
    matrix = coo_matrix((np.ones(len(row), dtype=np.int8), (row, column)), shape=(data.nodes, data.nodes))
    _, labels = connected_components(matrix, directed=False)
    return torch.from_numpy(np.flatnonzero(labels == np.bincount(labels).argmax()))


def _random(data: GraphData, options: SplitOptions, seed: int) -> Split:
    train, rest = _per_class(data, options.per_class, torch.arange(data.nodes), seed)
    rest = rest[data.y[rest] != UNLABELLED]
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed + 1))]
    if len(rest) <= options.val:
        raise ConfigError(
            f"{data.name} has {len(rest)} labelled nodes left after {len(train)} for training, too few for {options.val} validation "
            "nodes and a test; lower data.per_class or data.val"
        )
    val, test = rest[: options.val], rest[options.val :]
    return Split("random", train, val.sort().values, (test[: options.test] if options.test else test).sort().values, seed)


def _per_class(data: GraphData, count: int, among: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """`count` random nodes of each class, and the labelled others; a class with too few gives what it has, if any."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = among[torch.randperm(len(among), generator=generator)]
    chosen = [shuffled[data.y[shuffled] == c][:count] for c in range(data.classes)]
    taken = torch.cat(chosen)
    if not len(taken):
        raise ConfigError(f"{data.name} has no labelled node left to draw from")
    left = torch.ones(data.nodes, dtype=torch.bool)
    left[taken] = False
    rest = among[left[among] & (data.y[among] != UNLABELLED)]
    return taken.sort().values, rest
