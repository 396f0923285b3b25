"""Linearized predictions through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from natgrad_apps.bayes.cli import main


def test_evaluate_and_predict_take_the_kind(finished_run: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for kind in ("sampled", "linearized"):
        assert main(["evaluate", str(finished_run), "--kind", kind, "--out", str(tmp_path / kind)]) == 0
        found[kind] = json.loads((tmp_path / kind / "evaluation.json").read_text())["test"]
    assert found["sampled"].keys() == found["linearized"].keys()
    assert found["sampled"]["rmse"] != found["linearized"]["rmse"]
    out = tmp_path / "p.csv"
    assert main(["predict", str(finished_run), "--kind", "linearized", "--data", str(tables / "line.csv"), "--out", str(out)]) == 0
    frame = pd.read_csv(out)
    # A normal distribution is symmetric; the mixture of samples is not.
    middle = (frame["lower"] + frame["upper"]) / 2
    assert (middle - frame["mean"]).abs().max() < 1e-6 * frame["std"].max()
    capsys.readouterr()
    assert main(["evaluate", str(finished_run), "--kind", "linear", "--out", str(tmp_path / "c")]) == 2
    assert "unknown kind of prediction 'linear'" in capsys.readouterr().err


def test_classes_through_the_command(finished_classes: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(finished_classes), "--kind", "linearized", "--out", str(tmp_path)]) == 0
    assert 0 < json.loads((tmp_path / "evaluation.json").read_text())["test"]["nll"] < 10
