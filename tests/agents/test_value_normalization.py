"""Value-target normalization: outputs preserved, statistics, the critic's units in the Fisher, and rewards of every size."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from natgrad_apps import Exact, NaturalGradient
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.critic_noise import critic_scale
from natgrad_apps.agents.options import NaturalGradientOptions
from natgrad_apps.agents.value_normalization import NormalizedValue, PopArt, observe_targets
from natgrad_apps.errors import ConfigError
from natgrad_apps.likelihoods import Gaussian
from tests.agents._environments import discrete, vectorized
from tests.agents.test_acktr import SMALL, record, weights

MILLION = 2.0**20
"""A power of two: multiplying by it is exact, so runs whose rewards differ by it can be compared closely."""


class Countdown(gym.Env[Any, Any]):
    """The observation is the share of the episode that is left; each of 10 steps is rewarded alike, more for action 1."""

    def __init__(self, unit: float) -> None:
        self.observation_space, self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Discrete(2)
        self._unit, self._time = unit, 0

    def _observe(self) -> Any:
        return np.array([1 - self._time / 10], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._time += 1
        return self._observe(), self._unit * (1.0 + 0.5 * float(action)), self._time >= 10, False, {}


def head(features: int = 4) -> NormalizedValue:
    torch.manual_seed(0)
    return NormalizedValue(nn.Linear(features, 1))


@pytest.mark.usefixtures("float64")
def test_values_stay_as_they_are_when_the_statistics_move() -> None:
    module, h = head(), torch.randn(50, 4)
    before = module(h)
    for mean, variance in ((1e6, 1e12), (-3.0, 0.25), (2e5, 0.0)):
        module.move(mean, variance, PopArt(decay=0.7))
        # three products and two sums of numbers up to 1e6 in float64
        torch.testing.assert_close(module(h), before, rtol=0, atol=1e-8)
    assert float(module.scale) > 1e4


@pytest.mark.usefixtures("float64")
def test_statistics_are_those_of_the_weighted_targets() -> None:
    """Running mean and deviation equal moments of all targets so far; a rollout's share is max(1 - decay, 1/t) and decays from then on."""
    module, rule, rollouts = head(), PopArt(decay=0.6), np.random.default_rng(0).normal(5.0, 3.0, (6, 40))
    share = np.zeros(0)
    for t, targets in enumerate(rollouts, start=1):
        module.move(float(targets.mean()), float(targets.var()), rule)
        rate = max(0.4, 1 / t)
        share = np.append(share * (1 - rate), rate)
        weight = np.repeat(share / 40, 40)
        seen = rollouts[:t].ravel()
        mean = (weight * seen).sum()
        # float64, sums of 240 terms
        assert float(module.mean) == pytest.approx(mean, rel=1e-12)
        assert float(module.scale) == pytest.approx(math.sqrt((weight * (seen - mean) ** 2).sum()), rel=1e-12)


def test_constant_targets_stop_at_the_smallest_scale() -> None:
    module = head()
    for _ in range(3):
        module.move(7.0, 0.0, PopArt(smallest_scale=0.125))
    assert float(module.scale) == 0.125
    assert module(torch.zeros(1, 4)).isfinite().all()


@pytest.mark.usefixtures("float64")
def test_the_velocity_keeps_its_meaning_for_the_values() -> None:
    """``dV = sigma (dw^T h + db)`` of the velocity is the same before and after."""
    module, h = head(), torch.randn(20, 4)
    optimizer = NaturalGradient(module, Exact(), momentum=0.9, lr=0.1)
    with optimizer.capture():
        optimizer.observe(Gaussian(module(h)))
    module(h).square().mean().backward()
    optimizer.step()

    def change() -> torch.Tensor:
        velocity = [optimizer.state[p]["velocity"] for p in module.linear.parameters()]
        return module.scale * nn.functional.linear(h, *velocity)

    before = change()
    assert before.abs().min() > 0
    scale = observe_targets(optimizer, module, np.array([3.0, 40.0, -8.0]), PopArt())
    assert scale == pytest.approx(np.std([3.0, 40.0, -8.0]), rel=1e-12)
    # three products in float64
    torch.testing.assert_close(change(), before, rtol=1e-12, atol=1e-14)


