"""Public graphs, splits by name, and tables of the user."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.data import GraphData, Masks, load_public
from natgrad_apps.graphs.splits import Split, SplitOptions, largest_component, make_split
from natgrad_apps.graphs.tables import load_tables
from tests.graphs._tables import write_communities

ROOT = os.environ.get("NATGRAD_DATA")
needs_data = pytest.mark.skipif(not ROOT or not (Path(ROOT) / "planetoid").is_dir(), reason="NATGRAD_DATA has no planetoid/")


def ring(nodes: int, classes: int = 3, *, masks: bool = False) -> GraphData:
    a = torch.arange(nodes)
    b = (a + 1) % nodes
    edges = torch.stack([torch.cat([a, b]), torch.cat([b, a])])
    own = Masks(a < 5, (a >= 5) & (a < 9), a >= nodes - 4) if masks else None
    return GraphData("ring", torch.rand(nodes, 2), edges, a % classes, classes, own)


def disjoint(split: Split) -> bool:
    parts = [set(part.tolist()) for part in (split.train, split.val, split.test)]
    return sum(map(len, parts)) == len(set.union(*parts))


def test_karate_needs_no_file(tmp_path: Path) -> None:
    data = load_public("karate", tmp_path)
    _, split = make_split(data, "auto", SplitOptions(), 0)
    assert (data.nodes, data.classes, data.edge_index.shape[1]) == (34, 4, 156)
    assert (len(split.train), len(split.val), len(split.test)) == (4, 0, 30)
    assert sorted(data.y[split.train].tolist()) == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []


@needs_data
@pytest.mark.parametrize(
    ("name", "sizes", "train"),
    [("Cora", (2708, 10556, 1433, 7), (140, 1208, 1708)), ("CiteSeer", (3327, 9104, 3703, 6), (120, 1827, 2327))],
)
def test_planetoid(tmp_path: Path, name: str, sizes: tuple[int, ...], train: tuple[int, int, int]) -> None:
    data = load_public(name, tmp_path)
    assert (data.nodes, data.edge_index.shape[1], data.x.shape[1], data.classes) == sizes
    sums = data.row_normalized().x.sum(1)
    # CiteSeer has 15 nodes without features; float32
    assert int((sums == 0).sum()) == (15 if name == "CiteSeer" else 0)
    torch.testing.assert_close(sums[sums != 0], torch.ones(int((sums != 0).sum())))
    for split_name, count, tested in zip(("public", "full", "complete"), train, (1000, 1000, 500), strict=True):
        _, split = make_split(data, split_name, SplitOptions(), 0)
        assert (len(split.train), len(split.val), len(split.test)) == (count, 500, tested)
        assert disjoint(split)
        assert f"{count} train, 500 validation, {tested} test nodes" in str(split)


@pytest.mark.parametrize("name", ["public", "full"])
def test_own_masks(name: str) -> None:
    _, split = make_split(ring(30, masks=True), name, SplitOptions(), 0)
    assert split.train.tolist() == (list(range(5)) if name == "public" else [*range(5), *range(9, 26)])
    assert split.test.tolist() == [26, 27, 28, 29]


def test_random_split_has_so_many_of_each_class_and_repeats() -> None:
    data = ring(120)
    splits = [make_split(data, "random", SplitOptions(4, 20, 30), seed)[1] for seed in (1, 1, 2)]
    assert torch.equal(splits[0].train, splits[1].train)
    assert not torch.equal(splits[0].train, splits[2].train)
    assert [int((data.y[splits[0].train] == c).sum()) for c in range(3)] == [4, 4, 4]
    assert (len(splits[0].val), len(splits[0].test)) == (20, 30)
    assert disjoint(splits[0])
    assert str(splits[0]) == "random split: 12 train, 20 validation, 30 test nodes, split seed 1"


def test_shchur_takes_the_largest_component() -> None:
    first, second = ring(200, 2), ring(40, 2)
    edges = torch.cat([second.edge_index, first.edge_index + 40], 1)
    data = GraphData("two", torch.cat([second.x, first.x]), edges, torch.cat([second.y, first.y]), 2)
    assert largest_component(data).tolist() == list(range(40, 240))
    kept, split = make_split(data, "shchur", SplitOptions(), 5)
    assert kept.nodes == 200
    assert torch.equal(kept.x, first.x)
    assert (len(split.train), len(split.val), len(split.test)) == (40, 60, 100)
    assert disjoint(split)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("publik", "did you mean 'public'"),
        ("public", "no split of its own"),
        ("complete", "more than 1000 nodes, ring has 30"),
        ("random", "too few for 500 validation"),
    ],
)
def test_illegal_splits(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_split(ring(30), name, SplitOptions(2), 0)


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset .*'Corra'.*did you mean 'Cora'"):
        load_public("Corra")


def test_tables(tmp_path: Path) -> None:
    edges, nodes = write_communities(tmp_path)
    data = load_tables(edges, nodes, undirected=True)
    assert (data.nodes, data.classes, data.class_names, data.x.shape) == (60, 2, ("a", "b"), (60, 5))
    assert data.node_ids[:2] == ("n0", "n1")
    listed = pd.read_csv(edges)
    assert data.edge_index.shape[1] == 2 * len(listed)
    directed = load_tables(edges, nodes, undirected=False)
    pairs = sorted((int(a[1:]), int(b[1:])) for a, b in zip(listed["source"], listed["target"], strict=True))
    assert sorted(map(tuple, directed.edge_index.mT.tolist())) == pairs
    _, split = make_split(data, "auto", SplitOptions(), 0)
    assert (len(split.train), len(split.val), len(split.test)) == (12, 18, 30)


def test_parquet_equals_csv(tmp_path: Path) -> None:
    edges, nodes = write_communities(tmp_path)
    for path in (edges, nodes):
        pd.read_csv(path).to_parquet(path.with_suffix(".parquet"))
    first = load_tables(edges, nodes, undirected=True)
    second = load_tables(edges.with_suffix(".parquet"), nodes.with_suffix(".parquet"), undirected=True)
    assert torch.equal(first.edge_index, second.edge_index)
    assert torch.equal(first.y, second.y)
    assert torch.equal(first.x, second.x)


def test_labels_that_are_missing_and_nodes_without_features(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("id,label\n10,2\n7,\n8,1\n")
    (tmp_path / "e.csv").write_text("source,target\n10,7\n7,10\n8,8\n")
    data = load_tables(tmp_path / "e.csv", tmp_path / "n.csv", undirected=True)
    assert data.y.tolist() == [1, -1, 0]
    assert data.class_names == ("1", "2")
    assert torch.equal(data.x, torch.eye(3))
    assert data.edge_index.tolist() == [[0, 1], [1, 0]]
    assert data.masks is None


GOOD_EDGES = "source,target\na,b\n"
GOOD_NODES = "id,label,f\na,x,1\nb,y,2\n"


@pytest.mark.parametrize(
    ("edges", "nodes", "words"),
    [
        ("source,target\na,c\n", GOOD_NODES, r"row 0 has the target 'c', which is no id of the node table"),
        (GOOD_EDGES, "id,label,f\na,x,1\na,y,2\n", r"these ids stand more than once: 'a'"),
        (GOOD_EDGES, "id,label,f\na,,1\nb,,2\n", r"at least two classes, got no label at all"),
        (GOOD_EDGES, "id,f\na,1\nb,2\n", r"the column 'label' is missing; it has id, f"),
        ("from,to\na,b\n", GOOD_NODES, r"the column 'source' is missing"),
        (GOOD_EDGES, "id,label,f\na,x,1\nb,y,big\n", r"the feature 'f' of row 1 is 'big'"),
        (GOOD_EDGES, "id,label,train,val,test\na,x,1,0,1\nb,y,1,0,0\n", r"train and test overlap in the nodes 'a'"),
        (GOOD_EDGES, "id,label,split\na,x,train\nb,y,tset\n", r"the column 'split' has 'tset'; legal: train, val, test"),
        (GOOD_EDGES, "id,label,split\na,x,test\nb,y,test\n", r"no training node"),
        (GOOD_EDGES, "id,label,split\na,x,train\nb,y,val\nc,,train\n", r"training nodes without a label: 'c'"),
        (GOOD_EDGES, "id,label,f\na,x,1\n,y,2\n", r"row 1 has no id"),
    ],
)
def test_faulty_tables(tmp_path: Path, edges: str, nodes: str, words: str) -> None:
    (tmp_path / "e.csv").write_text(edges)
    (tmp_path / "n.csv").write_text(nodes)
    with pytest.raises(ConfigError, match=words):
        load_tables(tmp_path / "e.csv", tmp_path / "n.csv", undirected=True)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_tables(tmp_path / "e.csv", tmp_path / "n.csv", undirected=True)
    with pytest.raises(ConfigError, match="must end in"):
        load_tables(tmp_path / "e.txt", tmp_path / "n.txt", undirected=True)
