"""The benchmarks of links, whole graphs and sparse features, on graphs that need no file."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch_geometric.nn import GCNConv

from benchmarks import graph_tasks, sparse_features
from natgrad_apps.graphs.config import DataConfig, TrainConfig
from natgrad_apps.graphs.convolutions import FixedGCNConv
from natgrad_apps.graphs.features import Layout
from natgrad_apps.graphs.models import ConvNet, ModelOptions, build_model


@pytest.mark.parametrize("case", ["links", "graphs"])
def test_both_optimizers_are_tuned_and_reported(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config, optimizer = graph_tasks.CASES[case]
    if case == "links":
        config = replace(config, dataset="karate", links=replace(config.links, val=0.1, test=0.2))
    monkeypatch.setitem(graph_tasks.CASES, case, (config, optimizer))
    monkeypatch.setattr(graph_tasks, "RATES", {"natural gradient": (0.02,), "Adam": (0.003,)})
    graph_tasks.main(["--cases", case, "--seeds", "2", "--epochs", "1"])
    printed = capsys.readouterr().out
    assert "natural gradient" in printed
    assert "Adam" in printed
    assert "torch-geometric" in printed


def test_the_best_validation_score_chooses_the_rate() -> None:
    """A rate of 1e-9 learns nothing, so it has the worse score, or the same score and the larger loss."""
    config, optimizer = graph_tasks.CASES["graphs"]
    chosen = graph_tasks.tuned(replace(config, epochs=1), optimizer, (1e-9, 0.02))
    assert chosen.lr == 0.02


def test_the_two_sums_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def karate(dataset: str, layout: Layout, optimizer: str) -> TrainConfig:
        return replace(original(dataset, layout, optimizer), split="public", data=DataConfig(features=layout))

    original = sparse_features.config
    monkeypatch.setattr(sparse_features, "config", karate)
    found = sparse_features.times("karate", 1)
    assert len(found) == 6
    assert all(value > 0 for value in found.values())
    for kind, expected in (("messages", GCNConv), ("product", FixedGCNConv)):
        with sparse_features.summing_by(kind):
            model = build_model(ModelOptions(), 5, 2)
        assert isinstance(model, ConvNet)
        assert type(model.convs[0]) is expected
