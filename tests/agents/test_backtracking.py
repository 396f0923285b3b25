"""Limits of the KL that an update really made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from natgrad_apps import Exact, KLTrustRegion, NaturalGradient
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.backtracking import Backtracking, adapted_rate, shorten
from natgrad_apps.agents.heads import Change
from natgrad_apps.errors import ConfigError
from natgrad_apps.likelihoods import Gaussian
from tests.agents._environments import continuous, discrete
from tests.agents.test_acktr import SMALL, record

LIMITS = {"kl_limit": 2e-4, "critic_kl_limit": 3e-4, "max_checks": 8}


@pytest.mark.parametrize("critic_step", [None, {"name": "kl_trust_region", "radius": 0.1}], ids=["joint", "apart"])
@pytest.mark.parametrize("make", [discrete, continuous])
def test_measured_kl_keeps_its_limits(make: Any, critic_step: Any) -> None:
    options = {"step": {"name": "kl_trust_region", "radius": 0.1}, "critic_step": critic_step}
    free = record(ACKTR("MlpPolicy", make(), natural_gradient=options, **SMALL), 160)
    kept = record(ACKTR("MlpPolicy", make(), natural_gradient={**options, "backtracking": LIMITS}, **SMALL), 160)
    assert any(row["train/measured_kl"] > 2 * LIMITS["kl_limit"] for row in free), "the limit must act for this to test anything"
    assert any(row["train/measured_critic_kl"] > 2 * LIMITS["critic_kl_limit"] for row in free)
    for row in kept:
        # each shortening is right up to the terms of third order in the step
        assert row["train/measured_kl"] <= LIMITS["kl_limit"] * 1.02
        assert row["train/measured_critic_kl"] <= LIMITS["critic_kl_limit"] * 1.02
        assert 0 < row["train/backtracking_scale"] <= 1
    assert any(row["train/backtracking_scale"] < 1 for row in kept)


def test_generous_limits_change_nothing() -> None:
    models = []
    for backtracking in (None, {"kl_limit": 1e3, "critic_kl_limit": 1e3}):
        models.append(ACKTR("MlpPolicy", discrete(), natural_gradient={"backtracking": backtracking}, **SMALL))
        record(models[-1], 96)
    plain, checked = models
    for mine, theirs in zip(plain.policy.parameters(), checked.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def two_layers() -> tuple[torch.nn.ModuleDict, NaturalGradient, Tensor]:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"actor": torch.nn.Linear(3, 2), "critic": torch.nn.Linear(3, 1)})
    step = {"actor": KLTrustRegion(1.0), "critic": KLTrustRegion(1.0)}
    return model, NaturalGradient(model, Exact(), step=step, momentum=0.5, lr=0.1), torch.randn(8, 3)


def update(model: torch.nn.ModuleDict, optimizer: NaturalGradient, x: Tensor) -> None:
    with optimizer.capture():
        outputs = {name: layer(x) for name, layer in model.items()}
        optimizer.observe(Gaussian(torch.cat(list(outputs.values()), 1)))
    for name, output in outputs.items():
        output.square().mean().backward()
        optimizer.collect(name)
    optimizer.step()


def test_shortening_takes_back_step_and_momentum_of_one_objective() -> None:
    model, optimizer, x = two_layers()
    before = copy.deepcopy(model.state_dict())
    update(model, optimizer, x)
    whole = {name: p - before[name] for name, p in copy.deepcopy(model.state_dict()).items()}
    check = Backtracking(kl_limit=0.01, critic_kl_limit=None, max_checks=1)
    kl = torch.tensor(0.04)

    factor = shorten(optimizer, check, lambda: Change(kl, kl, kl, kl))

    assert factor.item() == pytest.approx(0.5)
    for name, p in model.state_dict().items():
        share = 0.5 if name.startswith("actor") else 1.0
        torch.testing.assert_close(p - before[name], share * whole[name], rtol=1e-4, atol=1e-7)
    velocity = optimizer.state[next(iter(model["actor"].parameters()))]["velocity/actor"]
    torch.testing.assert_close(velocity, 0.5 * whole["actor.weight"], rtol=1e-4, atol=1e-7)


def test_checks_end_when_the_limits_are_kept() -> None:
    model, optimizer, x = two_layers()
    update(model, optimizer, x)
    measured = iter([0.04, 0.02, 0.01, 0.0])
    seen = []

    def changed() -> Change:
        kl = torch.tensor(next(measured))
        seen.append(kl)
        return Change(kl, torch.tensor(0.0), kl, kl)

    total = shorten(optimizer, Backtracking(kl_limit=0.01, max_checks=4), changed)
    assert len(seen) == 3
    assert total.item() == pytest.approx(0.5 * 0.5**0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kl_limit": 0.0}, "kl_limit must be finite and > 0"),
        ({"critic_kl_limit": -1.0}, "critic_kl_limit must be"),
        ({"max_checks": 1.5}, "whole number"),
        ({"kl_limits": 1.0}, "did you mean 'kl_limit'"),
        (0.1, "backtracking must be"),
    ],
)
def test_bad_limits_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ACKTR("MlpPolicy", discrete(), natural_gradient={"backtracking": given})


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
