"""The command with dictionaries of observations: training, interruption, resumption."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from natgrad_apps.runner import plain_data
from tests.runner.test_acktr_resume import assert_pieces_equal_the_whole


class Pair(gym.Env[Any, Any]):
    """Two vectors, of which the first says the rewarded action; episodes of 10 steps, cut off."""

    def __init__(self, **kwargs: Any) -> None:
        parts: dict[str, spaces.Space[Any]] = {name: spaces.Box(-1.0, 1.0, (size,), np.float32) for name, size in (("z", 2), ("a", 3))}
        self.observation_space, self.action_space = spaces.Dict(parts), spaces.Discrete(2)
        self.time, self.seen = 0, np.zeros(2, np.float32)

    def _observe(self) -> dict[str, np.ndarray[Any, Any]]:
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"z": self.seen, "a": self.np_random.uniform(-1, 1, 3).astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        reward = float((self.seen[0] > 0) == bool(action))
        return self._observe(), reward, False, self.time >= 10, {}


gym.register("RunnerTestPair-v0", Pair)

CONFIG = """
environment: {{id: "tests.runner.test_dict_observations:RunnerTestPair-v0", n_envs: 3, vectorization: {vectorization},
              normalize_observations: {normalize}, frame_stack: {stack}}}
agent: {{policy: {policy}, n_steps: 12, natural_gradient: {{momentum: 0.5}}}}
total_timesteps: 432
log_every: 2
checkpoint_every: 100
evaluation: {{every_steps: 144, episodes: 2, final_episodes: 2, n_envs: 1}}
threads: 1
device: cpu
"""


@pytest.mark.parametrize(
    ("policy", "vectorization", "normalize", "stack"),
    [
        ("MultiInputPolicy", "serial", "false", 1),
        ("MultiInputPolicy", "serial", "true", 2),
        ("MultiInputLstmPolicy", "serial", "true", 1),
        # Each process imports torch and SB3 anew, which takes seconds.
        pytest.param("MultiInputPolicy", "subprocess", "true", 1, marks=pytest.mark.slow),
        pytest.param("MultiInputLstmPolicy", "subprocess", "false", 1, marks=pytest.mark.slow),
    ],
)
def test_a_run_in_pieces_equals_the_run_in_one_piece(
    policy: str, vectorization: str, normalize: str, stack: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(policy=policy, vectorization=vectorization, normalize=normalize, stack=stack))
    assert_pieces_equal_the_whole(config, tmp_path, monkeypatch)


def test_an_ordered_dictionary_keeps_its_order() -> None:
    again = plain_data.load(plain_data.dump(OrderedDict([("z", 1), ("a", OrderedDict(m=np.ones(2)))])), "file")
    assert list(again) == ["z", "a"]
    np.testing.assert_array_equal(again["a"]["m"], np.ones(2))
