"""Films of trained agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import imageio
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import EnvironmentConfig, TrainConfig
from natgrad_apps.agents.environments import close, make_training
from natgrad_apps.agents.video import record
from natgrad_apps.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pygame's and imageio's own


def film(env_id: str, folder: Path, episodes: int) -> list[Path]:
    config = TrainConfig(EnvironmentConfig(env_id, n_envs=1))
    venv = make_training(config.environment, 0.99, 0)
    try:
        return record(build_agent(config, venv), config.environment, episodes, 3, True, folder)
    finally:
        close(venv)


def test_each_episode_becomes_a_film(tmp_path: Path) -> None:
    gym.register("Short-v0", CartPoleEnv, max_episode_steps=6)
    try:
        files = film("Short-v0", tmp_path / "videos", 2)
    finally:
        del gym.registry["Short-v0"]
    assert [f.name for f in files] == ["episode_1.mp4", "episode_2.mp4"]
    assert sorted(p.name for p in (tmp_path / "videos").iterdir()) == ["episode_1.mp4", "episode_2.mp4"]
    for file in files:
        with imageio.get_reader(file) as reader:
            assert reader.get_meta_data()["fps"] == 50  # CartPole's own
            assert reader.count_frames() == 6  # one before each step; the pole cannot fall in fewer than eight


class Invisible(CartPoleEnv):
    """Draws nothing."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}

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
