"""Graph classification: the reduce rule over graphs of different sizes, the embedded set, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch_geometric.nn import GCNConv, global_mean_pool
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_networkx

import natgrad_apps
from natgrad_apps import KFAC, Fisher, GramKFAC, Preconditioner
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.cli import main
from natgrad_apps.graphs.config import GraphsConfig, ModelConfig, OptimizerConfig, SamplingConfig, TrainConfig
from natgrad_apps.graphs.graph_sets import MOTIF_NAMES, load_graph_set, motifs, split_graphs
from natgrad_apps.graphs.graph_trainer import GraphTrainer
from natgrad_apps.likelihoods import Categorical, Gaussian
from natgrad_apps.runner import schema
from natgrad_apps.runner.yaml_text import read_yaml
from tests._dense import categorical_root
from tests._feed import dense, factors

BATCH = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
"""Three graphs of three, two and four nodes."""


class Pooled(nn.Module):
    """A convolution, the mean over the nodes of each graph, and perhaps a linear layer."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.conv = GCNConv(4, 3)
        self.head = nn.Linear(3, 3) if head else nn.Identity()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = self.conv(x, edge_index)
        result: Tensor = self.head(global_mean_pool(hidden.tanh() if isinstance(self.head, nn.Linear) else hidden, BATCH, 3))
        return result


def inputs() -> tuple[Tensor, Tensor]:
    links = torch.tensor([[0, 1, 3, 5, 6, 7, 5], [1, 2, 4, 6, 7, 8, 8]])
    return torch.randn(9, 4), torch.cat([links, links.flip(0)], 1)


def fed(model: nn.Module, graph: tuple[Tensor, Tensor], curvature: Any, likelihood: Any) -> Preconditioner:
    preconditioner = Preconditioner(model, curvature, damping=0.5, fisher=Fisher("exact", sharing="reduce"))
    with preconditioner.capture():
        preconditioner.observe(likelihood(model(*graph)).pooled(BATCH))
    preconditioner.update()
    return preconditioner


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("curvature", [KFAC(), GramKFAC()], ids=["kfac", "gram"])
def test_reduce_is_exact_for_a_linear_layer_and_a_mean(curvature: Any) -> None:
    """``f_b = W mean_i a_i`` with squared error: ``F = mean_b abar_b abar_b^T (x) I``, whatever the sizes of the graphs."""
    model, graph = Pooled(head=False), inputs()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = functional_call(model, {**parameters, "conv.lin.weight": weight, "conv.bias": bias}, graph)
        return result

    weight, bias = jacrev(outputs, (0, 1))(parameters["conv.lin.weight"], parameters["conv.bias"])
    jac = torch.cat([weight, bias.unsqueeze(-1)], -1).flatten(2)
    expected = torch.einsum("bed,bef->df", jac, jac) / 3
    # float64, sums of fewer than 100 terms
    torch.testing.assert_close(
        dense(fed(model, graph, curvature, Gaussian), "conv"), expected + 0.5 * torch.eye(15), rtol=1e-10, atol=1e-12
    )


