"""The calibration benchmark of graphs on a graph that needs no file."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import graph_uncertainty
from benchmarks.graph_uncertainty import GRID, ROWS, main
from natgrad_apps.graphs.data import GraphData, load_public
from natgrad_apps.graphs.splits import Split, SplitOptions, make_split
from natgrad_apps.graphs.uncertainty import PosteriorOptions


def small(*unused: Any) -> tuple[GraphData, Split]:
    return make_split(load_public("karate"), "random", SplitOptions(per_class=2, val=8), 0)


def test_chooses_a_point_and_writes_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(graph_uncertainty, "load_public", lambda _: load_public("karate"))
    monkeypatch.setattr(graph_uncertainty, "make_split", small)
    monkeypatch.setattr(graph_uncertainty, "SAMPLES", 2)
    monkeypatch.setattr(graph_uncertainty, "ADAM_EPOCHS", 3)
    monkeypatch.setattr(graph_uncertainty, "PosteriorOptions", functools.partial(PosteriorOptions, epochs=2))
    out = tmp_path / "numbers.json"
    main(["--seeds", "2", "--tune-seeds", "1", "--left-out-seeds", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert tuple(found["point"]) in GRID
    assert len(found["results"]) == 2
    for result in found["results"]:
        assert set(result) == set(ROWS)
        assert result["noisy K-FAC, mixture + T"]["temperature"] > 0
    assert "auroc_entropy" in found["results"][0]["GCN, Adam"]
    assert "auroc_entropy" not in found["results"][1]["GCN, Adam"]
    printed = capsys.readouterr().out
    assert printed.count("validation NLL") == len(GRID)
    assert "taken: temperature" in printed
