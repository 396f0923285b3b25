"""Films of trained agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import pytest

from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import EnvironmentConfig, TrainConfig
from natgrad_apps.agents.environments import close, make_training
from natgrad_apps.agents.video import record
from natgrad_apps.errors import ConfigError

CARTPOLE = "gymnasium.envs.classic_control:CartPoleEnv"
pytestmark = [  # pygame's and imageio's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def film(env_id: str, folder: Path, episodes: int) -> list[Path]:
    config = TrainConfig(EnvironmentConfig(env_id, n_envs=1))
    venv = make_training(config.environment, 0.99, 0)
    try:
        return record(build_agent(config, venv), config.environment, episodes, 3, True, folder)
    finally:
        close(venv)


def test_each_episode_becomes_a_film(tmp_path: Path) -> None:
    gym.register("Short-v0", CARTPOLE, max_episode_steps=6)
    try:
        files = film("Short-v0", tmp_path / "videos", 2)
    finally:
        del gym.registry["Short-v0"]
    assert [f.name for f in files] == ["episode_1.mp4", "episode_2.mp4"]
    assert sorted(p.name for p in (tmp_path / "videos").iterdir()) == ["episode_1.mp4", "episode_2.mp4"]
    for file in files:
        assert iio.immeta(file)["fps"] == 50  # CartPole's own
        assert len(iio.imread(file)) == 6  # one before each step; the pole cannot fall in fewer than eight


class Invisible(gym.Wrapper[Any, Any, Any, Any]):
    """Draws nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gym.make("CartPole-v1", **kwargs))

    def render(self) -> None:
        """No picture."""


def test_an_environment_without_pictures_is_an_error(tmp_path: Path) -> None:
    gym.register("Invisible-v0", Invisible, disable_env_checker=True)
    try:
        with pytest.raises(ConfigError, match="draw"):
            film("Invisible-v0", tmp_path, 1)
    finally:
        del gym.registry["Invisible-v0"]
    assert not list(tmp_path.iterdir())
