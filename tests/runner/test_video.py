"""Films of trained agents."""

from __future__ import annotations

import sys
import warnings
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


class Undrawn(gym.Env[Any, Any]):
    """An environment of which nobody has thought of films."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        pass

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, True, False, {}


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ([], "films need the render mode 'rgb_array', and of render modes it has none"),
        (["human"], "of render modes it has only 'human'"),
        (["rgb_array"], "made with render_mode='rgb_array' it has another; set self.render_mode"),
    ],
)
def test_an_environment_without_the_render_mode_is_an_error_and_no_warning(modes: list[str], message: str, tmp_path: Path) -> None:
    environment: Any = type("Declared", (Undrawn,), {"metadata": {"render_modes": modes}})
    gym.register("Undrawn-v0", environment, disable_env_checker=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with pytest.raises(ConfigError, match=message):
                film("Undrawn-v0", tmp_path, 1)
    finally:
        del gym.registry["Undrawn-v0"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ConfigError, match=r"needs a package to draw itself: pygame is not installed.*natgrad-apps"):
        film("CartPole-v1", tmp_path, 1)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match="films need imageio with ffmpeg"):
        film("CartPole-v1", tmp_path, 1)
