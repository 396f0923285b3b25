"""Sparse features stay sparse: from the archive through the first layer to its factors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch_geometric.io import read_npz

from natgrad_apps import KFAC, Exact, Fisher, GramKFAC, Preconditioner
from natgrad_apps.curvature import Curvature
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.archives import read_archive
from natgrad_apps.graphs.config import DataConfig, ModelConfig, TrainConfig
from natgrad_apps.graphs.data import GraphData, load_public
from natgrad_apps.graphs.features import dropout
from natgrad_apps.graphs.tables import load_tables
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.linalg.sparse import SparseMatrix
from tests.graphs._models import OneLayer, small_graph

ROOT = os.environ.get("NATGRAD_DATA")
needs_data = pytest.mark.skipif(not ROOT or not (Path(ROOT) / "gnn-benchmark").is_dir(), reason="NATGRAD_DATA has no gnn-benchmark/")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """40 nodes, 300 features; counts above 1, an explicit zero, doubled entries, self-loops, one-way edges."""
    random = np.random.default_rng(5)
    rows, columns = random.integers(40, size=500), random.integers(300, size=500)
    counts = random.integers(0, 4, size=500).astype(np.float32)
    order = np.argsort(rows, kind="stable")
    starts = np.concatenate([[0], np.bincount(rows, minlength=40).cumsum()])
    links = csr_matrix((random.random((40, 40)) < 0.1).astype(np.float32))
    path = tmp_path / "tiny.npz"
    np.savez(
        path,
        attr_data=counts[order],
        attr_indices=columns[order],
        attr_indptr=starts,
        attr_shape=(40, 300),
        adj_data=links.data,
        adj_indices=links.indices,
        adj_indptr=links.indptr,
        adj_shape=(40, 40),
        labels=np.arange(40) % 3,
    )
    return path


def test_an_archive_is_read_as_torch_geometric_reads_it(archive: Path) -> None:
    x, edges, y = read_archive(archive)
    expected = read_npz(str(archive))
    assert torch.equal(x.dense(), expected.x)
    assert torch.equal(edges, expected.edge_index)
    assert torch.equal(y, expected.y)


def graph(archive: Path) -> GraphData:
    x, edges, y = read_archive(archive)
    return GraphData("tiny", x, edges, y, 3)


def config(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {"split": "random", "data": DataConfig(per_class=4, val=10), "epochs": 8, "device": "cpu"}
    return TrainConfig(**{**base, **changes})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")
@pytest.mark.parametrize("name", ["gcn", "gat", "appnp", "gcnii"])
def test_sparse_features_train_as_dense_ones(archive: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights after five epochs; and with 12 labelled nodes of 300 features no dense copy of all of them is made."""
    data = graph(archive).row_normalized()
    made = config(model=ModelConfig(name=name, hidden=8))
    dense = runs.open_trainer(made, data.with_features("dense"))
    losses = [dense.run_epoch().loss for _ in range(5)]
    rows: list[int] = []
    original = SparseMatrix.dense

    def counting(self: SparseMatrix) -> Tensor:
        rows.append(self.shape[0])
        return original(self)

    monkeypatch.setattr(SparseMatrix, "dense", counting)
    sparse = runs.open_trainer(made, data)
    assert [sparse.run_epoch().loss for _ in range(5)] == pytest.approx(losses, rel=1e-5)
    # float32; products are summed in another order
    torch.testing.assert_close(weights(sparse.model), weights(dense.model), rtol=1e-3, atol=1e-5)
    # aggregated rows are built from the entries, others are the labelled nodes'
    assert rows == [] if name == "gcn" else max(rows) <= 12


