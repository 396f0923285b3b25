"""The benchmark of predicted and measured KL."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")

from dataclasses import replace

from benchmarks import acktr_prediction
from benchmarks._agents import preset
from natgrad_apps import Exact


def test_only_the_curvature_and_the_networks_change() -> None:
    config, base = acktr_prediction.configured("Hopper", "exact", 0.8, 8, 101), preset("Hopper")
    assert config.agent.natural_gradient.curvature == Exact(decay=0.8)
    assert config.agent.network.net_arch == {"pi": [8, 8], "vf": [8, 8]}
    assert replace(config.agent.natural_gradient, curvature=base.agent.natural_gradient.curvature) == base.agent.natural_gradient
    assert replace(config, agent=base.agent, seed=base.seed, device=base.device) == base


def test_the_first_updates_are_left_out_and_the_last_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acktr_prediction, "FIRST_UPDATES", 2)
    config = acktr_prediction.configured("InvertedPendulum", "kfac", 0.0, 4, 100)
    values = acktr_prediction.ratios(replace(config, agent=replace(config.agent, n_steps=16)), 6)
    assert len(values) == 4
    assert min(values) > 0


def test_too_few_updates_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        acktr_prediction.main(["--updates", "5"])
    assert "--updates must be more than 5, got 5" in capsys.readouterr().err
