"""A user's own graph: an edge list and a node table, CSV, TSV or Parquet.

The node table has a column ``id`` (any text or number, unique), a column ``label`` (any text or number, empty for nodes without one), and
optionally either one column ``split`` (train, val, test or empty) or three columns ``train``, ``val``, ``test`` of true and false. Every
other column is a number, a feature. A table without features gets one-hot node identities. The edge list has the columns ``source`` and
``target``, which name nodes by their ``id``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.data import UNLABELLED, GraphData, Masks
from natgrad_apps.linalg.sparse import SparseMatrix

PARTS = ("train", "val", "test")
SUFFIXES = (".csv", ".tsv", ".parquet")
IDENTITIES = 1000
"""Nodes from which on one-hot identities, features of a table without any, are sparse."""
_SHOWN = 5


def load_tables(edges: Path, nodes: Path, *, undirected: bool) -> GraphData:
    """Read a graph.

    Args:
        edges: The edge list.
        nodes: The node table.
        undirected: Whether each edge also counts in the other direction; double edges and self-loops are dropped in any case.

    Raises:
        ConfigError: A file cannot be read, a column is missing, an id is double or unknown, a feature is no number, there is no label, or
            the parts of the split overlap.
    """
    table, links = _read(nodes), _read(edges)
    _require(table, nodes, ("id", "label"))
    _require(links, edges, ("source", "target"))
    if not len(table):
        raise ConfigError(f"{nodes}: the node table has no row")
    ids = [_text(value) for value in table["id"]]
    place = {name: i for i, name in enumerate(ids)}
    if "" in place:
        raise ConfigError(f"{nodes}: row {place['']} has no id (rows are counted from 0)")
    if len(place) < len(ids):
        raise ConfigError(f"{nodes}: these ids stand more than once: {_some(sorted({name for name in ids if ids.count(name) > 1}))}")
    y, names = _labels(table, nodes)
    return GraphData(
        name=nodes.stem,
        x=_features(table, nodes),
        edge_index=_edge_index(links, edges, place, undirected=undirected),
        y=y,
        classes=len(names),
        masks=_masks(table, nodes, y),
        node_ids=tuple(ids),
        class_names=tuple(names),
    )


def _read(path: Path) -> Any:
    import pandas as pd  # noqa: PLC0415 - only tables need it

    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{str(path)!r} is no table: the name must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        # Identities and labels stay text, so that 007 and 7 are two nodes; features become numbers later.
        return pd.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _require(table: Any, path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ConfigError(f"{path}: the column {missing[0]!r} is missing; it has {', '.join(map(str, table.columns))}")


def _text(value: Any) -> str:
    """A cell as text; what is missing, or NaN, is empty, and 3.0 (an integer column with gaps) is 3."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _some(values: Sequence[str]) -> str:
    shown = ", ".join(repr(v) for v in values[:_SHOWN])
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN} more"


def _labels(table: Any, path: Path) -> tuple[Tensor, list[str]]:
    texts = [_text(value) for value in table["label"]]
    found = {text for text in texts if text}
    if len(found) < 2:
        raise ConfigError(f"{path}: the column 'label' needs at least two classes, got {_some(sorted(found)) or 'no label at all'}")
    numeric = all(text.lstrip("-").isdigit() for text in found)
    names = sorted(found, key=int) if numeric else sorted(found)
    place = {name: i for i, name in enumerate(names)}
    return torch.tensor([place.get(text, UNLABELLED) for text in texts]), names


def _features(table: Any, path: Path) -> Tensor:
    import pandas as pd  # noqa: PLC0415

    own = {"id", "label", "split", *PARTS}
    columns = [name for name in table.columns if name not in own]
    if not columns:
        n = len(table)
        return torch.eye(n) if n < IDENTITIES else SparseMatrix.of(torch.arange(n + 1), torch.arange(n), torch.ones(n), (n, n))
    values = []
    for name in columns:
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype="float32")
        column = torch.from_numpy(numbers.copy())
        bad = (~column.isfinite()).nonzero().flatten()
        if len(bad):
            row = int(bad[0])
            raise ConfigError(f"{path}: the feature {name!r} of row {row} is {table[name].iloc[row]!r}, which is no finite number")
        values.append(column)
    return torch.stack(values, 1)


def _edge_index(links: Any, path: Path, place: dict[str, int], *, undirected: bool) -> Tensor:
    ends = []
    for name in ("source", "target"):
        texts = [_text(value) for value in links[name]]
        unknown = [(i, text) for i, text in enumerate(texts) if text not in place]
        if unknown:
            row, text = unknown[0]
            more = f" ({len(unknown)} such rows)" if len(unknown) > 1 else ""
            raise ConfigError(f"{path}: row {row} has the {name} {text!r}, which is no id of the node table{more}")
        ends.append(torch.tensor([place[text] for text in texts], dtype=torch.int64))
    index = torch.stack(ends)
    index = index[:, index[0] != index[1]]
    if undirected:
        index = torch.cat([index, index.flip(0)], 1)
    result: Tensor = torch.unique(index, dim=1)
    return result


def _masks(table: Any, path: Path, y: Tensor) -> Masks | None:
    if "split" in table.columns:
        texts = [_text(value).lower() for value in table["split"]]
        unknown = sorted(set(texts) - {*PARTS, ""})
        if unknown:
            raise ConfigError(f"{path}: the column 'split' has {_some(unknown)}; legal: {', '.join(PARTS)} or empty")
        chosen = {name: torch.tensor([text == name for text in texts]) for name in PARTS}
    elif "train" in table.columns:
        _require(table, path, PARTS)
        chosen = {name: torch.tensor([_flag(value, name, path) for value in table[name]]) for name in PARTS}
        for first, second in (("train", "test"), ("train", "val"), ("val", "test")):
            both = (chosen[first] & chosen[second]).nonzero().flatten().tolist()
            if both:
                ids = _some([_text(table["id"].iloc[row]) for row in both])
                raise ConfigError(f"{path}: {first} and {second} overlap in the nodes {ids}")
    else:
        return None
    bare = (chosen["train"] & (y == UNLABELLED)).nonzero().flatten().tolist()
    if bare:
        raise ConfigError(f"{path}: training nodes without a label: {_some([_text(table['id'].iloc[row]) for row in bare])}")
    if not chosen["train"].any():
        raise ConfigError(f"{path}: the split has no training node")
    return Masks(chosen["train"], chosen["val"], chosen["test"])


def _flag(value: Any, name: str, path: Path) -> bool:
    text = _text(value).lower()
    if text in {"true", "1"}:
        return True
    if text in {"false", "0", ""}:
        return False
    raise ConfigError(f"{path}: the column {name!r} has {text!r}; legal: true, false, 1, 0 or empty")
