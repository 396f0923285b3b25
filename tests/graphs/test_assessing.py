"""The verb ``uncertainty``: a whole run, its choice, exact resumption, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.assessing import Report, open_assessment
from natgrad_apps.graphs.assessment import Assessment
from natgrad_apps.graphs.calibration import calibrate
from natgrad_apps.graphs.cli import main
from natgrad_apps.graphs.config import DataConfig
from natgrad_apps.graphs.data import load_public
from natgrad_apps.graphs.posterior_config import PosteriorConfig, UncertaintyConfig
from natgrad_apps.graphs.splits import SplitOptions, make_split, without_class
from tests.graphs._tables import write_communities


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    edges, nodes = write_communities(tmp_path_factory.mktemp("graph"))
    posterior = ["--posterior.epochs", "8", "--posterior.num_samples", "4", "--posterior.lr", "0.1"]
    return ["--dataset", "table", "--data.edges", str(edges), "--data.nodes", str(nodes), "--device", "cpu", *posterior]


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_run_leaves_numbers_nodes_and_pictures(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["uncertainty", *words, "--miscoverage", "0.2", "--out", str(out)]) == 0
    found = results_of(out)
    assert "conformal sets" in capsys.readouterr().out
    with (out / "nodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    test = [row for row in rows if row["part"] == "test"]
    for row in rows:
        # six digits are written
        assert float(row["p_a"]) + float(row["p_b"]) == pytest.approx(1, abs=2e-6)
        assert float(row["entropy"]) == pytest.approx(float(row["aleatoric"]) + float(row["epistemic"]), abs=2e-6)
        assert row["predicted"] == max("ab", key=lambda name: float(row[f"p_{name}"]))
    right = sum(row["label"] == row["predicted"] for row in test) / len(test)
    covered = sum(row["label"] in row["conformal_set"].split("|") for row in test) / len(test)
    assert found["test_accuracy"] == found["test"]["accuracy"] == pytest.approx(right)
    assert found["conformal"]["coverage"] == pytest.approx(covered)
    assert found["conformal"]["promised"] == pytest.approx(0.8)
    assert found["uncertainty_test"]["epistemic"] == pytest.approx(sum(float(row["epistemic"]) for row in test) / len(test), abs=1e-6)
    assert found["scaling_temperature"] > 0
    assert found["left_out"] is None
    assert found["test"]["nodes"] == len(test)
    for name in ("reliability", "embedding", "uncertainty"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    assert len((out / "metrics.csv").read_text().splitlines()) == 9
    assert main(["uncertainty", "--resume", str(out)]) == 0
    assert "is complete" in capsys.readouterr().out
    other = tmp_path / "other"
    assert main(["evaluate", str(out), "--out", str(other)]) == 0
    assert "conformal sets" in capsys.readouterr().out
    again = json.loads((other / "evaluation.json").read_text())
    assert {key: found[key] for key in again if key != "machine"} == {key: again[key] for key in again if key != "machine"}
    assert (other / "nodes.csv").read_text() == (out / "nodes.csv").read_text()
    (out / "figures" / "uncertainty.png").unlink()
    assert main(["plot", str(out)]) == 0
    assert (out / "figures" / "uncertainty.png").stat().st_size > 10_000
    assert main(["plot", str(out), "--out", str(other / "a.png")]) == 2
    assert "plot it alone" in capsys.readouterr().err


def test_interrupted_run_goes_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal in the third of three fits: exit code 130, then the numbers and the tables of the run in one piece."""
    settings = [*words, "--posterior.temperature", "[0.05, 0.01]", "--left_out", "1"]
    monkeypatch.setattr(Report, "pictures", lambda self, folder: [])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["uncertainty", *settings, "--out", str(whole)]) == 0
    run_epoch = Assessment.run_epoch

    def stopping(self: Assessment) -> float:
        result = run_epoch(self)
        if self.epochs == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Assessment, "run_epoch", stopping)
    assert main(["uncertainty", *settings, "--out", str(parts)]) == 130
    assert f"uncertainty --resume {parts}" in capsys.readouterr().err
    assert main(["evaluate", str(parts)]) == 2
    assert "20 of 24 epochs of its fits are done; finish it first" in capsys.readouterr().err
    monkeypatch.setattr(Assessment, "run_epoch", run_epoch)
    assert main(["uncertainty", "--resume", str(parts)]) == 0
    for name in ("metrics.csv", "nodes.csv"):
        assert (whole / name).read_text() == (parts / name).read_text()
    first, second = results_of(whole), results_of(parts)
    for key in ("test", "posterior", "left_out", "conformal", "scaling_temperature"):
        assert first[key] == second[key]
    assert first["left_out"]["class"] == 1
    assert 0 <= first["left_out"]["auroc_entropy"] <= 1


