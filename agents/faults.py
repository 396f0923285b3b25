"""Environments that break: an error that says which one, when and how, instead of a broken pipe or NaN in running statistics.

A fault inside an environment may happen in another process, where raising it would end that process and lose the message. So each
environment tells its faults through ``info`` (`Guarded`), and the vectorized environment raises what it is told (`Faults`), before
VecNormalize or the agent see anything of it.
"""

from __future__ import annotations

import math
import reprlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from natgrad_apps.errors import NatgradError
from natgrad_apps.runner.words import one_line

KEY = "natgrad_fault"
"""Key of ``info`` that holds what went wrong, and the traceback."""

FAULTS = (Exception, SystemExit)
"""What an environment may raise; Ctrl-C is not its own."""

NUMBERS = "biuf"
"""Kinds of numpy's types that are numbers."""


class EnvironmentFaultError(Exception):
    """An environment raised an error, returned NaN or infinity, or its process died; the message says which, when and what."""


class InsideError(Exception):
    """Cause of an `EnvironmentFaultError`: the traceback inside the environment, perhaps of another process, as text."""


class Guarded(gym.Wrapper[Any, Any, Any, Any]):
    """Checks what an environment returns, and tells its faults through ``info``.

    The observation that goes with a fault is the last sound one, or any of its space before there is one. ``sys.exit`` in an environment
    is a fault like another, since it would end the run without a word; Ctrl-C is not.

    Args:
        env: The environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._last: Any = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment does."""
        self._steps = 0
        try:
            observation, info = self.env.reset(seed=seed, options=options)
            problem, details = _problem(observation, 0.0, self.observation_space), ""
        except FAULTS as error:
            problem, details = _describe(error), traceback.format_exc()
        if problem:
            first = self._last is None
            return self._sound(), _told("in its first reset" if first else "in its reset", problem, details)
        self._last = observation
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment does."""
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            problem, details = _problem(observation, reward, self.observation_space), ""
        except FAULTS as error:
            problem, details = _describe(error), traceback.format_exc()
        if problem:
            # Not terminated: the vectorized environment would reset what is broken.
            return self._sound(), 0.0, False, False, _told(f"in step {self._steps} of its episode", problem, details)
        self._last = observation
        return observation, reward, terminated, truncated, info

    def _sound(self) -> Any:
        return self.observation_space.sample() if self._last is None else self._last


class Faults(VecEnvWrapper):
    """Raises the faults that `Guarded` environments tell, and names processes that died.

    Args:
        venv: The vectorized environment.
        name: Of the environment, for messages.
    """

    def __init__(self, venv: VecEnv, name: str) -> None:
        super().__init__(venv)
        self.name = name

    def reset(self) -> VecEnvObs:
        """As below.

        Raises:
            EnvironmentFaultError: An environment told a fault, or its process died.
        """
        try:
            observations = self.venv.reset()
        except (EOFError, ConnectionError) as error:
            raise self._death(error) from error
        self._raise_told(self.venv.reset_infos)
        return observations

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        """As below."""
        try:
            self.venv.step_async(actions)
        except (EOFError, ConnectionError) as error:
            raise self._death(error) from error

    def step_wait(self) -> VecEnvStepReturn:
        """As below.

        Raises:
            EnvironmentFaultError: An environment told a fault, or its process died.
        """
        try:
            result = self.venv.step_wait()
        except (EOFError, ConnectionError) as error:
            raise self._death(error) from error
        self._raise_told(result[3])
        self._raise_told(self.venv.reset_infos)
        return result

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """As below."""
        try:
            return self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        except (EOFError, ConnectionError) as error:
            raise self._death(error) from error
        except NatgradError:
            raise
        except FAULTS as error:
            raise EnvironmentFaultError(f"environment {self.name!r} broke in its {method_name}(): {_describe(error)}") from error

    def _raise_told(self, infos: Sequence[dict[str, Any]]) -> None:
        for copy, info in enumerate(infos):
            if KEY in info:
                message, details = f"copy {copy} of environment {self.name!r} broke {info[KEY]['what']}", info[KEY]["details"]
                raise EnvironmentFaultError(message) from (InsideError("\n" + details) if details else None)

    def _death(self, error: Exception) -> EnvironmentFaultError:
        base = self.venv.unwrapped
        dead = []
        if isinstance(base, SubprocVecEnv):
            for copy, process in enumerate(base.processes):
                process.join(timeout=1.0)
                if process.exitcode is not None:
                    dead.append(f"copy {copy} ended with exit code {process.exitcode}")
        what = "; ".join(dead) or type(error).__name__
        return EnvironmentFaultError(f"the process of an environment died: {self.name!r}, {what}; what it printed may say why")


def name_of(venv: VecEnv) -> str | None:
    """Name of an environment under `Faults`, for messages; None if there is no such wrapper."""
    layer: Any = venv
    while layer is not None and not isinstance(layer, Faults):
        layer = getattr(layer, "venv", None)
    return None if layer is None else layer.name


def _told(when: str, what: str, details: str) -> dict[str, Any]:
    return {KEY: {"what": f"{when}: {what}", "details": details}}


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, 'no message')}"


def _problem(observation: Any, reward: Any, space: gym.Space[Any]) -> str:
    """What is no number, not finite, or of another size than the space says; empty if all is well."""
    number = np.asarray(reward)
    if number.ndim or number.dtype.kind not in NUMBERS:
        return f"its reward is {reprlib.repr(reward)} of type {type(reward).__name__}, not a number"
    if not np.isfinite(number):
        return f"its reward is {reward}"
    if not isinstance(space, gym.spaces.Dict):
        return _problem_of("its observation", observation, space)
    if not isinstance(observation, Mapping):
        return f"its observation is of type {type(observation).__name__}, not a dictionary of {', '.join(space)}"
    for key, part in space.items():
        if key not in observation:
            return f"its observation has no {key!r}"
        problem = _problem_of(f"its observation {key!r}", observation[key], part)
        if problem:
            return problem
    return ""


def _problem_of(name: str, value: Any, space: gym.Space[Any]) -> str:
    array = np.asarray(value)
    if array.dtype.kind not in NUMBERS:
        return f"{name} is {reprlib.repr(value)} of type {type(value).__name__}, not numbers"
    # Sizes are compared, not shapes: what SB3 can broadcast, such as a number for an array of one, is as good.
    if space.shape is not None and array.size != math.prod(space.shape):
        return f"{name} has the shape {array.shape}, in its observation_space {space.shape}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        return f"{name} is {array[tuple(place)]} at index {place}"
    return ""
