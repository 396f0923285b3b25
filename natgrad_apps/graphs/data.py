"""Graphs for node classification: what a graph is, and where the public ones come from."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.graphs.downloads import PLANETOID_HOME, fetch, open_graph_benchmark
from natgrad_apps.graphs.features import Layout, row_normalized, select_rows, with_layout

UNLABELLED = -1
KARATE = "karate"
PLANETOID = ("Cora", "CiteSeer", "PubMed")
AMAZON = {"Computers": "amazon_electronics_computers.npz", "Photo": "amazon_electronics_photo.npz"}
COAUTHOR = {"CS": "ms_academic_cs.npz", "Physics": "ms_academic_phy.npz"}
CITATION_FULL = {"CoraFull": "Cora", "CoraML": "Cora_ML", "CiteSeerFull": "CiteSeer", "DBLP": "DBLP", "PubMedFull": "PubMed"}
OGB = ("ogbn-arxiv", "ogbn-products")
NAMES = (KARATE, *PLANETOID, *AMAZON, *COAUTHOR, *CITATION_FULL, *OGB)


@dataclass(frozen=True)
class Masks:
    """A split that comes with the data, ``[N]`` booleans."""

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(frozen=True)
class GraphData:
    """One graph.

    Attributes:
        name: What it is called.
        x: Node features ``[N, d]``; a `SparseMatrix` if they are wide and mostly zero.
        edge_index: ``[2, E]``, each undirected edge in both directions.
        y: Classes ``[N]``, -1 for nodes without a label.
        classes: Number of classes.
        masks: Its own split, or None.
        node_ids: Names of the nodes in the user's table; empty for public sets.
        class_names: Names of the classes; empty if they have none.
        edge_weight: ``[E]``, or None where every edge counts alike.
    """

    name: str
    x: Tensor
    edge_index: Tensor
    y: Tensor
    classes: int
    masks: Masks | None = None
    node_ids: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    edge_weight: Tensor | None = None

    def __str__(self) -> str:
        """Its size in words."""
        size = f"{self.nodes:,} nodes, {self.edge_index.shape[1]:,} directed edges, {self.x.shape[1]:,} features"
        return f"{self.name}: {size}, {self.classes} classes"

    @property
    def nodes(self) -> int:
        """``N``."""
        return self.x.shape[0]

    def subgraph(self, kept: Tensor) -> GraphData:
        """The nodes with these indices and the edges between them; the split is dropped."""
        place = torch.full((self.nodes,), -1, dtype=torch.int64)
        place[kept] = torch.arange(len(kept))
        edges = place[self.edge_index]
        inside = (edges >= 0).all(0)
        ids = tuple(self.node_ids[i] for i in kept.tolist()) if self.node_ids else ()
        weight = None if self.edge_weight is None else self.edge_weight[inside]
        x, y = select_rows(self.x, kept), self.y[kept]
        return replace(self, x=x, y=y, edge_index=edges[:, inside], edge_weight=weight, masks=None, node_ids=ids)

    def gcn_normalized(self) -> GraphData:
        """Edges with self-loops and the weights ``D^-1/2 (A + I) D^-1/2`` (Kipf & Welling 2017, equation 2)."""
        from torch_geometric.nn.conv.gcn_conv import gcn_norm  # noqa: PLC0415

        edges, weight = gcn_norm(self.edge_index, self.edge_weight, self.nodes, dtype=self.x.dtype)
        return replace(self, edge_index=edges, edge_weight=weight)

    def row_normalized(self) -> GraphData:
        """Features divided by their row sums; rows that sum to zero stay as they are."""
        return replace(self, x=row_normalized(self.x))

    def with_features(self, layout: Layout) -> GraphData:
        """Features sparse or dense, see `natgrad_apps.graphs.features.with_layout`."""
        return replace(self, x=with_layout(self.x, layout))

    def to(self, device: torch.device | str) -> GraphData:
        """The tensors on a device."""
        weight = None if self.edge_weight is None else self.edge_weight.to(device)
        return replace(self, x=self.x.to(device), edge_index=self.edge_index.to(device), y=self.y.to(device), edge_weight=weight)


def load_public(name: str, cache: Path | None = None) -> GraphData:
    """A public graph by name: from ``$NATGRAD_DATA``, else from the cache, else downloaded.

    Args:
        name: One of `NAMES`.
        cache: Writable folder; None for ``graphs/`` in the user's cache directory.

    Raises:
        ConfigError: There is no such graph, or it can be neither read nor downloaded.
    """
    if name not in NAMES:
        raise unknown_name("dataset (or 'table' for your own)", name, NAMES)
    from torch_geometric import datasets  # noqa: PLC0415 - seconds

    from natgrad_apps.graphs.archives import read_archive  # noqa: PLC0415

    if name == KARATE:
        return _karate(datasets.KarateClub()[0])
    root = cache_folder(cache)
    if name in OGB:
        return _from_ogb(name, root)
    if name in PLANETOID:
        files = [f"ind.{name.lower()}.{part}" for part in _PARTS]
        if not _offer(root / name / "raw", "planetoid", files) and all(file in PLANETOID_HOME.sums for file in files):
            fetch(files, root / name / "raw", PLANETOID_HOME)
        found = quietly_read(name, lambda: datasets.Planetoid(str(root), name))
        data = found[0]
        masks = Masks(data.train_mask, data.val_mask, data.test_mask)
        return GraphData(name, data.x, data.edge_index, data.y, int(found.num_classes), masks)
    x, edges, y = quietly_read(name, lambda: read_archive(_archive(name, root)))
    return GraphData(name, x, edges, y, int(y.max()) + 1)


def _archive(name: str, root: Path) -> Path:
    """The npz file of a set: from ``$NATGRAD_DATA``, else from the cache, else downloaded to where torch-geometric looks for it."""
    from torch_geometric import datasets  # noqa: PLC0415
    from torch_geometric.data import download_url  # noqa: PLC0415

    if name in CITATION_FULL:
        own = CITATION_FULL[name].lower()
        folder, file, url = root / "citation_full" / own, f"{own}.npz", datasets.CitationFull.url.format(own)
    else:
        file = (AMAZON | COAUTHOR)[name]
        folder, url = root / name, (datasets.Amazon if name in AMAZON else datasets.Coauthor).url + file
        given = os.environ.get("NATGRAD_DATA")
        if given and (Path(given) / "gnn-benchmark" / file).is_file():
            return Path(given) / "gnn-benchmark" / file
    if not (folder / "raw" / file).is_file():
        download_url(url, str(folder / "raw"))
    return folder / "raw" / file


_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def _karate(data: Any) -> GraphData:
    """Zachary's karate club: one labelled node a class, every other node is tested."""
    train = data.train_mask
    return GraphData(KARATE, data.x, data.edge_index, data.y, int(data.y.max()) + 1, Masks(train, torch.zeros_like(train), ~train))


