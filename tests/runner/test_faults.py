"""Environments that break stop the run with an error that names them, and leave the checkpoint whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents import faults
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
        if self.how == "first reset":
            raise ValueError("no licence")
        if self.how == "exit in reset":
            sys.exit("no display")
        return self.observe(), {}

    def observe(self) -> Any:
        if self.how in FIRST_OBSERVATIONS:
            return FIRST_OBSERVATIONS[self.how]
        observation = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        if self.life == BREAKS_AT and self.how == "observation":
            observation[1] = np.nan
        return np.full(3, 0.5, np.float32) if self.how == "constant" else observation

    def leave(self) -> None:
        sys.exit(4)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time, self.life = self.time + 1, self.life + 1
        if self.life == BREAKS_AT and self.how == "error":
            raise RuntimeError("the joint came off")
        if self.life == BREAKS_AT and self.how == "death":
            os._exit(3)
        if self.life == BREAKS_AT and self.how == "exit":
            sys.exit(3)
        if self.life == BREAKS_AT and self.how == "interrupt":
            raise KeyboardInterrupt
        reward: Any = np.inf if self.life == BREAKS_AT and self.how == "reward" else 1.0
        reward = "1" if self.how == "text" else reward
        return self.observe(), reward, self.time >= (1 if self.how == "short" else 10), False, {}


FIRST_OBSERVATIONS = {"shape": np.zeros(4, np.float32), "none": None, "nan": np.full(3, np.nan, np.float32), "dictionary": {"a": 1.0}}
"""Wrong from the beginning."""

HOWS = (
    "error",
    "observation",
    "reward",
    "reset",
    "death",
    "constant",
    "short",
    "exit",
    "interrupt",
    "text",
    "first reset",
    "exit in reset",
)
for name in (*HOWS, *FIRST_OBSERVATIONS):
    gym.register(f"RunnerTestBreaking_{name.replace(' ', '_')}-v0", Breaking, kwargs={"how": name}, disable_env_checker=True)

MESSAGES = {
    "error": r"copy 0 of environment 'RunnerTestBreaking_error-v0' broke in step 5 of its episode: RuntimeError: the joint came off",
    "observation": r"broke in step 5 of its episode: its observation is nan at index \[1\]",
    "reward": r"broke in step 5 of its episode: its reward is inf",
    "reset": r"broke in its reset: RuntimeError: no such level",
    "exit": r"copy 0 of environment 'RunnerTestBreaking_exit-v0' broke in step 5 of its episode: SystemExit: 3",
    "text": r"broke in step 1 of its episode: its reward is '1' of type str, not a number",
}

FIRST_RESETS = {
    "first_reset": "ValueError: no licence",
    "exit_in_reset": "SystemExit: no display",
    "shape": r"its observation has the shape \(4,\), in its observation_space \(3,\)",
    "none": "its observation is None of type NoneType, not numbers",
    "nan": r"its observation is nan at index \[0\]",
    "dictionary": "its observation is {'a': 1.0} of type dict, not numbers",
}


def play(venv: VecEnv) -> None:
    for _ in range(30):
        venv.step(np.zeros(venv.num_envs, dtype=int))


def live(venv: VecEnv) -> None:
    venv.reset()
    play(venv)


@pytest.mark.parametrize("how", MESSAGES)
def test_a_fault_names_environment_and_step(how: str) -> None:
    venv = make_training(EnvironmentConfig(f"RunnerTestBreaking_{how}-v0", n_envs=2, normalize_observations=True), 0.99, seed=0)
    venv.reset()
    with pytest.raises(EnvironmentFaultError, match=MESSAGES[how]) as caught:
        play(venv)
    if how in {"error", "reset", "exit"}:
        assert isinstance(caught.value.__cause__, InsideError)
        assert "Traceback" in str(caught.value.__cause__)
    statistics = find_normalization(venv)
    assert statistics is not None
    assert isinstance(statistics.obs_rms, RunningMeanStd)
    assert np.isfinite(statistics.obs_rms.mean).all(), "what is not finite must not reach the running statistics"


@pytest.mark.parametrize("how", FIRST_RESETS)
def test_a_fault_in_the_first_reset_names_the_copy(how: str) -> None:
    venv = make_training(EnvironmentConfig(f"RunnerTestBreaking_{how}-v0", n_envs=2, normalize_observations=True), 0.99, seed=0)
    name = f"copy 0 of environment 'RunnerTestBreaking_{how}-v0' broke in its first reset: "
    with pytest.raises(EnvironmentFaultError, match=name + FIRST_RESETS[how]):
        venv.reset()


def test_ctrl_c_is_no_fault_of_the_environment() -> None:
    venv = make_training(EnvironmentConfig("RunnerTestBreaking_interrupt-v0", n_envs=1), 0.99, seed=0)
    venv.reset()
    with pytest.raises(KeyboardInterrupt):
        play(venv)


@pytest.mark.parametrize(
    ("observation", "problem"),
    [
        ({"a": 1.0, "b": 2}, ""),
        ({"b": 2, "a": np.ones(1)}, ""),
        ({"a": 1.0}, "its observation has no 'b'"),
        ({"a": [1.0, 2.0], "b": 2}, "its observation 'a' has the shape (2,), in its observation_space (1,)"),
        ({"a": np.inf, "b": 2}, "its observation 'a' is inf at index []"),
        (1.0, "its observation is of type float, not a dictionary of a, b"),
    ],
)
def test_dictionaries_are_looked_into(observation: Any, problem: str) -> None:
    """What SB3 can broadcast is legal."""
    assert faults._problem(observation, 0.0, spaces.Dict(a=spaces.Box(-2, 2, (1,)), b=spaces.Discrete(3))) == problem


def test_a_fault_of_another_method_names_it() -> None:
    venv = make_training(EnvironmentConfig("RunnerTestBreaking_none-v0", n_envs=1), 0.99, seed=0)
    with pytest.raises(EnvironmentFaultError, match=r"environment 'RunnerTestBreaking_none-v0' broke in its leave\(\): SystemExit: 4"):
        venv.env_method("leave")
    assert faults.name_of(venv) == "RunnerTestBreaking_none-v0"
    assert faults.name_of(venv.unwrapped) is None


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
@pytest.mark.parametrize("how", ["error", "observation", "death", "exit", "shape"])
def test_faults_arrive_from_another_process(how: str) -> None:
    """Each process imports torch and SB3 anew, which takes seconds."""
    venv = make_training(EnvironmentConfig(f"tests.runner.test_faults:RunnerTestBreaking_{how}-v0", vectorization="subprocess"), 0.99, 0)
    try:
        told = {**FIRST_RESETS, **MESSAGES}.get(how, "died: .*copy 0 ended with exit code 3")
        with pytest.raises(EnvironmentFaultError, match=told.replace("'Runner", "'tests.runner.test_faults:Runner")):
            live(venv)
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


@pytest.mark.parametrize("how", ["first_reset", "shape"])
def test_a_run_that_breaks_at_once_writes_nothing(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train(how, out) == 1
    error = capsys.readouterr().err
    assert f"copy 0 of environment 'RunnerTestBreaking_{how}-v0' broke in its first reset: " in error
    assert "Traceback" in error
    assert not out.exists()


def test_a_run_that_breaks_before_its_first_checkpoint_leaves_room_for_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: VecEnv) -> None:
        raise RuntimeError("the disk is full")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("natgrad_apps.agents.snapshot.pack", fail)
        assert _train("constant", out) == 1
    assert "nothing is kept: when mended, start again with the same --out" in capsys.readouterr().err
    assert _train("constant", out) == 0


def test_sys_exit_in_an_environment_does_not_end_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train("exit", out) == 1
    assert "copy 0 of environment 'RunnerTestBreaking_exit-v0' broke in step 5 of its episode: SystemExit: 3" in capsys.readouterr().err
    assert "SystemExit: 3" in (out / "log.txt").read_text()


@pytest.mark.parametrize("how", ["constant", "short"])
def test_constant_observations_and_rewards_and_episodes_of_one_step_train(how: str, tmp_path: Path) -> None:
    """Both have constant rewards; `constant` has observations without variance, `short` episodes of length 1."""
    assert _train(how, tmp_path / "run") == 0
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert [float(row["train/predicted_kl"]) >= 0 and float(row["train/skipped_updates"]) == 0 for row in rows] == [True] * 6
