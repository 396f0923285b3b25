"""Saving and loading: a run that stops and goes on equals one that does not stop, bit for bit on the CPU."""

from __future__ import annotations

import copy
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from natgrad_apps.agents import ACKTR, random_state
from natgrad_apps.errors import ConfigError
from tests.agents._environments import Chain, continuous, discrete, vectorized

OPTIONS: dict[str, Any] = {"momentum": 0.9, "refresh": {"name": "periodic", "statistics_period": 2, "inverse_period": 3}}
SMALL: dict[str, Any] = {"n_steps": 8, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, "natural_gradient": OPTIONS}


def weights(model: ACKTR) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def environment(kind: str) -> VecEnv:
    if kind == "cartpole":
        return make_vec_env("CartPole-v1", 2, seed=0)
    return VecNormalize(continuous())


def duplicate(env: VecEnv) -> VecEnv:
    """A copy in the same state; VecNormalize leaves the environment behind when it is copied."""
    if not isinstance(env, VecNormalize):
        return copy.deepcopy(env)
    normalization = copy.deepcopy(env)
    normalization.set_venv(copy.deepcopy(env.venv))
    normalization.returns = env.returns.copy()
    return normalization


@pytest.mark.parametrize("kind", ["cartpole", "normalized"])
@pytest.mark.parametrize("seed", [None, 7])
def test_interrupted_training_equals_uninterrupted_training(tmp_path: Path, kind: str, seed: int | None) -> None:
    env = environment(kind)
    model = ACKTR("MlpPolicy", env, seed=seed, **SMALL)
    model.learn(16 * 4)
    model.save(tmp_path / "agent")
    copied = duplicate(env)
    model.learn(16 * 7, reset_num_timesteps=False)

    torch.manual_seed(99)
    np.random.seed(99)
    again = ACKTR.load(tmp_path / "agent", env=copied, device="cpu", force_reset=False)
    again.learn(16 * 7, reset_num_timesteps=False)
    assert torch.equal(weights(model), weights(again))
    assert (again.num_timesteps, again._n_updates) == (model.num_timesteps, model._n_updates) == (176, 11)
    mine, theirs = (torch.cat([m.optimizer.state[p]["velocity"].flatten() for p in m.policy.parameters()]) for m in (model, again))
    assert torch.equal(mine, theirs)


def test_curvature_is_restored_without_pickled_objects(tmp_path: Path) -> None:
    model = ACKTR("MlpPolicy", discrete(), seed=0, **SMALL).learn(48)
    model.save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        state = torch.load(io.BytesIO(archive.read("policy.optimizer.pth")), weights_only=True)
    assert set(state["curvature"]["blocks"]) == set(model.optimizer.preconditioner.blocks)
    again = ACKTR.load(tmp_path / "agent.zip", device="cpu")
    for name, block in model.optimizer.preconditioner.blocks.items():
        other = again.optimizer.preconditioner.blocks[name].state
        assert torch.equal(block.state.count, other.count)
        for part in ("moments", "cache"):
            mine, theirs = getattr(block.state, part), getattr(other, part)
            assert set(mine) == set(theirs)
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert again.natural_gradient == model.natural_gradient
    assert again._value_variance == model._value_variance


def test_sizes_of_numpy_leave_no_pickled_objects(tmp_path: Path) -> None:
    """SB3 sums the ``nvec`` of MultiDiscrete into the width of the last layer, a number of numpy."""
    ACKTR("MlpPolicy", vectorized(lambda: Chain(spaces.MultiDiscrete([3, 2]))), seed=0, **SMALL).learn(16).save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert torch.load(io.BytesIO(archive.read("policy.optimizer.pth")), weights_only=True)


def test_loading_for_prediction_needs_no_environment(tmp_path: Path) -> None:
    env = discrete()
    model = ACKTR("MlpPolicy", env, seed=0, **SMALL).learn(16)
    model.save(tmp_path / "agent")
    observation = env.reset()
    assert isinstance(observation, np.ndarray)
    expected, _ = model.predict(observation, deterministic=True)
    actual, _ = ACKTR.load(tmp_path / "agent", device="cpu").predict(observation, deterministic=True)
    np.testing.assert_array_equal(expected, actual)


def test_parameters_move_between_agents() -> None:
    first, second = (ACKTR("MlpPolicy", discrete(), seed=seed, **SMALL) for seed in (0, 1))
    first.learn(48)
    second.set_parameters(first.get_parameters())
    assert torch.equal(weights(first), weights(second))
    assert second.optimizer.preconditioner.step_count == 3


def test_a_new_seed_wins_over_the_saved_generators(tmp_path: Path) -> None:
    ACKTR("MlpPolicy", discrete(), seed=0, **SMALL).learn(16).save(tmp_path / "agent")
    draws = []
    overrides: list[dict[str, Any]] = [{}, {}, {"seed": 4}]
    for kwargs in overrides:
        ACKTR.load(tmp_path / "agent", device="cpu", **kwargs)
        draws.append((torch.rand(1).item(), np.random.random()))
    assert draws[0] == draws[1] != draws[2]


def test_new_options_win_over_the_saved_ones(tmp_path: Path) -> None:
    ACKTR("MlpPolicy", discrete(), seed=0, **SMALL).learn(16).save(tmp_path / "agent")
    options = {"momentum": 0.25, "damping": 0.5, "weight_decay": 0.125, "step": {"name": "kl_trust_region", "radius": 1e-9}}
    again = ACKTR.load(tmp_path / "agent", env=discrete(), device="cpu", natural_gradient=options)
    (group,) = again.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.25, 0.125)
    again.learn(16, log_interval=1)
    assert again.logger.name_to_value["train/damping"] == 0.5
    assert again.logger.name_to_value["train/predicted_kl"] <= 1e-9
    with pytest.raises(ConfigError, match=r"is KFAC of shape.*this one is EKFAC"):
        ACKTR.load(tmp_path / "agent", device="cpu", natural_gradient={"curvature": "ekfac"})


def test_a_class_of_policies_can_be_given_and_is_saved(tmp_path: Path) -> None:
    model = ACKTR(ACKTR.policy_aliases["MlpPolicy"], discrete(), seed=0, **SMALL)  # type: ignore[arg-type]
    model.save(tmp_path / "agent")
    assert type(ACKTR.load(tmp_path / "agent", device="cpu").policy) is type(model.policy)


def test_random_state_round_trip() -> None:
    np.random.standard_normal()  # fills the cached second draw of the polar method
    state = random_state.capture(torch.device("cpu"))
    expected = (torch.rand(3), np.random.standard_normal(3), np.random.random(3))
    random_state.restore(state, torch.device("cpu"))
    actual = (torch.rand(3), np.random.standard_normal(3), np.random.random(3))
    assert torch.equal(expected[0], actual[0])
    np.testing.assert_array_equal(expected[1], actual[1])
    np.testing.assert_array_equal(expected[2], actual[2])


def test_box_space_is_the_unclipped_gaussian() -> None:
    """The rollout keeps the draws of the Gaussian, not what the environment got: only those belong to the policy's Fisher and gradient."""
    env = continuous()
    model = ACKTR("MlpPolicy", env, seed=0, n_steps=64, device="cpu")
    model.learn(128)
    assert isinstance(env.action_space, spaces.Box)
    assert np.abs(model.rollout_buffer.actions).max() > env.action_space.high.max()
