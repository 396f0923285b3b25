"""The benchmark of exploration: its reward is sparse, its record right, its table complete."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import curiosity


def test_the_reward_is_sparse_and_the_goal_is_recorded() -> None:
    found = curiosity.Found()
    env = curiosity.Watch(DummyVecEnv([lambda: curiosity.Sparse(gym.make("MountainCar-v0"))]), found)
    env.reset()
    rewards = [env.step(np.array([2]))[1][0] for _ in range(3)]
    assert rewards == [0, 0, 0]
    assert found.first is None
    assert found.visited.sum() >= 1
    env.unwrapped.envs[0].unwrapped.state = np.array([0.49, 0.06])  # type: ignore[attr-defined]
    _, reward, done, _ = env.step(np.array([2]))
    assert float(reward[0]) == 1.0
    assert bool(done[0])
    assert vars(found)["first"] == 4
    assert found.ends == [True]


def test_the_probe_sees_both_halves() -> None:
    correlation, tail = curiosity.probe("expected", 0, steps=30)
    assert -1 <= correlation <= 1 < tail


@pytest.mark.parametrize("weight", ["0", "0.1"])
def test_a_short_run_prints_its_row(weight: str, capsys: pytest.CaptureFixture[str]) -> None:
    curiosity.main(["--weights", weight, "--seeds", "0-1", "--steps", "320"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith(f"| {weight} | ")
    assert "0 of 2" in row
