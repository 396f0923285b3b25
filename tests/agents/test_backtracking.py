"""Limits of the KL that an update really made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from natgrad_apps import Exact, KLTrustRegion, NaturalGradient
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.backtracking import Backtracking, shorten
from natgrad_apps.agents.heads import Change
from natgrad_apps.errors import ConfigError
from natgrad_apps.likelihoods import Gaussian
from natgrad_apps.types import Info
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


def update(model: torch.nn.ModuleDict, optimizer: NaturalGradient, x: Tensor) -> Info:
    with optimizer.capture():
        outputs = {name: layer(x) for name, layer in model.items()}
        optimizer.observe(Gaussian(torch.cat(list(outputs.values()), 1)))
    for name, output in outputs.items():
        output.square().mean().backward()
        optimizer.collect(name)
    return optimizer.step()


def test_shortening_takes_back_step_and_momentum_of_one_objective() -> None:
    model, optimizer, x = two_layers()
    before = copy.deepcopy(model.state_dict())
    update(model, optimizer, x)
    whole = {name: p - before[name] for name, p in copy.deepcopy(model.state_dict()).items()}
    check = Backtracking(kl_limit=0.01, critic_kl_limit=None, max_checks=1)
    kl = torch.tensor(0.04)

    factor = shorten(optimizer, check, lambda: Change(kl, kl, kl, kl))

    assert factor.scale.item() == pytest.approx(0.5)
    for name, p in model.state_dict().items():
        share = 0.5 if name.startswith("actor") else 1.0
        torch.testing.assert_close(p - before[name], share * whole[name], rtol=1e-4, atol=1e-7)
    velocity = optimizer.state[next(iter(model["actor"].parameters()))]["velocity/actor"]
    torch.testing.assert_close(velocity, 0.5 * whole["actor.weight"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("together", [False, True])
def test_the_predicted_kl_is_that_of_what_is_left(together: bool) -> None:
    model, optimizer, x = two_layers()
    before = {p: p.detach().clone() for p in model.parameters()}
    info = update(model, optimizer, x)
    if together:
        shared = next(iter(model["actor"].parameters()))
        optimizer._taken["critic"].append(shared)
        optimizer.state[shared]["velocity/critic"] = torch.zeros_like(shared)
    limits = Backtracking(kl_limit=0.01, critic_kl_limit=0.01, max_checks=2)

    left = shorten(optimizer, limits, lambda: Change(*(torch.tensor(kl) for kl in (0.02, 0.03, 1.0, 1.0))))

    step = {p: p.detach() - old for p, old in before.items()}
    form = optimizer.preconditioner.quadratic(optimizer.preconditioner.to_blocks(step))
    assert left.together == together
    assert left.factors["actor"].item() == pytest.approx(1 / 3 if together else 1 / 2)
    torch.testing.assert_close(left.predicted_kl(info), sum(form.values()) / 2, rtol=1e-4, atol=0)


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
    assert total.scale.item() == pytest.approx(0.5 * 0.5**0.5)


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
