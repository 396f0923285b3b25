"""The accuracy benchmark of graphs on a graph that needs no file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import graph_accuracy
from benchmarks.graph_accuracy import CASES, main
from natgrad_apps.graphs.comparing import Outcome
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.data import GraphData


def test_writes_paired_runs_and_epoch_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = replace(CASES["cora_public"], dataset="karate", split="random", data=replace(CASES["cora_public"].data, per_class=2, val=5))
    monkeypatch.setitem(CASES, "cora_public", small)
    monkeypatch.setattr(graph_accuracy, "EPOCHS", 2)
    out = tmp_path / "numbers.json"
    words = [
        "--cases",
        "cora_public",
        "--seeds",
        "2",
        "--tune-seeds",
        "1",
        "--epochs",
        "2",
        "--remember",
        str(tmp_path / "runs"),
        "--out",
        str(out),
    ]
    main(words)
    found = json.loads(out.read_text())["cases"]["cora_public"]
    assert found["split"].startswith("random split: 8 train, 5 validation")
    for name in ("natural_gradient", "adam"):
        assert [run["seed"] for run in found[name]["runs"]] == [0, 1]
        assert len(found[name]["grid"]) == 4
    assert found["epoch_cost"]["ratio"] > 0
    assert "paired difference in test accuracy" in capsys.readouterr().out

    def forbidden(config: TrainConfig, data: GraphData) -> Outcome:
        raise AssertionError(f"trained again: {config} on {data.name}")

    monkeypatch.setattr(graph_accuracy, "run_once", forbidden)
    main(words)
    again = json.loads(out.read_text())["cases"]["cora_public"]
    assert again["natural_gradient"] == found["natural_gradient"]
    assert len((tmp_path / "runs").read_text().splitlines()) == 2 * (4 + 2)


def test_every_case_names_a_dataset_and_equal_grids() -> None:
    for case in CASES.values():
        assert len(case.natural_gradient_lr) == len(case.adam_lr) == 2
        assert case.seeds == 10
        assert case.optimizer.curvature == "gram_kfac"
