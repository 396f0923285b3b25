"""Graphs in the SparseGraph format of Shchur et al. 2018 and Bojchevski & Guennemann 2018: an npz file with two compressed matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.utils import remove_self_loops, to_undirected

from natgrad_apps.linalg.sparse import SparseMatrix


def read_archive(path: Path) -> tuple[SparseMatrix, Tensor, Tensor]:
    """Read a graph as `torch_geometric.io.read_npz` does, but for the features, which never become dense.

    Args:
        path: With ``adj_*`` and ``attr_*`` (``data, indices, indptr, shape``) and ``labels``.

    Returns:
        Features ``[N, d]`` (every positive entry is 1), ``edge_index: [2, E]`` (each edge in both directions, no self-loops, sorted) and
        classes ``[N]``.

    Raises:
        OSError: It cannot be read.
        KeyError: An array is missing.
        ValueError: It is no archive of plain arrays, or its matrices are malformed.
    """
    from scipy.sparse import csr_matrix  # noqa: PLC0415 - only these sets need it

    with np.load(path) as file:
        found = {name: csr_matrix(tuple(file[f"{name}_{part}"] for part in _PARTS), file[f"{name}_shape"]) for name in ("attr", "adj")}
        labels = torch.from_numpy(file["labels"]).long()
    features = found["attr"]
    features.sum_duplicates()
    features.eliminate_zeros()
    values = torch.from_numpy(features.data).float()
    x = SparseMatrix.of(
        torch.from_numpy(features.indptr),
        torch.from_numpy(features.indices),
        torch.where(values > 0, torch.ones_like(values), values),
        (features.shape[0], features.shape[1]),
    )
    links = found["adj"].tocoo()
    edges, _ = remove_self_loops(torch.from_numpy(np.stack([links.row, links.col])).long())
    undirected: Tensor = to_undirected(edges, num_nodes=x.shape[0])
    return x, undirected, labels


_PARTS = ("data", "indices", "indptr")
