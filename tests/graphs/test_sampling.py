"""Sampled neighbourhoods: full fan-out is the whole graph, draws are uniform and repeat, runs go on within an epoch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.cli import main
from natgrad_apps.graphs.config import DataConfig, ModelConfig, OptimizerConfig, PseudoConfig, SamplingConfig, TrainConfig
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.sampling import InNeighbors, NodeBatches
from natgrad_apps.graphs.splits import Split
from natgrad_apps.graphs.trainer import Trainer
from natgrad_apps.linalg.sparse import SparseMatrix
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.statistics import fisher
from tests.graphs._models import dense_adjacency
from tests.graphs._tables import write_communities

pytestmark = pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")


def graph(nodes: int = 30, degree: int = 5, seed: int = 3) -> GraphData:
    """Random links in both directions, seven features, three classes."""
    generator = torch.Generator().manual_seed(seed)
    links = torch.randint(nodes, (2, nodes * degree // 2), generator=generator)
    links = links[:, links[0] != links[1]]
    edges = torch.cat([links, links.flip(0)], 1).unique(dim=1)
    x = torch.randn(nodes, 7, generator=generator) * (torch.rand(nodes, 7, generator=generator) < 0.6)
    return GraphData("random", x.to(torch.get_default_dtype()), edges, torch.arange(nodes) % 3, 3)


def split(nodes: int = 30) -> Split:
    order = torch.arange(nodes)
    return Split("own", order[:12], order[12:20], order[20:])


def config(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "model": ModelConfig(hidden=4, dropout=0.0),
        "optimizer": OptimizerConfig(curvature="kfac", fisher="exact", refresh={"name": "periodic"}, lr=0.1),
        "sampling": SamplingConfig(batch_size=5),
        "epochs": 6,
        "seed": 2,
        "device": "cpu",
    }
    return TrainConfig(**{**base, **changes})


def trainer(made: TrainConfig, data: GraphData | None = None, loader: Any = None) -> Trainer:
    torch.manual_seed(made.seed)
    found = Trainer(made, graph() if data is None else data, split(), torch.device("cpu"), loader)
    found.model.to(torch.get_default_dtype())
    return found


def weights(found: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in found.model.parameters()])


@pytest.mark.parametrize("fanouts", [(2,), (3, 1), (-1, 2), (-1, -1)])
def test_what_is_sampled(fanouts: tuple[int, ...]) -> None:
    data = graph().gcn_normalized()  # with self-loops
    edges, seeds = data.edge_index, torch.tensor([4, 0, 17])
    found = InNeighbors(edges, data.nodes).sample(seeds, fanouts, torch.Generator().manual_seed(1))
    assert torch.equal(found.nodes[:3], seeds)
    assert len(found.nodes.unique()) == len(found.nodes)
    assert len(found.edges.unique()) == len(found.edges)
    assert torch.equal(found.nodes[found.edge_index], edges[:, found.edges])
    frontier, known = seeds.tolist(), set(seeds.tolist())
    for fanout in fanouts:
        new: set[int] = set()
        for node in frontier:
            own = [e for e in found.edges.tolist() if int(edges[1, e]) == node]
            neighbors = [int(edges[0, e]) for e in own if int(edges[0, e]) != node]
            degree = int(((edges[1] == node) & (edges[0] != node)).sum())
            taken = degree if fanout == -1 else min(fanout, degree)
            assert len(neighbors) == taken
            assert len(own) == taken + 1  # the self-loop
            for e, scale in zip(found.edges.tolist(), found.scale.tolist(), strict=True):
                if e in own:
                    assert scale == pytest.approx(1.0 if int(edges[0, e]) == node else degree / taken)
            new |= set(neighbors) - known
        known |= new
        frontier = sorted(new)
    assert known == set(found.nodes.tolist())


def test_draws_are_uniform_and_sums_unbiased() -> None:
    """2 of 5 neighbours, 1000 times: each is drawn 400 times within 5 standard deviations, and so is the scaled sum."""
    edges = torch.stack([torch.arange(1, 6), torch.zeros(5, dtype=torch.int64)])
    neighbors, generator, values = InNeighbors(edges, 6), torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    counts, sums = torch.zeros(6), []
    for _ in range(1000):
        found = neighbors.sample(torch.tensor([0]), [2], generator)
        drawn = edges[0, found.edges]
        counts[drawn] += 1
        sums.append(float((found.scale * values[drawn]).sum()))
    assert bool(((counts[1:] - 400).abs() < 5 * (1000 * 0.4 * 0.6) ** 0.5).all())
    spread = torch.tensor(sums)
    assert abs(float(spread.mean()) - 31) < 5 * float(spread.std()) / 1000**0.5


def test_an_epoch_has_every_seed_once_and_repeats() -> None:
    seeds = torch.arange(12) * 2
    first, second = (NodeBatches(graph(), seeds, [2, 2], 5, seed=7) for _ in range(2))
    assert len(first) == 3
    epochs = [list(first), list(first)]
    for batches in epochs:
        assert sorted(int(i) for b in batches for i in b.input_id) == list(range(12))
        assert [b.batch_size for b in batches] == [5, 5, 2]
        for b in batches:
            assert torch.equal(b.n_id[: b.batch_size], seeds[b.input_id])
            assert torch.equal(b.y, graph().y[b.n_id])
            assert torch.equal(b.x, graph().x[b.n_id])
            assert torch.equal(b.n_id[b.edge_index], graph().edge_index[:, b.e_id])
    assert not torch.equal(epochs[0][0].input_id, epochs[1][0].input_id)
    again = second.batch(1, 2)
    assert torch.equal(again.e_id, epochs[1][2].e_id)
    assert len(NodeBatches(graph(), seeds, [2], 5, least=3)) == 2
    parts = [first.batch(0, 0, slice(rank, None, 2)).input_id.tolist() for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(epochs[0][0].input_id.tolist())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", ["gcn", "sage", "gin", "gat", "appnp", "gcnii"])
def test_full_fan_out_is_the_whole_graph(name: str, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradients and every moment of a batch of all training nodes are those of the full batch.

    Fisher columns without random signs: signs are drawn by the number of nodes, which differs, and change products of different terms.
    """
    if sparse and name in {"sage", "gin"}:
        pytest.skip("they sum features first")
    monkeypatch.setattr(fisher, "_signed", lambda column, *_: column)
    data = graph()
    data = replace(data, x=SparseMatrix.from_dense(data.x)) if sparse else data
    model = ModelConfig(name=name, hidden=4, dropout=0.0, layers=2)
    found = []
    for sampling in (SamplingConfig(batch_size=0), SamplingConfig(batch_size=12)):
        own = trainer(config(model=model, sampling=sampling), data)
        loss = own.step()
        assert isinstance(own.optimizer, NaturalGradient)
        moments = {
            f"{block}.{key}": value
            for block, one in own.optimizer.preconditioner.blocks.items()
            for key, value in one.state.moments.items()
        }
        found.append((loss, [p.grad for p in own.model.parameters()], moments))
    (loss, gradients, moments), (other_loss, other_gradients, other_moments) = found
    # float64, sums of fewer than 1000 terms
    torch.testing.assert_close(other_loss, loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-10, atol=1e-12)
    assert moments.keys() == other_moments.keys()
    for key, value in moments.items():
        torch.testing.assert_close(other_moments[key], value, rtol=1e-10, atol=1e-12)


