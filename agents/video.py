"""Films of a trained agent: an mp4 file for each episode, from the frames that the environment draws."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents.config import EnvironmentConfig
from natgrad_apps.agents.environments import INSTALL, close, find_normalization, make, make_evaluation
from natgrad_apps.agents.masking import player
from natgrad_apps.errors import ConfigError

FRAMES_PER_SECOND = 30
"""For environments that do not say how fast they run."""
PICTURES = "rgb_array"
"""The render mode of Gymnasium that gives arrays."""


def record(agent: BaseAlgorithm, config: EnvironmentConfig, episodes: int, seed: int, deterministic: bool, folder: Path) -> list[Path]:
    """Run episodes and write each as ``episode_K.mp4``; a file appears under its name only when its episode has ended.

    Args:
        agent: The agent; the statistics of its environment's VecNormalize, if any, are used as they are.
        config: Its environment.
        episodes: Number of films.
        seed: Seed of the first states.
        deterministic: Whether the most probable action is taken.
        folder: Where the files go; it is made.

    Returns:
        The files.

    Raises:
        ConfigError: The environment draws no pictures, a package is missing, or a file cannot be written.
    """
    writer = _writer()
    _require_pictures(config)
    drawn = dataclasses.replace(config, kwargs={**config.kwargs, "render_mode": PICTURES}, vectorization="serial")
    with ExitStack() as stack:
        training = agent.get_env()
        venv = make_evaluation(drawn, 1, seed, find_normalization(training) if training is not None else None)
        stack.callback(close, venv)
        if venv.get_attr("render_mode")[0] != PICTURES:
            raise ConfigError(
                f"{config.id!r} cannot be filmed: made with render_mode={PICTURES!r} it has another; set self.render_mode to it"
            )
        rate = float(venv.get_attr("metadata")[0].get("render_fps", FRAMES_PER_SECOND))
        films = _frames(agent, venv, deterministic)
        files = []
        for number in range(1, episodes + 1):
            target = folder / f"episode_{number}.mp4"
            _write(writer, target, rate, films)
            files.append(target)
    return files


def _require_pictures(config: EnvironmentConfig) -> None:
    """Raise unless the environment says that it draws pictures; asking for them anyhow would warn in several ways and then fail."""
    env = make(config.id, config.kwargs)
    try:
        modes = list((env.metadata or {}).get("render_modes") or [])
    finally:
        env.close()
    if PICTURES not in modes:
        has = f"only {', '.join(map(repr, modes))}" if modes else "none"
        raise ConfigError(
            f"{config.id!r} cannot be filmed: films need the render mode {PICTURES!r}, and of render modes it has {has}; in an environment "
            "of yours, list it in metadata['render_modes'], take render_mode in the constructor, and return the picture from render()"
        )


def _frames(agent: BaseAlgorithm, venv: VecEnv, deterministic: bool) -> Iterator[np.ndarray[Any, Any] | None]:
    """Pictures of one episode after another, with None at the end of each."""
    observation, state, start, seat = venv.reset(), None, np.ones(1, dtype=bool), player(agent, venv)
    while True:
        yield _draw(venv)
        action, state = seat.predict(observation, state=state, episode_start=start, deterministic=deterministic)  # type: ignore[arg-type]
        observation, _, start, infos = venv.step(action)
        if start[0] and _is_over(infos[0]):
            yield None


def _is_over(info: dict[str, Any]) -> bool:
    """Whether the whole episode has ended: with life-loss episodes (Atari) the monitor's record comes with the last life."""
    return "episode" in info


def _draw(venv: VecEnv) -> np.ndarray[Any, Any]:
    try:
        picture = venv.render(mode=PICTURES)
    except DependencyNotInstalled as error:
        raise ConfigError(f"the environment needs a package to draw itself: {' '.join(str(error).split())}; {INSTALL} brings it") from error
    except Exception as error:  # whatever a graphics library raises
        hint = "" if os.environ.get("MUJOCO_GL") else "; without a display MuJoCo needs the environment variable MUJOCO_GL=egl (or osmesa)"
        raise ConfigError(f"the environment cannot draw itself: {' '.join(str(error).split())}{hint}") from error
    if picture is None:
        raise ConfigError(f"the environment draws no pictures (render_mode {PICTURES!r}), so there is nothing to film")
    return np.asarray(picture, dtype=np.uint8)


def _write(writer: Callable[..., Any], target: Path, rate: float, films: Iterator[np.ndarray[Any, Any] | None]) -> None:
    """Encode the next film."""
    partial = target.with_name(f".{target.name}.part.mp4")
    first = next(films)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # H.264 wants even sides: blocks of 2 pixels, the picture is scaled by less than that.
        with writer(partial, fps=rate, codec="libx264", macro_block_size=2, ffmpeg_log_level="error") as film:
            picture = first
            while picture is not None:
                film.append_data(picture)
                picture = next(films)
        os.replace(partial, target)
    except OSError as error:
        raise ConfigError(f"{str(target)!r} cannot be written: {' '.join(str(error).split())}") from error
    finally:
        partial.unlink(missing_ok=True)


def _writer() -> Callable[..., Any]:
    try:
        import imageio  # noqa: PLC0415  (an optional package)
        import imageio_ffmpeg  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(f"films need imageio with ffmpeg, which is not installed: {error.name}; {INSTALL} brings it") from error
    writer: Callable[..., Any] = imageio.get_writer
    return writer
