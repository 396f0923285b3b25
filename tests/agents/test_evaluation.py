"""Evaluations end, whatever the environment does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from natgrad_apps.agents import ACKTR, evaluation
from natgrad_apps.agents.cli import main
from natgrad_apps.agents.config import EnvironmentConfig
from natgrad_apps.agents.environments import make_evaluation
from natgrad_apps.agents.evaluation import evaluate
from natgrad_apps.agents.faults import EnvironmentFaultError


class Endless(gym.Env[Any, Any]):
    """An environment without an end."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, **kwargs: Any) -> None:
        pass

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, dtype=np.float32), 1.0, False, False, {}


gym.register("AgentTestEndless-v0", lambda **_: Endless())


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LONG_EPISODE", 30)
    monkeypatch.setattr(evaluation, "ENDLESS_EPISODE", 50)


def returns(limit: int, episodes: int = 3) -> tuple[float, ...]:
    """Of episodes with a time limit; -1 is none."""
    env = make_evaluation(EnvironmentConfig("AgentTestEndless-v0", kwargs={"max_episode_steps": limit}), 2, 0, None)
    model = ACKTR("MlpPolicy", env, n_steps=4, seed=0, device="cpu")
    return evaluate(model, env, episodes, seed=1, deterministic=True).returns


@pytest.mark.usefixtures("short_patience")
def test_an_episode_without_an_end_is_given_up_with_a_remedy() -> None:
    message = r"copy 0 of environment 'AgentTestEndless-v0', has not ended after 50 steps: .*--environment.kwargs.max_episode_steps 1000"
    with (
        pytest.warns(UserWarning, match="has not ended after 30 steps; it is given up after 50"),
        pytest.raises(EnvironmentFaultError, match=message),
    ):
        returns(-1)


@pytest.mark.usefixtures("short_patience")
def test_long_episodes_are_legal() -> None:
    """Warnings are errors in tests: up to 30 steps there is none, one after the other."""
    assert returns(30, episodes=6) == (30.0,) * 6
    with pytest.warns(UserWarning, match="has not ended after 30 steps"):
        assert returns(50) == (50.0,) * 3


@pytest.mark.usefixtures("short_patience")
@pytest.mark.filterwarnings("default:an episode of the evaluation:UserWarning")
def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = "--environment.id AgentTestEndless-v0 --environment.n_envs 2 --agent.n_steps 8 --total_timesteps 64 --evaluation.every_steps 32"
    assert main(["train", "--out", str(out), *words.split()]) == 1
    assert "has not ended after 50 steps" in capsys.readouterr().err
    assert "has not ended after 30 steps" in (out / "log.txt").read_text()
