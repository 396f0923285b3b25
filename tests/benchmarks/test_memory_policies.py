"""The benchmark of policies with a memory: what it hides, and how its learners differ."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from benchmarks.memory_policies import BLIND, LEARNERS, Outcome, configured, table


def test_velocities_are_hidden_and_nothing_else_changes() -> None:
    env, full = gym.make(BLIND), CartPoleEnv()
    seen, state = env.reset(seed=1)[0], full.reset(seed=1)[0]
    for _ in range(5):
        np.testing.assert_array_equal(seen, state[[0, 2]])
        assert env.observation_space.contains(seen)
        seen, state = env.step(1)[0], full.step(1)[0]  # type: ignore[no-untyped-call]
    assert env.spec is not None
    assert env.spec.max_episode_steps == 500


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_differ_in_what_they_remember(name: str) -> None:
    config = configured(LEARNERS[name], 7, 1000)
    assert (config.seed, config.total_timesteps, config.environment.n_envs) == (7, 1000, 8)
    assert config.environment.frame_stack == (4 if name == "stacked" else 1)
    assert config.agent.policy == ("MlpLstmPolicy" if name in {"lstm", "unchecked", "diagonal"} else "MlpPolicy")


def test_the_table_has_a_row_for_each_learner_that_ran() -> None:
    rows = [Outcome("lstm", seed, 400.0 + 100 * seed, 500.0, None if seed else 8000, 10_000, 60.0) for seed in (0, 1)]
    found = table([*rows, Outcome("mlp", 0, 40.0, 50.0, None, 10_000, 20.0)])
    assert found.row_count == 2
    cells = [list(column.cells) for column in found.columns]
    # mean 450, standard error 70.7 / sqrt(2)
    assert [column[0] for column in cells[:6]] == ["lstm", "2", "450.0 +- 50.0", "1 of 2", "500.0 +- 0.0", "2 of 2"]
