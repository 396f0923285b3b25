"""The learning rate that follows measured KLs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.adaptive_rate import adapted_rate
from tests.agents._environments import continuous, discrete
from tests.agents.test_acktr import SMALL, record

APART = {"critic_step": {"name": "kl_trust_region", "radius": 0.1}}


def test_the_rate_follows_the_measured_kl() -> None:
    assert adapted_rate(0.1, 0.009, 0.002) == pytest.approx(0.1 / 1.5)
    assert adapted_rate(0.1, 0.0009, 0.002) == pytest.approx(0.15)
    assert adapted_rate(0.1, 0.002, 0.002) == 0.1
    assert adapted_rate(0.1, float("nan"), 0.002) == 0.1
    assert adapted_rate(0.9, 0.0, 0.002) == 1.0
    assert adapted_rate(1e-8, 1.0, 0.002) == 1e-8


@pytest.mark.parametrize("target", [1e-4, 1e-2])
def test_updates_come_to_make_the_target_kl(target: float) -> None:
    """From a rate 100 times too large or too small: later updates lie within the rule's band, up to the noise of single rollouts."""
    for start in (1e-3, 0.5):
        options = {"step": "plain", "kl_target": target}
        model = ACKTR("MlpPolicy", continuous(), **{**SMALL, "learning_rate": start}, natural_gradient=options)
        rows = record(model, 16 * 60)
        late = [row["train/measured_kl"] for row in rows[40:]]
        assert target / 4 < float(np.median(late)) < target * 4
        assert model._rate_factor != 1.0


def test_the_adapted_rate_is_saved(tmp_path: Path) -> None:
    model = ACKTR("MlpPolicy", discrete(), **SMALL, natural_gradient={"kl_target": 1e-3})
    record(model, 96)
    model.save(tmp_path / "agent.zip")
    assert ACKTR.load(tmp_path / "agent.zip")._rate_factor == model._rate_factor != 1.0


def test_the_rate_stays_within_its_bounds_when_learning_goes_on() -> None:
    """The factor that a falling schedule has built up meets the schedule's first value again."""
    settings: dict[str, Any] = {**SMALL, "learning_rate": lambda remaining: 0.25 * remaining}
    options = {"step": {"name": "kl_trust_region", "radius": 1e-3}, "kl_target": 1.0}
    model = ACKTR("MlpPolicy", discrete(), **settings, natural_gradient=options)
    record(model, 16 * 20)
    assert model._rate_factor > 4
    rows = record(model, 16 * 5)
    assert max(row["train/learning_rate"] for row in rows if "train/learning_rate" in row) <= 1.0


def test_the_rate_that_is_logged_is_the_one_of_the_step() -> None:
    options = {"step": "plain", "kl_target": 1e-9}
    model = ACKTR("MlpPolicy", discrete(), **{**SMALL, "learning_rate": 0.1}, natural_gradient=options)
    rates = [row["train/learning_rate"] for row in record(model, 16 * 3)]
    np.testing.assert_allclose(rates, [0.1, 0.1 / 1.5, 0.1 / 1.5**2])
    assert model.optimizer.objectives.rates["loss"] == pytest.approx(1 / 1.5**2)


def test_a_critic_with_its_own_step_keeps_the_schedule() -> None:
    settings: dict[str, Any] = {**SMALL, "learning_rate": 0.1}
    model = ACKTR("MlpPolicy", discrete(), **settings, natural_gradient={"kl_target": 1e-9, **APART})
    record(model, 16 * 4)
    rates = model.optimizer.objectives.rates
    assert rates["critic"] == 1.0
    assert rates["actor"] == pytest.approx(1 / 1.5**3)
