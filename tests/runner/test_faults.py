"""Environments that break stop the run with an error that names them, and leave the checkpoint whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents.cli import main
from natgrad_apps.agents.config import EnvironmentConfig
from natgrad_apps.agents.environments import close, find_normalization, make_training
from natgrad_apps.agents.faults import EnvironmentFaultError, InsideError
from natgrad_apps.runner import checkpoints
from natgrad_apps.runner.metrics import read_rows

BREAKS_AT = 25


class Breaking(gym.Env[Any, Any]):
    """Episodes of 10 steps; something breaks in step 25 of the second copy's life, or in its third reset."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        self.how, self.life, self.time, self.resets = kwargs.get("how", "none"), 0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.resets = 0, self.resets + 1
        if self.resets == 3 and self.how == "reset":
            raise RuntimeError("no such level")
        return self.observe(), {}

    def observe(self) -> Any:
        observation = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        if self.life == BREAKS_AT and self.how == "observation":
            observation[1] = np.nan
        return np.full(3, 0.5, np.float32) if self.how == "constant" else observation

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time, self.life = self.time + 1, self.life + 1
        if self.life == BREAKS_AT and self.how == "error":
            raise RuntimeError("the joint came off")
        if self.life == BREAKS_AT and self.how == "death":
            os._exit(3)
        reward = np.inf if self.life == BREAKS_AT and self.how == "reward" else 1.0
        return self.observe(), reward, self.time >= (1 if self.how == "short" else 10), False, {}


HOWS = ("error", "observation", "reward", "reset", "death", "constant", "short")
for name in HOWS:
    gym.register(f"RunnerTestBreaking_{name}-v0", Breaking, kwargs={"how": name}, disable_env_checker=True)

MESSAGES = {
    "error": r"copy 0 of environment 'RunnerTestBreaking_error-v0' broke in step 5 of its episode: RuntimeError: the joint came off",
    "observation": r"broke in step 5 of its episode: its observation is nan at index \[1\]",
    "reward": r"broke in step 5 of its episode: its reward is inf",
    "reset": r"broke in its reset: RuntimeError: no such level",
}


def play(venv: VecEnv) -> None:
    for _ in range(30):
        venv.step(np.zeros(venv.num_envs, dtype=int))


@pytest.mark.parametrize("how", MESSAGES)
def test_a_fault_names_environment_and_step(how: str) -> None:
    venv = make_training(EnvironmentConfig(f"RunnerTestBreaking_{how}-v0", n_envs=2, normalize_observations=True), 0.99, seed=0)
    venv.reset()
    with pytest.raises(EnvironmentFaultError, match=MESSAGES[how]) as caught:
        play(venv)
    if how in {"error", "reset"}:
        assert isinstance(caught.value.__cause__, InsideError)
        assert "Traceback" in str(caught.value.__cause__)
    statistics = find_normalization(venv)
    assert statistics is not None
    assert isinstance(statistics.obs_rms, RunningMeanStd)
    assert np.isfinite(statistics.obs_rms.mean).all(), "what is not finite must not reach the running statistics"


def test_a_sound_environment_is_left_alone() -> None:
    plain, guarded = Breaking(), make_training(EnvironmentConfig("RunnerTestBreaking_constant-v0", n_envs=1), 0.99, seed=0)
    plain.reset(seed=0)
    np.testing.assert_array_equal(guarded.reset(), np.full((1, 3), 0.5, np.float32))
    for _ in range(21):
        _, rewards, dones, _ = guarded.step(np.zeros(1, dtype=int))
        _, reward, done, _, _ = plain.step(0)
        plain.time *= not done
        assert (rewards[0], dones[0]) == (reward, done)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "observation", "death"])
def test_faults_arrive_from_another_process(how: str) -> None:
    """Each process imports torch and SB3 anew, which takes seconds."""
    venv = make_training(EnvironmentConfig(f"tests.runner.test_faults:RunnerTestBreaking_{how}-v0", vectorization="subprocess"), 0.99, 0)
    try:
        venv.reset()
        expected = MESSAGES.get(how, "died: .*copy 0 ended with exit code 3").replace("'Runner", "'tests.runner.test_faults:Runner")
        with pytest.raises(EnvironmentFaultError, match=expected):
            play(venv)
    finally:
        close(venv)


def _train(how: str, out: Path) -> int:
    settings = {"environment.id": f"RunnerTestBreaking_{how}-v0", "environment.n_envs": "2", "agent.n_steps": "8", "total_timesteps": "96"}
    settings |= {"environment.normalize_observations": "true", "environment.normalize_rewards": "true", "checkpoint_every": "16"}
    settings |= {"evaluation.final_episodes": "2", "log_every": "1"}
    return main(["train", "--out", str(out), *(word for key, value in settings.items() for word in (f"--{key}", value))])


def test_a_run_that_breaks_keeps_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train("observation", out) == 1
    error = capsys.readouterr().err
    assert "copy 0 of environment 'RunnerTestBreaking_observation-v0' broke in step 5" in error
    assert f"to go on: natgrad-acktr train --resume {out}" in error
    saved = max(out.glob("checkpoint/step_*"))
    assert checkpoints.load(saved).step == 48  # the fault is in step 25 of each copy, in the rollout that begins at 2 x 24


@pytest.mark.parametrize("how", ["constant", "short"])
def test_constant_observations_and_rewards_and_episodes_of_one_step_train(how: str, tmp_path: Path) -> None:
    """Both have constant rewards; `constant` has observations without variance, `short` episodes of length 1."""
    assert _train(how, tmp_path / "run") == 0
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert [float(row["train/predicted_kl"]) >= 0 and float(row["train/skipped_updates"]) == 0 for row in rows] == [True] * 6