def test_a_fit_is_that_of_its_point_and_the_lowest_validation_loss_is_reported() -> None:
    options = {"epochs": 3, "num_samples": 2}
    data = DataConfig(per_class=3, val=8)
    grid = UncertaintyConfig(split="random", data=data, posterior=PosteriorConfig([1.0, 0.1], **options))  # type: ignore[arg-type]
    alone = UncertaintyConfig(split="random", data=data, posterior=PosteriorConfig([0.1], **options))  # type: ignore[arg-type]
    found = []
    for config in (grid, alone):
        assessment = open_assessment(config)
        while not assessment.done:
            assessment.run_epoch()
        found.append(assessment)
    torch.testing.assert_close(found[0].fitted[1].log_p, found[1].fitted[0].log_p, rtol=0, atol=0)
    chosen, scores = found[0].choose()
    expected = [calibrate(one.log_p, found[0].data.y, found[0].split.val, 0.1).selection_nll for one in found[0].fitted]
    assert scores == expected
    assert chosen == expected.index(min(expected))
    numbers = Report.of(found[0]).numbers()
    assert numbers["posterior"]["temperature"] == grid.posterior.temperature[chosen]
    assert [point["selection_nll"] for point in numbers["posterior"]["grid"]] == scores


def test_without_validation_nodes_nothing_is_scaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    short = ["--posterior.epochs", "2", "--posterior.num_samples", "2", "--device", "cpu"]
    assert main(["uncertainty", *short, "--out", str(out)]) == 0
    assert "no validation nodes" in capsys.readouterr().out
    found = results_of(out)
    assert found["scaling_temperature"] is found["conformal"] is None
    assert found["test"] == found["unscaled_test"]
    assert main(["uncertainty", *short, "--posterior.temperature", "[1, 2]", "--out", str(tmp_path / "none")]) == 2
    assert "need validation nodes to choose one" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["--left_out", "2"], "left_out must be a class of"),
        (["--posterior.temperature", "[]"], "at least one number"),
        (["--miscoverage", "1"], "miscoverage"),
        (["--resume", "nowhere"], "drop --"),
    ],
)
def test_bad_settings_are_refused(
    words: list[str], tmp_path: Path, setting: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["uncertainty", *words, *setting, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_class_is_left_out_of_labels_and_split() -> None:
    data, split = make_split(load_public("karate"), "random", SplitOptions(per_class=2, val=8), 0)
    smaller, fewer, outside = without_class(data, split, 1)
    assert smaller.classes == 3
    assert bool((smaller.y[data.y == 1] == -1).all())
    assert torch.equal(smaller.y[data.y == 3], torch.full_like(smaller.y[data.y == 3], 2))
    assert torch.equal(smaller.y[data.y == 0], data.y[data.y == 0])
    for part in (fewer.train, fewer.val, fewer.test):
        assert bool((data.y[part] != 1).all())
    assert torch.equal(outside, data.y[split.test] == 1)
    assert len(fewer.test) + int(outside.sum()) == len(split.test)
    with pytest.raises(ConfigError, match="cannot be left out"):
        without_class(smaller, fewer, 7)