def moments(x: Tensor, curvature: Curvature, counted: Tensor | None, *, linear: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(x.shape[1], 3) if linear else OneLayer(x.shape[1])
    preconditioner = Preconditioner(model, curvature, fisher=Fisher("exact"))
    with preconditioner.capture():
        likelihood = Categorical(model(x) if linear else model(x, small_graph()))
        preconditioner.observe(likelihood if counted is None else likelihood.weighted(counted, counted.nonzero().flatten()))
    preconditioner.update()
    return dict(next(iter(preconditioner.blocks.values())).state.moments)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("curvature", [KFAC(), KFAC(max_factor_size=3), GramKFAC(), Exact()], ids=["kfac", "split", "gram", "exact"])
@pytest.mark.parametrize("counted", [None, torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0])], ids=["all", "weighted"])
@pytest.mark.parametrize("linear", [False, True])
def test_moments_of_sparse_inputs(curvature: Curvature, counted: Tensor | None, linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of two rows, so that the sum over pieces is part of the test."""
    monkeypatch.setattr("natgrad_apps.layers._sparse.CHUNK", 2)
    monkeypatch.setattr("natgrad_apps.graphs.aggregation.CHUNK", 2)
    x = torch.randn(5, 7) * (torch.rand(5, 7) < 0.5)
    counted = None if counted is None else counted.double()
    expected = moments(x, curvature, counted, linear=linear)
    found = moments(SparseMatrix.from_dense(x), curvature, counted, linear=linear)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # float64, sums of fewer than 100 terms
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_strided_units_of_sparse_inputs() -> None:
    """``Subsample(units=2)`` takes the first, third and fifth row of either kind."""
    x = torch.randn(5, 7) * (torch.rand(5, 7) < 0.5)
    found = []
    for features in (x, SparseMatrix.from_dense(x)):
        torch.manual_seed(0)
        model = nn.Linear(7, 3)
        preconditioner = Preconditioner(model, KFAC(), fisher={"kind": "exact", "subsample": {"units": 2}})
        with preconditioner.capture():
            preconditioner.observe(Categorical(model(features)))
        preconditioner.update()
        [block] = preconditioner.blocks.values()
        found.append(block.state.moments["A0"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_dropout_of_entries(seed: int) -> None:
    """Kept entries are doubled; 4000 trials of probability 1/2, within 5 standard deviations."""
    del seed
    sparse = SparseMatrix.from_dense(torch.ones(40, 100))
    dropped = dropout(sparse, 0.5, True)
    assert isinstance(dropped, SparseMatrix)
    values = dropped.dense()
    assert set(values.unique().tolist()) == {0.0, 2.0}
    assert abs(float((values > 0).sum()) - 2000) < 5 * 4000**0.5 / 2
    assert dropout(sparse, 0.5, False) is sparse


def test_layouts(archive: Path) -> None:
    data = graph(archive)
    assert isinstance(data.x, SparseMatrix)
    assert data.with_features("auto").x is data.x
    assert torch.equal(data.with_features("dense").x, data.x.dense())
    assert isinstance(data.with_features("dense").with_features("sparse").x, SparseMatrix)
    full = GraphData("full", SparseMatrix.from_dense(torch.ones(40, 5)), data.edge_index, data.y, 3)
    assert not isinstance(full.with_features("auto").x, SparseMatrix)
    kept = torch.tensor([3, 30, 7])
    assert torch.equal(data.subgraph(kept).x.dense(), data.x.dense()[kept])  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="'sage' sums features over neighbours"):
        config(model=ModelConfig(name="sage"), data=DataConfig(features="sparse"))


def test_identities_of_a_large_table_are_sparse(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("id,label\n" + "".join(f"{i},{i % 2}\n" for i in range(2000)))
    (tmp_path / "e.csv").write_text("source,target\n" + "".join(f"{i},{(i + 1) % 2000}\n" for i in range(2000)))
    x = load_tables(tmp_path / "e.csv", tmp_path / "n.csv", undirected=True).x
    assert isinstance(x, SparseMatrix)
    weight = torch.randn(3, 2000)
    assert torch.equal(torch.nn.functional.linear(x, weight), weight.mT)


@needs_data
@pytest.mark.parametrize(
    ("name", "sizes", "nnz"),
    [
        # nodes, directed edges, features, classes of the data's own page; entries counted in the files
        ("CS", (18333, 163788, 6805, 15), 1092079),
        ("Physics", (34493, 495924, 8415, 5), 1137311),
        ("Computers", (13752, 491722, 767, 10), 3675081),
    ],
)
def test_public_archives(tmp_path: Path, name: str, sizes: tuple[int, ...], nnz: int) -> None:
    data = load_public(name, tmp_path)
    assert isinstance(data.x, SparseMatrix)
    assert (data.nodes, data.edge_index.shape[1], data.x.shape[1], data.classes) == sizes
    assert data.x.nnz == nnz
    assert list(tmp_path.iterdir()) == []  # read in place


@needs_data
@pytest.mark.slow
def test_a_public_archive_as_torch_geometric_reads_it(tmp_path: Path) -> None:
    assert ROOT is not None
    data, expected = load_public("Computers", tmp_path), read_npz(str(Path(ROOT) / "gnn-benchmark" / "amazon_electronics_computers.npz"))
    assert isinstance(data.x, SparseMatrix)
    assert torch.equal(data.x.dense(), expected.x)
    assert torch.equal(data.edge_index, expected.edge_index)
