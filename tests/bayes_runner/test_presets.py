"""Presets load, and what they say reaches the training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from natgrad_apps import KLClip, KLTrustRegion
from natgrad_apps._resources import available_configs
from natgrad_apps.bayes import NoisyKFAC, Vadam
from natgrad_apps.bayes.config import FitConfig, RecipeConfig, TrainConfig
from natgrad_apps.bayes.data.uci import read_uci
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.recipes import build_method, methods
from natgrad_apps.bayes.study_config import UciConfig
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file
from tests.bayes_runner._uci import write_uci


@pytest.mark.parametrize("name", sorted(available_configs("bayes")))
def test_every_preset_is_a_configuration(name: str) -> None:
    kind = UciConfig if name == "uci" else TrainConfig
    config = schema.read(kind, read_file(available_configs("bayes")[name]))
    assert config.method in methods()


def test_learning_rate_schedules() -> None:
    # cos(pi/2) = 0, cos(pi/3) = 1/2
    assert [FitConfig(lr_schedule="cosine").lr_factor(t) for t in (0, 1 / 3, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])
    assert [FitConfig(lr_schedule="step").lr_factor(t) for t in (0, 0.49, 0.5, 1)] == [1, 1, 0.1, 0.1]
    assert FitConfig(lr_schedule="constant").lr_factor(0.9) == 1


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_public_method_trains_by_name(name: str, tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    table = read_uci(tmp_path / "yacht", "yacht")
    fit = Fit(table, table.splits[0], RecipeConfig(method=name, training=FitConfig(epochs=2, batch_size=8)), seed=0)
    before = [p.clone() for p in fit.vi.model.parameters()]
    while fit.steps_done < fit.steps_total:
        fit.step()
    assert fit.steps_done == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, fit.vi.model.parameters(), strict=True))
    assert all(math.isfinite(value) for value in fit.evaluate(4).values())


def test_batches_cover_an_epoch_and_differ_by_one_row_at_most(tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    table = read_uci(tmp_path / "yacht", "yacht")
    fit = Fit(table, table.splits[0], RecipeConfig(training=FitConfig(epochs=1, batch_size=6)), seed=0)
    fit.step()
    # 16 rows: round(16 / 6) = 3 batches
    assert sorted(len(part) for part in fit._parts) == [5, 5, 6]
    assert sorted(torch.cat(fit._parts).tolist()) == list(range(16))


def test_the_longest_training_may_be_bounded(tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    table = read_uci(tmp_path / "yacht", "yacht")
    bounded = RecipeConfig(training=FitConfig(epochs=100, batch_size=8, max_steps=7))
    assert Fit(table, table.splits[0], bounded, seed=0).steps_total == 7


def test_learning_rate_damping_and_bound_have_defaults_where_the_method_has_them() -> None:
    kfac, vadam = build_method("noisy_kfac", {}), build_method("vadam", {})
    assert isinstance(kfac, NoisyKFAC)
    assert isinstance(vadam, Vadam)
    assert (kfac.lr, kfac.damping, vadam.lr) == (0.05, 1e-3, 0.01)
    assert kfac.step == KLTrustRegion(1e-3)


def test_the_bound_of_a_step_is_given_by_name() -> None:
    clipped = build_method("noisy_kfac", {"step": {"name": "kl_clip", "kl_clip": 0.5}})
    assert isinstance(clipped, NoisyKFAC)
    assert clipped.step == KLClip(0.5)
    with pytest.raises(ConfigError, match="available"):
        build_method("noisy_kfac", {"step": "kl_clap"})
    plain = build_method("noisy_kfac", {"damping": 0.0, "lr": 0.5})
    assert isinstance(plain, NoisyKFAC)
    assert (plain.lr, plain.damping) == (0.5, 0.0)
