"""Small environments with exact answers; every one is picklable and seeds itself through `reset`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

Observation = Any


class Chain(gym.Env[Observation, Any]):
    """Observations are random; the reward is a given function of the first action; episodes end after 10 steps."""

    def __init__(
        self,
        action_space: spaces.Space[Any],
        observation_space: spaces.Space[Any] | None = None,
        *,
        reward: Callable[[float], float] = float,
        truncated: bool = False,
    ) -> None:
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (3,), np.float32)
        self._reward, self._truncated, self._time = reward, truncated, 0

    def _observe(self) -> Observation:
        draw = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
        if isinstance(self.observation_space, spaces.Dict):
            image = self.np_random.integers(0, 256, (1, 40, 40), dtype=np.uint8)
            return {"vector": draw, "image": image}
        assert isinstance(self.observation_space, spaces.Box)
        if self.observation_space.dtype == np.uint8:
            return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)
        return draw

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._time += 1
        over = self._time >= 10
        return self._observe(), self._reward(np.asarray(action).flat[0]), over and not self._truncated, over and self._truncated, {}


def vectorized(make: Callable[[], gym.Env[Any, Any]], count: int = 2) -> DummyVecEnv:
    """`count` monitored copies in this process."""
    return DummyVecEnv([lambda: Monitor(make()) for _ in range(count)])


def discrete(count: int = 2, **kwargs: Any) -> DummyVecEnv:
    """Three actions."""
    return vectorized(lambda: Chain(spaces.Discrete(3), **kwargs), count)


def continuous(count: int = 2, **kwargs: Any) -> DummyVecEnv:
    """Two actions in [-1, 1]."""
    return vectorized(lambda: Chain(spaces.Box(-1.0, 1.0, (2,), np.float32), **kwargs), count)
