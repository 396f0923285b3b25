"""Files of public graphs from their homes, checked by their sums, and the node sets of the Open Graph Benchmark by its own loader."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from natgrad_apps.errors import ConfigError


@dataclass(frozen=True)
class Home:
    """Where files lie.

    Attributes:
        url: Folder, with a slash at the end.
        sums: SHA-256 of each file, by name.
    """

    url: str
    sums: Mapping[str, str]


PLANETOID_HOME = Home(
    "https://raw.githubusercontent.com/kimiyoung/planetoid/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data/",
    {
        "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
        "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "ind.citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "ind.citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
        "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    },
)
"""Cora and CiteSeer of Yang, Cohen & Salakhutdinov 2016, as they stand since 2016."""


def fetch(names: Sequence[str], folder: Path, home: Home = PLANETOID_HOME) -> None:
    """Download the files that a folder lacks, and check every one of them, those that it has too.

    Args:
        names: Files of the home.
        folder: Where they belong; made if it is missing.
        home: Where they come from.

    Raises:
        ConfigError: One could not be downloaded or written, or has another sum.
    """
    import pooch  # noqa: PLC0415 - only a download needs it

    logger, console = pooch.get_logger(), Console(stderr=True)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            for name in bar.track(names, description=f"downloading to {folder}"):
                pooch.retrieve(home.url + name, f"sha256:{home.sums[name]}", fname=name, path=folder)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch raises ValueError for a wrong sum
        raise ConfigError(
            f"a file could not be downloaded from {home.url} to {str(folder)!r}: {' '.join(str(error).split())}; try again later, or set "
            "NATGRAD_DATA to a folder that holds its raw files in planetoid/"
        ) from error
    finally:
        logger.setLevel(before)


def open_graph_benchmark(name: str, root: Path) -> tuple[Any, dict[str, torch.Tensor], int]:
    """A node set by the loader of the package ``ogb``, which asks before large downloads.

    Args:
        name: Such as ``ogbn-arxiv``.
        root: Folder for its files.

    Returns:
        torch-geometric's ``Data``, the indices of ``train``, ``valid`` and ``test``, and the number of classes.

    Raises:
        ConfigError: ``ogb`` is not installed.
    """
    try:
        from ogb.nodeproppred import PygNodePropPredDataset  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"the dataset {name!r} is read by the package ogb, which is not installed ({error}); run: pip install ogb"
        ) from error
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr  # noqa: PLC0415
    from torch_geometric.data.storage import GlobalStorage  # noqa: PLC0415

    # Releases of ogb call torch.load without weights_only, which since torch 2.6 reads only classes that were named before.
    with torch.serialization.safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage]):
        found = PygNodePropPredDataset(name=name, root=str(root))
        return found[0], found.get_idx_split(), int(found.num_classes)