def cache_folder(given: Path | None) -> Path:
    """Where data is kept: the folder given, or ``graphs/`` in the user's cache directory."""
    if given is not None:
        return given
    import pooch  # noqa: PLC0415 - only public sets need it

    return Path(pooch.os_cache("natgrad-apps")) / "graphs"


def _from_ogb(name: str, root: Path) -> GraphData:
    """A set of the Open Graph Benchmark with its own split; each edge counts in both directions."""
    from torch_geometric.utils import to_undirected  # noqa: PLC0415

    data, parts, classes = quietly_read(name, lambda: open_graph_benchmark(name, root / "ogb"))
    masks = [torch.zeros(data.num_nodes, dtype=torch.bool) for _ in range(3)]
    for mask, part in zip(masks, ("train", "valid", "test"), strict=True):
        mask[parts[part]] = True
    edges = to_undirected(data.edge_index, num_nodes=data.num_nodes)
    return GraphData(name, data.x, edges, data.y.squeeze(1).long(), classes, Masks(*masks))


def _offer(raw: Path, folder: str, names: list[str]) -> bool:
    """Copy the raw files that ``$NATGRAD_DATA`` has to where torch-geometric looks, so that it downloads nothing; whether it has them."""
    root = os.environ.get("NATGRAD_DATA")
    sources = [Path(root) / folder / name for name in names] if root else []
    if not sources or not all(source.is_file() for source in sources):
        return False
    try:
        raw.mkdir(parents=True, exist_ok=True)
        for source in sources:
            if not (raw / source.name).exists():
                shutil.copyfile(source, raw / source.name)
        return True
    except OSError as error:
        raise ConfigError(
            f"the data cannot be prepared in {str(raw)!r}: {error.strerror}; set XDG_CACHE_HOME to a writable folder"
        ) from error


def quietly_read(name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, without the lines that torch-geometric prints.

    Args:
        name: Of the dataset, for the error.
        make: Reads it, and downloads it before if it must.

    Raises:
        ConfigError: It fails, whatever the reason.
    """
    try:
        # torch-geometric prints what it does, and old pickles name modules of scipy that have moved.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return make()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the dataset {name!r} could not be read or downloaded: {type(error).__name__}: {' '.join(str(error).split())}; try again "
            "later, or set NATGRAD_DATA to a folder that holds its raw files in planetoid/ or gnn-benchmark/"
        ) from error