def test_targets_that_are_no_numbers_move_nothing() -> None:
    module = head()
    optimizer = NaturalGradient(module, Exact())
    saved = copy.deepcopy(module.state_dict())
    assert observe_targets(optimizer, module, np.array([1.0, np.nan]), PopArt()) == 1.0
    assert all(torch.equal(saved[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("coefficient", [0.25, "auto"])
def test_units_of_the_critic_in_the_fisher(coefficient: Any) -> None:
    """A number counts in units of the returns' deviation; "auto" is the residual's, with or without normalization."""
    options = {"value_normalization": {"decay": 0.5}, "vf_fisher_coef": coefficient}
    model = ACKTR("MlpPolicy", vectorized(functools.partial(Countdown, 100.0)), natural_gradient=options, **SMALL)
    record(model, 16)
    returns, values = model.rollout_buffer.returns, model.rollout_buffer.values
    residual = float(np.square(returns - values).mean())
    module = model.policy.value_net
    assert isinstance(module, NormalizedValue)
    # one rollout: its own statistics; float32 buffers
    assert float(module.scale) == pytest.approx(returns.std(), rel=1e-5)
    variance = residual if coefficient == "auto" else returns.var(dtype=np.float64) / 0.25
    model._value_variance, module.count[...] = None, 0.0
    deviation, weight = critic_scale(model)
    assert deviation == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert weight == pytest.approx(1 / variance if coefficient == "auto" else 1 / returns.var(dtype=np.float64), rel=1e-5)


def test_the_critics_radius_is_in_units_of_the_deviation() -> None:
    """``mean (dV)^2 = 2 radius sigma^2 / c`` where the radius acts: a linear critic's exact block predicts the change of values exactly."""
    options = {
        "curvature": "exact",
        "damping": 1e-8,
        "fisher": "exact",
        "value_normalization": {},
        "vf_fisher_coef": 4.0,
        "critic_step": {"name": "kl_trust_region", "radius": 1e-3},
    }
    env = vectorized(functools.partial(Countdown, 1e6))
    model = ACKTR("MlpPolicy", env, **{**SMALL, "policy_kwargs": {"net_arch": []}}, natural_gradient=options, learning_rate=1e3)
    row = record(model, 16)[-1]
    # linear in the parameters, so KL is its quadratic form; float32 and the small damping
    assert row["train/critic_kl_scale"] < 1
    assert row["train/measured_critic_kl"] == pytest.approx(1e-3, rel=1e-2)
    assert row["train/value_scale"] > 1e5


def critic_of(unit: float, normalization: Any, steps: int = 960) -> tuple[ACKTR, list[dict[str, Any]]]:
    options = {"value_normalization": normalization}
    model = ACKTR("MlpPolicy", vectorized(functools.partial(Countdown, unit), 4), natural_gradient=options, **SMALL)
    with torch.no_grad():
        for p in model.policy.value_net.parameters():
            p.zero_()  # values that begin at 0 are the same in every unit
    return model, record(model, steps)


def test_rewards_of_a_million_change_nothing() -> None:
    (small, rows), (large, scaled) = (critic_of(unit, {}, 320) for unit in (1.0, MILLION))
    # equal but for the constant 1e-8 in the normalization of advantages; float32 over 10 updates
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-4, atol=1e-5)
    assert scaled[-1]["train/value_scale"] == pytest.approx(rows[-1]["train/value_scale"] * MILLION, rel=1e-4)
    assert scaled[-1]["train/value_mean"] == pytest.approx(rows[-1]["train/value_mean"] * MILLION, rel=1e-4)


def test_the_critic_learns_rewards_of_a_million_only_with_normalization() -> None:
    """Countdown's value is a smooth function of the observation, so a critic that learns explains nearly all of the variance."""
    _, with_it = critic_of(1e6, {})
    _, without = critic_of(1e6, None)
    assert np.mean([row["train/explained_variance"] for row in with_it[-10:]]) > 0.5
    assert np.mean([row["train/explained_variance"] for row in without[-10:]]) < 0.2


def test_training_goes_on_exactly(tmp_path: Path) -> None:
    env = discrete()
    options = {"value_normalization": {"decay": 0.9}, "momentum": 0.5, "critic_step": {"name": "kl_trust_region"}}
    model = ACKTR("MlpPolicy", env, natural_gradient=options, **SMALL)
    model.learn(64)
    model.save(tmp_path / "agent")
    copied = copy.deepcopy(env)
    model.learn(64, reset_num_timesteps=False)
    again = ACKTR.load(tmp_path / "agent", env=copied, device="cpu", force_reset=False)
    again.learn(64, reset_num_timesteps=False)
    saved = model.policy.state_dict()
    assert {"value_net.mean", "value_net.scale", "value_net.count"} <= set(saved)
    assert all(torch.equal(value, saved[name]) for name, value in again.policy.state_dict().items())
    assert again.natural_gradient == model.natural_gradient == NaturalGradientOptions.of(again.natural_gradient.to_dict())


def test_what_is_not_legal_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decay"):
        PopArt(decay=1.0)
    with pytest.raises(ConfigError, match=r"smallest_scale"):
        PopArt(smallest_scale=0.0)
    with pytest.raises(ConfigError, match=r"did you mean 'decay'"):
        NaturalGradientOptions(value_normalization={"decy": 0.9})
    with pytest.raises(ConfigError, match=r"must be PopArt, a mapping of its fields or None; got 0.9"):
        NaturalGradientOptions(value_normalization=0.9)  # type: ignore[arg-type]
