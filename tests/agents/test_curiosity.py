"""Rewards for information: what is rewarded, with which observations, and what is left alone."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.curiosity import Curiosity, CuriousVecEnv
from natgrad_apps.bayes import VOGN
from natgrad_apps.errors import ConfigError

SMALL = Curiosity(hidden=8, period=4, updates=2, batch_size=16, capacity=50)


class Walk(gym.Env[Any, Any]):
    """Positions 0, 1, 2, 3 by the action's size; ends at 3, reward 5 there. The model's first coordinate never moves."""

    observation_space = spaces.Box(-10, 10, (2,), dtype=np.float32)
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.place = 0.0
        return np.array([1.0, 0.0], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += float(np.asarray(action).sum() > 0) + 0.5
        done = self.place >= 3
        return np.array([1.0, self.place], dtype=np.float32), 5.0 if done else 0.0, done, False, {}


class Continuous(Walk):
    action_space = spaces.Box(-1, 1, (2, 1), dtype=np.float32)


def wrapped(kind: type[Walk] = Walk, options: Curiosity = SMALL, seed: int = 0) -> CuriousVecEnv:
    return CuriousVecEnv(VecMonitor(DummyVecEnv([kind, kind])), options, seed)


def play(env: CuriousVecEnv, steps: int) -> list[tuple[Any, Any, Any]]:
    env.reset()
    g = np.random.default_rng(1)
    found = []
    for _ in range(steps):
        _, rewards, dones, infos = env.step(g.integers(0, 2, size=2))
        found.append((rewards, dones, infos))
    return found


def test_the_reward_is_the_gain_in_units_of_its_mean() -> None:
    env = wrapped()
    steps = play(env, 9)
    first = [[info["information_gain"] for info in infos] for _, _, infos in steps[:4]]
    assert env.gains[0] == pytest.approx(np.mean(first))
    for rewards, _, infos in steps[:3]:  # no unit yet
        assert rewards.tolist() == [info["extrinsic_reward"] for info in infos]
    rewards, _, infos = steps[8]
    for reward, info in zip(rewards, infos, strict=True):
        expected = info["extrinsic_reward"] + 0.1 * info["information_gain"] / np.mean(env.gains)
        assert reward == pytest.approx(expected, rel=1e-5)  # float32
    assert all(info["information_gain"] > 0 for _, _, infos in steps for info in infos)


def test_returns_of_the_monitor_are_the_environments_own() -> None:
    ends = [info["episode"]["r"] for _, _, infos in play(wrapped(), 12) for info in infos if "episode" in info]
    assert len(ends) > 3
    assert set(ends) == {5.0}


def test_the_last_transition_of_an_episode_ends_at_its_last_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    env = wrapped()
    play(env, 12)
    # Places move up by 0.5 or 1.5; the reset after an episode, a fall by 2 and more, is no transition.
    assert set(env._kept[: min(env._count, 50), -1].round(3).tolist()) == {0.5, 1.5}


def test_an_observation_against_the_model_tells_more_than_one_that_it_expects() -> None:
    env = wrapped(options=Curiosity(hidden=8, period=4, updates=20, method=VOGN(lr=0.1), gain="realised"))
    play(env, 60)
    assert env.vi.num_data == 120
    inputs = env._kept[:1, :4]
    known = env._information_gain(inputs, env._kept[:1, 4:])
    strange = env._information_gain(inputs, env._kept[:1, 4:] + np.float32(2.0))
    assert strange[0] > 5 * known[0]


def test_the_expected_gain_does_not_look_at_what_followed() -> None:
    env = wrapped()
    play(env, 8)
    inputs, changes = env._kept[:3, :4], env._kept[:3, 4:]
    assert env._information_gain(inputs, changes).tolist() == env._information_gain(inputs, changes + np.float32(2.0)).tolist()


def test_runs_repeat_and_leave_the_global_generators_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (play(wrapped(seed=seed), 10)[-1][0] for seed in (3, 3, 4))
    assert one.tolist() == two.tolist() != other.tolist()
    assert torch.equal(torch.get_rng_state(), before)


def test_continuous_actions_of_any_shape() -> None:
    env = wrapped(Continuous)
    env.reset()
    _, _, _, infos = env.step(np.ones((2, 2, 1), dtype=np.float32))
    assert env._kept.shape[1] == 2 + 2 + 2
    assert env._kept[0, 2:4].tolist() == [1, 1]
    assert all(info["extrinsic_reward"] == 0 for info in infos)


def test_the_agent_trains_with_it() -> None:
    agent = ACKTR("MlpPolicy", wrapped(), n_steps=8, seed=0)
    agent.learn(64)
    assert agent.num_timesteps == 64


class Pictures(Walk):
    observation_space = spaces.Box(0, 255, (3, 3), dtype=np.float32)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="flat continuous observations"):
        wrapped(Pictures)
    with pytest.raises(ConfigError, match="period must be"):
        Curiosity(period=0)
    with pytest.raises(ConfigError, match="did you mean 'realised'"):
        Curiosity(gain="realized")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weight must be"):
        Curiosity(weight=-1.0)
