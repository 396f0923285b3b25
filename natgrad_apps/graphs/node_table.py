"""A table of the nodes: one row each, with its part of the split, label, prediction and probabilities."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from torch import Tensor

from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.splits import Split


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


Columns = dict[str, Sequence[str]]


def node_table(data: GraphData, split: Split, p: Tensor, extra: Mapping[str, Sequence[str]] | None = None) -> str:
    """The table as CSV.

    Args:
        data: The graph.
        split: Its split.
        p: Probabilities ``[N, C]``.
        extra: More columns, a text a node.
    """
    part = [""] * data.nodes
    for name, nodes in (("train", split.train), ("val", split.val), ("test", split.test)):
        for node in nodes.tolist():
            part[node] = name
    names = data.class_names or tuple(str(c) for c in range(data.classes))
    more = extra or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "part", "label", "predicted", *(f"p_{name}" for name in names), *more])
    best, labels = p.argmax(-1).tolist(), data.y.tolist()
    for node, row in enumerate(p.tolist()):
        label = names[labels[node]] if labels[node] >= 0 else ""
        identity = data.node_ids[node] if data.node_ids else node
        beside = (column[node] for column in more.values())
        writer.writerow([identity, part[node], label, names[best[node]], *(f"{value:.6g}" for value in row), *beside])
    return text.getvalue()
