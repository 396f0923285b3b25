"""Environments of a run: made from typed settings, vectorized, preprocessed, normalized, with errors that say what to do."""

from __future__ import annotations

import difflib
import importlib.util
import multiprocessing
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium import error as gym_error
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from natgrad_apps.agents.config import EnvironmentConfig
from natgrad_apps.agents.environment_state import Resumable
from natgrad_apps.agents.faults import Faults, Guarded
from natgrad_apps.agents.spaces import check_arrays, check_observations
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.words import one_line

INSTALL = 'pip install "natgrad-apps[rl]"'

_ARGUMENTS = re.compile(r"unexpected keyword argument|required (positional|keyword-only) argument|multiple values for")
_ROMS = re.compile(r"\bROMs?\b", re.IGNORECASE)


@dataclass(frozen=True)
class EnvironmentFactory:
    """Makes one copy of the environment; picklable, so that a subprocess can call it."""

    config: EnvironmentConfig

    def __call__(self) -> gym.Env[Any, Any]:
        """Make the environment.

        Raises:
            ConfigError: It does not exist, lacks a package, refuses its arguments, or has observations that cannot be learned from.
        """
        if multiprocessing.parent_process() is not None:
            # Ctrl-C reaches every process of a terminal, and job schedulers signal whole groups; the runner stops its workers itself, after
            # the checkpoint. A worker whose runner is gone ends, because its pipe does.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
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
        check_observations(env.observation_space, self.config.id)
        return Resumable(Guarded(env))


def make(env_id: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """`gymnasium.make` with errors for users.

    Args:
        env_id: Gymnasium id.
        kwargs: Arguments of the constructor.

    Raises:
        ConfigError: The environment does not exist, lacks a package, or refuses its arguments.
    """
    has_arcade = _register_arcade()
    if env_id in gym.registry and "mujoco" in str(gym.registry[env_id].entry_point):
        _tell_mujoco_warnings_once()
    try:
        return gym.make(env_id, **kwargs)
    except gym_error.DependencyNotInstalled as error:
        raise ConfigError(f"environment {env_id!r} needs a package that is not installed: {error}") from error
    except gym_error.Error as error:
        if not has_arcade and ("NoFrameskip" in env_id or env_id.startswith("ALE/")):
            raise ConfigError(f"environment {env_id!r} needs ale-py, which is not installed; {INSTALL} brings it") from error
        text = one_line(error).rstrip(".")
        raise ConfigError(f"environment {env_id!r} cannot be made: {text}{_hint(env_id, error)}") from error
    except ImportError as error:
        text = one_line(error)
        raise ConfigError(f"environment {env_id!r} needs a module that cannot be imported: {text}") from error
    except (TypeError, ValueError, AttributeError, OSError, SystemExit) as error:
        text = one_line(error)
        if isinstance(error, TypeError) and _ARGUMENTS.search(text):
            raise ConfigError(f"environment {env_id!r} refuses kwargs {dict(kwargs)!r}: {text}") from error
        roms = "; the ROMs come with ale-py 0.10 and later: pip install -U ale-py" if _is_arcade(env_id) and _ROMS.search(text) else ""
        given = f" with kwargs {dict(kwargs)!r}" if kwargs else ""
        raise ConfigError(f"environment {env_id!r} cannot be made{given}: {type(error).__name__}: {text}{roms}") from error


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
        if config.normalize_observations:
            check_arrays(venv.observation_space, "environment.normalize_observations")
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


def close(venv: VecEnv) -> None:
    """Close an environment, and end its processes even if one of them has died: SB3 would wait for ever for answers that it has had."""
    base = venv.unwrapped
    if not isinstance(base, SubprocVecEnv):
        venv.close()
        return
    try:
        if not base.waiting:
            venv.close()
    except (EOFError, OSError):
        pass  # they are ended below, as those in the middle of a step are
    for process in base.processes:
        process.kill()
        process.join()


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
    return Faults(venv, config.id)


def _stack(config: EnvironmentConfig, venv: VecEnv) -> VecEnv:
    if config.frame_stack == 1:
        return venv
    check_arrays(venv.observation_space, "environment.frame_stack")
    return VecFrameStack(venv, config.frame_stack)


def _register_arcade() -> bool:
    if importlib.util.find_spec("ale_py") is None:
        return False
    import ale_py  # noqa: PLC0415  (an optional package)

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)
    return True


def _tell_mujoco_warnings_once() -> None:
    """Show what MuJoCo warns of, once, and not what the models that Gymnasium ships should be rewritten for.

    By itself it writes each warning to the screen and into a file of the working directory, for each copy of the environment anew.
    """
    if importlib.util.find_spec("mujoco") is None:
        return
    import mujoco  # noqa: PLC0415  (an optional package)

    told: set[str] = set()

    def tell(message: str) -> None:
        if "is deprecated" not in message and message not in told:
            told.add(message)
            print(f"MuJoCo warning: {message}", file=sys.stderr, flush=True)

    set_handler = getattr(mujoco, "set_mju_user_warning", None)
    if set_handler is not None:
        set_handler(tell)


def _is_arcade(env_id: str) -> bool:
    return env_id in gym.registry and "ale_py" in str(gym.registry[env_id].entry_point)


def _hint(env_id: str, error: gym_error.Error) -> str:
    near = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.7)
    if near:
        return f"; nearest ids: {', '.join(near)}"
    if isinstance(error, (gym_error.NameNotFound, gym_error.NamespaceNotFound)) and ":" not in env_id:
        return f"; if another package registers it, say which: module:{env_id}"
    return ""