def test_a_run_goes_on_within_an_epoch() -> None:
    """Bit-equal: the batch is a function of the epoch and its place, the rest is in the checkpoint."""
    made = config(
        model=ModelConfig(hidden=4), sampling=SamplingConfig(5, [2, 2]), optimizer=OptimizerConfig(curvature="kfac", momentum=0.9)
    )
    whole = trainer(made)
    while not whole.done:
        whole.advance()
    part = trainer(made)
    while part.steps < 7:  # two epochs of three batches, and one
        part.advance()
    assert (part.progress.epoch, part.progress.batch) == (2, 1)
    files = runs.pack(part, "config")
    torch.manual_seed(99)
    rest = trainer(made)
    runs.unpack(files, rest)
    while not rest.done:
        rest.advance()
    assert torch.equal(weights(whole), weights(rest))
    first, second = whole.progress, rest.progress
    assert (first.best_epoch, first.best_score, first.lowest) == (second.best_epoch, second.best_score, second.lowest)


class Foreign:
    """A loader that gives what torch-geometric's gives, and nothing else."""

    def __init__(self, batches: NodeBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Data]:
        yield from self._batches


def test_a_loader_of_ones_own() -> None:
    model = ModelConfig(name="sage", hidden=4, dropout=0.0)

    def foreign() -> Trainer:
        batches = NodeBatches(graph(), split().train, [-1, -1], 5, seed=2)
        return trainer(config(model=model, sampling=SamplingConfig()), loader=Foreign(batches))

    ours, theirs = trainer(config(model=model)), foreign()
    for own in (ours, theirs):
        for _ in range(2):
            own.run_epoch()
    assert torch.equal(weights(ours), weights(theirs))
    theirs.advance()
    again = foreign()
    runs.unpack(runs.pack(theirs, "config"), again)
    with pytest.raises(ConfigError, match="between two epochs"):
        again.advance()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [0, 12])
