"""The comparison of predictions runs and prints both kinds."""

from __future__ import annotations

import pytest

from benchmarks import bayes_predictions
from natgrad_apps.bayes.config import FitConfig


def test_both_kinds_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bayes_predictions, "FitConfig", lambda **_: FitConfig(epochs=1, max_steps=2))
    bayes_predictions.main(["--sets", "diabetes", "breast_cancer", "--splits", "0-1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| diabetes", "| breast"))]
    assert [line.split("|")[2].strip() for line in lines] == ["sampled", "linearized"] * 2
    assert all("loglik_joint -" in line for line in lines)
