"""Link prediction: measures by their definitions, splits without leaks, and the Fisher of losses on pairs."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from natgrad_apps import Exact, Fisher, Preconditioner
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.cli import main
from natgrad_apps.graphs.config import DataConfig, LinksConfig, ModelConfig, OptimizerConfig, SamplingConfig, TrainConfig
from natgrad_apps.graphs.convolutions import FixedGCNConv
from natgrad_apps.graphs.data import GraphData, load_public
from natgrad_apps.graphs.links import LinkNet, LinkTrainer, NoLinks, split_links
from natgrad_apps.graphs.models import ConvNet, ModelOptions, build_model
from natgrad_apps.graphs.ranking import measure_links
from natgrad_apps.likelihoods import Bernoulli
from natgrad_apps.statistics import fisher
from tests._feed import dense, factors
from tests.graphs._models import small_graph

KARATE = load_public("karate")


def test_measures_by_their_definitions() -> None:
    """Every pair of a link and another one for the AUC; precision at each distinct score for the average precision."""
    scores = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.5, 0.5, -1.0, -3.0])
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    found = measure_links(scores, labels)
    links, others = scores[labels > 0].tolist(), scores[labels == 0].tolist()
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(links, others)]
    assert found.auc == pytest.approx(sum(wins) / len(wins))
    precision = 0.0
    for cut in scores.unique().tolist():
        above, gained = labels[scores >= cut], labels[scores == cut]
        precision += float(gained.sum() / labels.sum()) * float(above.mean())
    assert found.ap == pytest.approx(precision)
    assert found.score == found.auc
    assert found.accuracy == pytest.approx(4 / 8)  # right: 2, 1, one 0.5 of a link, -3
    assert measure_links(labels, labels).auc == measure_links(labels, labels).ap == 1.0


def test_the_split_leaks_nothing() -> None:
    before = torch.get_rng_state(), random.getstate()
    split, again, other = (split_links(KARATE, 0.1, 0.2, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.equal(split.test.index, again.test.index)
    assert not torch.equal(split.train, other.train)

    def keys(pairs: Tensor) -> set[tuple[int, ...]]:
        return {tuple(sorted(pair)) for pair in pairs.mT.tolist()}

    parts = [keys(split.train), *(keys(p.index[:, p.labels > 0]) for p in (split.val, split.test))]
    assert [len(part) for part in parts] == [56, 7, 15]  # 78 links: int(7.8), int(15.6), the rest
    assert set.union(*parts) == keys(KARATE.edge_index)
    assert sum(map(len, parts)) == 78
    for pairs in (split.val, split.test):
        assert keys(pairs.index[:, pairs.labels == 0]).isdisjoint(keys(KARATE.edge_index))
        assert int(pairs.labels.sum()) * 2 == len(pairs.labels)
    assert "56 train, 7 validation, 15 test links" in str(split)
    with pytest.raises(ConfigError, match="too small for validation links"):
        split_links(KARATE, 0.001, 0.2, 0)


def test_pairs_without_a_link() -> None:
    nowhere = NoLinks(KARATE.edge_index, 34)
    pairs = nowhere.draw(2000, torch.Generator().manual_seed(0))
    assert pairs.shape == (2, 2000)
    assert bool((pairs[0] != pairs[1]).all())
    linked = torch.zeros(34, 34, dtype=torch.bool)
    linked[KARATE.edge_index[0], KARATE.edge_index[1]] = True
    assert not bool(linked[pairs[0], pairs[1]].any())
    drawn = torch.zeros(34, 34).index_put_((pairs.amin(0), pairs.amax(0)), torch.ones(2000), accumulate=True)
    assert int((drawn > 0).sum()) > 470  # of 34 * 33 / 2 - 78 = 483, each drawn 4.1 times on average
    full = torch.tensor(list(itertools.combinations(range(5), 2))).mT
    with pytest.raises(ConfigError, match="almost every pair"):
        NoLinks(full, 5)


PAIRS = torch.tensor([[0, 1, 2, 4], [2, 3, 4, 1]])


def tiny(decoder: str) -> tuple[LinkNet, GraphData]:
    graph = GraphData("tiny", torch.randn(5, 4), small_graph(), torch.zeros(5, dtype=torch.int64), 2)
    encoder = build_model(ModelOptions(name="gcn", hidden=3, dropout=0.0), 4, 3)
    return LinkNet(encoder, decoder, 3), graph


def fed(model: nn.Module, graph: GraphData, curvature: Any) -> Preconditioner:
    preconditioner = Preconditioner(model, curvature, damping=0.5, fisher=Fisher("exact"))
    with preconditioner.capture():
        preconditioner.observe(Bernoulli(model(PAIRS, graph)))
    preconditioner.update()
    return preconditioner


def jacobian(model: LinkNet, graph: GraphData, name: str) -> tuple[Tensor, Tensor]:
    """``d s_e / d value``, ``[M, ...]``, and the variance ``p (1 - p)`` of each pair."""
    parameters = {key: p.detach() for key, p in model.named_parameters()}

    def outputs(value: Tensor) -> Tensor:
        result: Tensor = functional_call(model, {**parameters, name: value}, (PAIRS, graph))
        return result

    p = model(PAIRS, graph).detach().sigmoid()
    found: Tensor = jacrev(outputs)(parameters[name])
    return found, p * (1 - p)


@pytest.mark.usefixtures("float64")
def test_the_decoder_is_exact_pair_by_pair() -> None:
    """A pair is a row of the decoder: ``F = 1/M sum_e p_e (1 - p_e) J_e^T J_e`` for its last layer, the bias included."""
    model, graph = tiny("mlp")
    weight, variance = jacobian(model, graph, "decoder.2.weight")
    bias, _ = jacobian(model, graph, "decoder.2.bias")
    jac = torch.cat([weight, bias.unsqueeze(-1)], -1).flatten(1)
    expected = torch.einsum("e,ed,ef->df", variance, jac, jac) / 4
    # float64, four terms
    torch.testing.assert_close(dense(fed(model, graph, Exact()), "decoder.2"), expected + 0.5 * torch.eye(4), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("decoder", ["dot", "mlp"])
def test_factors_of_the_encoder(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``G = 1/M sum_e sum_i g_ei g_ei^T`` and the node-wise block ``1/M sum_e sum_i (g_ei g_ei^T) (x) (a_i a_i^T)``.

    The mean over all 2^4 signs of the pairs is taken, which is the expectation over random signs; ``g_ei`` comes from the Jacobian of the
    logits with respect to the convolution's output, which nothing of the package takes part in.
    """
    model, graph = tiny(decoder)
    assert isinstance(model.encoder, ConvNet)
    first, layer = model.encoder.convs
    assert isinstance(layer, FixedGCNConv)
    shift = torch.zeros(5, 3)

    def shifted(delta: Tensor) -> Tensor:
        handle = layer.register_forward_hook(lambda *args: args[2] + delta)
        try:
            logits: Tensor = model(PAIRS, graph)
            return logits
        finally:
            handle.remove()

    p = model(PAIRS, graph).detach().sigmoid()
    g = jacrev(shifted)(shift).detach() * (p * (1 - p)).sqrt().reshape(4, 1, 1)  # [M, N, d_out]
    hidden = torch.relu(first(graph.x, graph.edge_index)).detach()
    assert layer._matrix is not None
    adjacency = layer._matrix.dense()
    a = torch.cat([adjacency @ hidden, torch.ones(5, 1)], 1)
    expected_G = torch.einsum("eio,eip->op", g, g) / 4
    rows = torch.einsum("eio,ij->eioj", g, a).flatten(2)
    expected_block = torch.einsum("eid,eif->df", rows, rows) / 4
    signs = [torch.tensor(s) for s in itertools.product([-1.0, 1.0], repeat=4)]
    blocks, gs = [], []
    for sign in signs:
        monkeypatch.setattr(fisher, "_signed", lambda column, *_, sign=sign: tuple(v * sign for v in column))
        blocks.append(dense(fed(model, graph, Exact()), "encoder.convs.1"))
        A, G = factors(fed(model, graph, "kfac"), "encoder.convs.1")
        gs.append(G)
    # float64, sums of fewer than 100 terms
    torch.testing.assert_close(torch.stack(gs).mean(0), expected_G, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.stack(blocks).mean(0), expected_block + 0.5 * torch.eye(12), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(A, a.mT @ a / 5, rtol=1e-10, atol=1e-12)


def config(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "task": "links",
        "model": ModelConfig(hidden=16, dropout=0.0),
        "optimizer": OptimizerConfig(lr=0.05),
        "links": LinksConfig(val=0.1, test=0.2),
        "epochs": 6,
        "device": "cpu",
    }
    return TrainConfig(**{**base, **changes})


def weights(trainer: LinkTrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def opened(made: TrainConfig) -> LinkTrainer:
    trainer = runs.open_learner(made)
    assert isinstance(trainer, LinkTrainer)
    return trainer


@pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")
@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gin", "appnp", "sgc", "gcnii"])
def test_every_model_learns_links(name: str) -> None:
    trainer = opened(config(model=ModelConfig(name=name, hidden=8, dropout=0.0), epochs=30))
    nlls = [trainer.run_epoch().train.nll for _ in range(30)]
    assert min(nlls[15:]) < 0.95 * nlls[0]


@pytest.mark.parametrize("decoder", ["dot", "mlp"])
def test_a_run_in_two_parts_is_the_run_in_one(decoder: Any) -> None:
    made = config(links=LinksConfig(0.1, 0.2, decoder, 8), sampling=SamplingConfig(batch_size=20), model=ModelConfig(hidden=8))
    whole = opened(made)
    assert whole.batches == 3
    while not whole.done:
        whole.advance()
    part = opened(made)
    while part.steps < 10:
        part.advance()
    files = runs.pack(part, "config")
    torch.manual_seed(99)
    rest = opened(made)
    runs.unpack(files, rest)
    while not rest.done:
        rest.advance()
    assert torch.equal(weights(whole), weights(rest))
    assert whole.progress.best_score == rest.progress.best_score


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["--task", "links", "--links.val", "0.1", "--links.test", "0.2", "--epochs", "5", "--device", "cpu"]
    assert main(["train", *words, "--out", str(out)]) == 0
    assert "56 train, 7 validation, 15 test links" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["test_auc"] == results["test"]["auc"]
    assert {p.name for p in (out / "figures").iterdir()} == {"curves.png"}
    assert main(["evaluate", str(out)]) == 0
    assert json.loads((out / "evaluation.json").read_text())["test"] == results["test"]
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "part,source,target,label,p_link"
    assert len(lines) == 1 + 2 * (7 + 15)
    assert main(["plot", str(out)]) == 0
    assert main(["check", *words]) == 0
    assert "karate: 34 nodes" in capsys.readouterr().out
    assert main(["compare", *words, "--out", str(tmp_path / "no")]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "random"}, "with task links, split must be auto"),
        ({"data": DataConfig(inductive=True)}, r"data\.inductive must be false"),
        ({"sampling": SamplingConfig(5, [2, 2])}, r"sampling\.fanouts must be empty"),
    ],
)
def test_illegal_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**changes)
