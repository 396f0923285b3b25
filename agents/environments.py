"""Environments of a run: made from typed settings, vectorized, preprocessed, normalized, with errors that say what to do."""

from __future__ import annotations

import difflib
import importlib.util
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import gymnasium as gym
from gymnasium import error as gym_error
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from natgrad_apps.agents.environment_state import Resumable
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.hints import Range

INSTALL = 'pip install "natgrad-apps[rl]"'


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which environment is learned, and how it is presented to the agent.

    Attributes:
        id: Gymnasium id, such as CartPole-v1, HalfCheetah-v5, PongNoFrameskip-v4, or module:Name-v0 to import a module that registers it.
        n_envs: Copies that run side by side.
        vectorization: serial steps the copies one after another in this process, subprocess gives each a process of its own.
        kwargs: Arguments of the environment's constructor.
        preprocessing: none, or atari for no-op starts, frame skip 4, 84x84 gray frames, life-loss episodes and clipped rewards.
        frame_stack: Number of last observations that the agent sees.
        normalize_observations: Whether observations are shifted and scaled by running statistics.
        normalize_rewards: Whether rewards are scaled by the running deviation of the discounted return; reports stay in the rewards' own units.
        clip_observations: Bound of a normalized observation.
        clip_rewards: Bound of a normalized reward.
    """

    id: str = "CartPole-v1"
    n_envs: Annotated[int, Range(low=1, high=4096)] = 8
    vectorization: Literal["serial", "subprocess"] = "serial"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Literal["none", "atari"] = "none"
    frame_stack: Annotated[int, Range(low=1, high=64)] = 1
    normalize_observations: bool = False
    normalize_rewards: bool = False
    clip_observations: Annotated[float, Range(low=0, open_low=True)] = 10.0
    clip_rewards: Annotated[float, Range(low=0, open_low=True)] = 10.0

    @property
    def normalizes(self) -> bool:
        """Whether running statistics are kept."""
        return self.normalize_observations or self.normalize_rewards


@dataclass(frozen=True)
class EnvironmentFactory:
    """Makes one copy of the environment; picklable, so that a subprocess can call it."""

    config: EnvironmentConfig

    def __call__(self) -> gym.Env[Any, Any]:
        """Make the environment.

        Raises:
            ConfigError: It does not exist, lacks a package, or refuses its arguments.
        """
        if multiprocessing.parent_process() is not None:
            # Ctrl-C reaches every process of a terminal; the runner stops its workers itself, after the checkpoint.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        env: gym.Env[Any, Any] = Monitor(make(self.config.id, self.config.kwargs))
        if self.config.preprocessing == "atari":
            if not hasattr(env.unwrapped, "ale"):
                raise ConfigError(f"environment.preprocessing is 'atari', but {self.config.id!r} is no Atari environment; set it to 'none'")
            if getattr(env.unwrapped, "_frameskip", 1) != 1:
                raise ConfigError(
                    f"environment.preprocessing 'atari' skips frames itself, but {self.config.id!r} does so too; "
                    "use a NoFrameskip-v4 id, or environment.kwargs {frameskip: 1}"
                )
            env = AtariWrapper(env)
        return Resumable(env)


def make(env_id: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """`gymnasium.make` with errors for users.

    Args:
        env_id: Gymnasium id.
        kwargs: Arguments of the constructor.

    Raises:
        ConfigError: The environment does not exist, lacks a package, or refuses its arguments.
    """
    has_arcade = _register_arcade()
    try:
        return gym.make(env_id, **kwargs)
    except gym_error.DependencyNotInstalled as error:
        raise ConfigError(f"environment {env_id!r} needs a package that is not installed: {error}") from error
    except gym_error.Error as error:
        if not has_arcade and ("NoFrameskip" in env_id or env_id.startswith("ALE/")):
            raise ConfigError(f"environment {env_id!r} needs ale-py, which is not installed; {INSTALL} brings it") from error
        raise ConfigError(f"environment {env_id!r} cannot be made: {_sentence(error)}{_nearest(env_id)}") from error
    except ImportError as error:
        raise ConfigError(f"environment {env_id!r} needs a module that cannot be imported: {_sentence(error)}") from error
    except (TypeError, ValueError, AttributeError, OSError) as error:
        missing_rom = "ROM" in str(error) or "rom" in str(error)
        hint = "; the ROMs come with ale-py 0.10 and later: pip install -U ale-py" if missing_rom else ""
        raise ConfigError(f"environment {env_id!r} refuses kwargs {dict(kwargs)!r}: {_sentence(error)}{hint}") from error


def make_training(config: EnvironmentConfig, gamma: float, seed: int) -> VecEnv:
    """The vectorized environment that the agent learns in.

    Args:
        config: Settings.
        gamma: Discount factor of the return that scales rewards.
        seed: Seed of the first copy; the others follow.

    Raises:
        ConfigError: The environment cannot be made, or does not fit the settings.
    """
    venv = _vectorize(config, config.n_envs, seed)
    if config.normalizes:
        _require_box(venv, "environment.normalize_observations") if config.normalize_observations else None
        venv = VecNormalize(
            venv, True, config.normalize_observations, config.normalize_rewards, config.clip_observations, config.clip_rewards, gamma
        )
    return _stack(config, venv)


def make_evaluation(config: EnvironmentConfig, n_envs: int, seed: int, statistics: VecNormalize | None) -> VecEnv:
    """A separate environment for evaluation: rewards as they are, observations normalized by the given statistics, which stay as they are.

    Args:
        config: Settings.
        n_envs: Copies.
        seed: Seed of the first copy.
        statistics: VecNormalize of the training environment, of which a reference to the statistics is taken; None if there is none.

    Raises:
        ConfigError: The environment cannot be made.
    """
    venv = _vectorize(config, n_envs, seed)
    if config.normalizes:
        venv = VecNormalize(
            venv, training=False, norm_obs=config.normalize_observations, norm_reward=False, clip_obs=config.clip_observations
        )
        if statistics is not None and config.normalize_observations:
            venv.obs_rms = statistics.obs_rms
    return _stack(config, venv)


def find_normalization(venv: VecEnv) -> VecNormalize | None:
    """The VecNormalize among the wrappers, if any."""
    layer: Any = venv
    while layer is not None:
        if isinstance(layer, VecNormalize):
            return layer
        layer = getattr(layer, "venv", None)
    return None


def _vectorize(config: EnvironmentConfig, n_envs: int, seed: int) -> VecEnv:
    if config.vectorization == "subprocess":
        # A fault in a worker shows only as a broken pipe, so one copy is tried here first.
        EnvironmentFactory(config)().close()
    factories: list[Callable[[], gym.Env[Any, Any]]] = [EnvironmentFactory(config)] * n_envs
    venv: VecEnv = SubprocVecEnv(factories) if config.vectorization == "subprocess" else DummyVecEnv(factories)
    venv.seed(seed)
    return venv


def _stack(config: EnvironmentConfig, venv: VecEnv) -> VecEnv:
    if config.frame_stack == 1:
        return venv
    _require_box(venv, "environment.frame_stack")
    return VecFrameStack(venv, config.frame_stack)


def _require_box(venv: VecEnv, key: str) -> None:
    if not isinstance(venv.observation_space, (gym.spaces.Box, gym.spaces.Dict)):
        raise ConfigError(f"{key} needs observations that are arrays of numbers, got {venv.observation_space}; leave it out")


def _register_arcade() -> bool:
    if importlib.util.find_spec("ale_py") is None:
        return False
    import ale_py  # noqa: PLC0415  (an optional package)

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)
    return True


def _nearest(env_id: str) -> str:
    near = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.7)
    return f"; nearest ids: {', '.join(near)}" if near else ""


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