@pytest.mark.usefixtures("float64")
def test_factors_of_both_kinds_of_layers() -> None:
    """``A`` of averages and ``G`` of sums over the nodes of each graph before the pooling; after it, a graph is a row of its own."""
    model, (x, edges) = Pooled(head=True), inputs()
    preconditioner = fed(model, (x, edges), KFAC(), Categorical)
    conv = model.conv
    edge_index, weight = edges, None

    edge_index, weight = gcn_norm(edges, None, 9, dtype=x.dtype)
    adjacency = torch.zeros(9, 9).index_put_((edge_index[1], edge_index[0]), weight, accumulate=True)
    rows = torch.cat([adjacency @ x, torch.ones(9, 1)], 1)
    means = torch.stack([rows[BATCH == b].mean(0) for b in range(3)])
    A, G = factors(preconditioner, "conv")
    torch.testing.assert_close(A, means.mT @ means / 3, rtol=1e-10, atol=1e-12)
    root = categorical_root(model(x, edges))  # [B, C, columns]
    hidden = conv(x, edges)

    def logits(h: Tensor) -> Tensor:
        result: Tensor = model.head(global_mean_pool(h.tanh(), BATCH, 3))
        return result

    jac = jacrev(logits)(hidden.detach()).detach()  # [B, C, n, d_out]
    sums = torch.einsum("bcnd,bck->bkd", jac, root)
    torch.testing.assert_close(G, torch.einsum("bkd,bkf->df", sums, sums) / 3, rtol=1e-10, atol=1e-12)
    A, G = factors(preconditioner, "head")
    pooled = torch.cat([global_mean_pool(hidden.tanh(), BATCH, 3), torch.ones(3, 1)], 1).detach()
    torch.testing.assert_close(A, pooled.mT @ pooled / 3, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(G, torch.einsum("bck,bdk->cd", root, root).detach() / 3, rtol=1e-10, atol=1e-12)


def test_groups_that_do_not_fit() -> None:
    likelihood = Categorical(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="vector of integers"):
        likelihood.pooled(torch.zeros(4))
    with pytest.raises(ConfigError, match="indices of the 3 terms"):
        likelihood.pooled(torch.tensor([0, 1, 3]))
    with pytest.raises(ConfigError, match="at least one row"):
        likelihood.pooled(torch.tensor([0, 1, 1]))


def test_the_embedded_set_has_the_motifs_that_it_says() -> None:
    """A tree has no cycle, so the cyclic part of each graph is its motif, up to isomorphism."""
    shapes = [networkx.cycle_graph(6), networkx.grid_2d_graph(2, 3), networkx.complete_graph(4)]
    data = motifs(30, seed=5)
    assert data.class_names == MOTIF_NAMES
    for graph, y in zip(data.graphs, data.y.tolist(), strict=True):
        found = to_networkx(graph, to_undirected=True)
        assert networkx.is_connected(found)
        core = networkx.k_core(found, 2)
        assert networkx.is_isomorphic(core, shapes[y])
        assert 8 + 4 <= graph.num_nodes <= 16 + 6
        assert torch.equal(graph.x.argmax(1), torch.tensor([min(8, d) for _, d in sorted(found.degree())]))
    assert torch.equal(motifs(30, seed=5).graphs[7].edge_index, data.graphs[7].edge_index)


def test_split_by_shares_of_each_class() -> None:
    split = split_graphs(motifs(60), 0.5, 0.2, 3)
    parts = [split.train, split.val, split.test]
    assert [len(part) for part in parts] == [30, 12, 18]
    assert sorted(torch.cat(parts).tolist()) == list(range(60))
    for part, count in zip(parts, (10, 4, 6), strict=True):
        assert [int((part % 3 == c).sum()) for c in range(3)] == [count] * 3
    with pytest.raises(ConfigError, match="has 3 graphs, too few"):
        split_graphs(motifs(3), 0.8, 0.1, 0)


def test_a_set_of_the_tu_collection(tmp_path: Path) -> None:
    """Two graphs in that collection's text format: the second one has no features, so that degrees take their place."""
    for name, labels in (("LABELLED", True), ("BARE", False)):
        raw = tmp_path / "tu" / name / "raw"
        raw.mkdir(parents=True)
        (raw / f"{name}_A.txt").write_text("1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n")
        (raw / f"{name}_graph_indicator.txt").write_text("1\n1\n1\n2\n2\n")
        (raw / f"{name}_graph_labels.txt").write_text("1\n-1\n")
        if labels:
            (raw / f"{name}_node_labels.txt").write_text("0\n1\n0\n1\n1\n")
    first, second = (load_graph_set(f"tu:{name}", tmp_path) for name in ("LABELLED", "BARE"))
    assert (len(first.graphs), first.classes, first.features) == (2, 2, 2)
    assert sorted(first.y.tolist()) == [0, 1]
    assert second.features == 9
    assert second.graphs[0].x.argmax(1).tolist() == [1, 2, 1]
    with pytest.raises(ConfigError, match="'motifs' and 'tu:NAME'"):
        load_graph_set("MUTAG")


def config(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "task": "graphs",
        "dataset": "motifs",
        "model": ModelConfig(name="gin", hidden=16, dropout=0.0),
        "sampling": SamplingConfig(batch_size=60),
        "optimizer": OptimizerConfig(curvature="kfac", lr=0.05),
        "epochs": 3,
        "device": "cpu",
    }
    return TrainConfig(**{**base, **changes})


def opened(made: TrainConfig) -> GraphTrainer:
    trainer = runs.open_learner(made)
    assert isinstance(trainer, GraphTrainer)
    return trainer


@pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")
@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gin", "appnp", "gcnii", "sgc"])
def test_every_model_trains(name: str, pooling: Any) -> None:
    """One step along the natural gradient lowers the loss of the batch that it was taken on."""
    damping = {"name": "factored_tikhonov", "value": 0.1}
    changes: dict[str, Any] = {
        "model": ModelConfig(name=name, hidden=8, dropout=0.0),
        "optimizer": OptimizerConfig(curvature="kfac", fisher="exact", lr=0.02, momentum=0.0, damping=damping),
        "sampling": SamplingConfig(batch_size=0),
        "graphs": GraphsConfig(pooling=pooling),
    }
    trainer = opened(config(**changes))
    first = float(trainer.step())
    assert trainer.evaluate()[0].nll < first


def test_a_run_in_two_parts_is_the_run_in_one() -> None:
    made = config(model=ModelConfig(name="gin", hidden=8))
    whole = opened(made)
    assert whole.batches == 4
    while not whole.done:
        whole.advance()
    part = opened(made)
    while part.steps < 6:
        part.advance()
    files = runs.pack(part, "config")
    torch.manual_seed(99)
    rest = opened(made)
    runs.unpack(files, rest)
    while not rest.done:
        rest.advance()
    for mine, theirs in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.slow
def test_the_embedded_set_can_be_learnt() -> None:
    """The preset gets more than nine of ten test graphs, where chance is one third."""
    preset = Path(natgrad_apps.__file__).parent / "configs" / "graphs" / "motifs.yaml"
    trainer = opened(schema.read(TrainConfig, read_yaml(preset.read_text(), "motifs")))
    while not trainer.done:
        trainer.run_epoch()
    trainer.load_best()
    assert trainer.evaluate()[2].accuracy > 0.9


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["--task", "graphs", "--dataset", "motifs", "--model.name", "gin", "--epochs", "3", "--device", "cpu"]
    assert main(["train", *words, "--out", str(out)]) == 0
    assert "240 train, 30 validation, 30 test graphs" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["test_accuracy"] == results["test"]["accuracy"]
    assert main(["evaluate", str(out)]) == 0
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "graph,part,label,predicted,p_ring of six,p_grid of six,p_clique of four"
    assert len(lines) == 301
    assert main(["check", *words]) == 0
    assert "motifs: 300 graphs" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"graphs\.train \+ graphs\.val must leave"):
        config(graphs=GraphsConfig(train=0.9, val=0.1))