def test_inductive_training_sees_the_training_nodes_only(size: int) -> None:
    """The loss is that of the subgraph with its own normalization; features of other nodes change the evaluation, not the training."""
    made = config(data=DataConfig(inductive=True), sampling=SamplingConfig(batch_size=size), model=ModelConfig(layers=1, dropout=0.0))
    data = graph()
    own = trainer(made, data)
    kept = split().train
    inside = data.subgraph(kept)
    parameters = dict(own.model.named_parameters())
    expected = dense_adjacency(inside.edge_index, 12) @ inside.x @ parameters["convs.0.lin.weight"].mT + parameters["convs.0.bias"]
    loss = F.cross_entropy(expected, data.y[kept])
    torch.testing.assert_close(own.step(), loss.detach(), rtol=1e-10, atol=1e-12)
    shaken = replace(data, x=torch.where((torch.arange(30) < 12).unsqueeze(1), data.x, torch.randn(30, 7)))
    first, second = trainer(made, data), trainer(made, shaken)
    epochs = [t.run_epoch() for t in (first, second)]
    torch.testing.assert_close(weights(first), weights(second), rtol=1e-12, atol=1e-14)
    assert epochs[0].loss == pytest.approx(epochs[1].loss, rel=1e-12)
    assert epochs[0].train.nll != epochs[1].train.nll


def test_small_fan_outs_learn(tmp_path: Path) -> None:
    edges, nodes = write_communities(tmp_path)
    made = TrainConfig(
        dataset="table",
        data=DataConfig(edges=str(edges), nodes=str(nodes)),
        model=ModelConfig(dropout=0.0),
        sampling=SamplingConfig(4, [3, 2]),
        optimizer=OptimizerConfig(curvature="kfac", refresh={"name": "periodic", "statistics_period": 1, "inverse_period": 3}),
        epochs=25,
        device="cpu",
    )
    own = runs.open_trainer(made)
    assert own.batches == 3
    nlls = [own.run_epoch().train.nll for _ in range(25)]
    assert nlls[-1] < 0.7 * nlls[0]


@pytest.mark.slow
def test_a_signal_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 130 after the seventh batch; then the table and the results of the run in one piece."""
    edges, nodes = write_communities(tmp_path)
    words = ["--dataset", "table", "--data.edges", str(edges), "--data.nodes", str(nodes), "--device", "cpu", "--epochs", "5"]
    words += ["--sampling.batch_size", "5", "--sampling.fanouts", "[2, 2]", "--optimizer.curvature", "kfac"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *words, "--out", str(whole)]) == 0
    advance = Trainer.advance

    def stopping(self: Trainer) -> Any:
        result = advance(self)
        if self.steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "advance", stopping)
    assert main(["train", *words, "--out", str(parts)]) == 130
    monkeypatch.setattr(Trainer, "advance", advance)
    assert main(["train", "--resume", str(parts)]) == 0
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
    assert len((whole / "metrics.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pseudo_labels": PseudoConfig(enabled=True)}, "made of the whole graph"),
        ({"optimizer": OptimizerConfig(fisher_nodes="all")}, "got fisher_nodes 'all'"),
        ({"model": ModelConfig(name="sgc")}, "take gcn"),
        ({"sampling": SamplingConfig(5, [3])}, "has 1 hops, but gcn reads 2"),
        ({"sampling": SamplingConfig(5, [3, 0])}, "must be >= 1, or -1"),
        ({"data": DataConfig(inductive=True), "sampling": SamplingConfig(), "pseudo_labels": PseudoConfig(enabled=True)}, "it sees none"),
    ],
)
def test_illegal_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**changes)


class Keeping(nn.Module):
    """A user's network that keeps the normalized edges of its first call."""

    def __init__(self, d_in: int, classes: int) -> None:
        super().__init__()
        self.conv = GCNConv(d_in, classes, cached=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        result: Tensor = self.conv(x, edge_index)
        return result


def test_a_network_that_keeps_one_graph_is_refused_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(Keeping=Keeping))
    model = ModelConfig(name="mine:Keeping")
    assert trainer(config(model=model, sampling=SamplingConfig())).run_epoch().loss > 0
    with pytest.raises(ConfigError, match="conv keeps the edges of the first one; build it with cached=False"):
        trainer(config(model=model))


def test_illegal_batches() -> None:
    with pytest.raises(ConfigError, match="at least one seed"):
        NodeBatches(graph(), torch.arange(0), [2], 5)
    with pytest.raises(ConfigError, match=r"each fanout >= 1 or -1 .* got 5 and \[0\]"):
        NodeBatches(graph(), torch.arange(3), [0], 5)
