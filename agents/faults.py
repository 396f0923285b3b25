"""Environments that break: an error that says which one, when and how, instead of a broken pipe or NaN in running statistics.

A fault inside an environment may happen in another process, where raising it would end that process and lose the message. So each
environment tells its faults through ``info`` (`Guarded`), and the vectorized environment raises what it is told (`Faults`), before
VecNormalize or the agent see anything of it.
"""

from __future__ import annotations

import traceback
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

KEY = "natgrad_fault"
"""Key of ``info`` that holds what went wrong, and the traceback."""


class EnvironmentFaultError(Exception):
    """An environment raised an error, returned NaN or infinity, or its process died; the message says which, when and what."""


class InsideError(Exception):
    """Cause of an `EnvironmentFaultError`: the traceback inside the environment, perhaps of another process, as text."""


class Guarded(gym.Wrapper[Any, Any, Any, Any]):
    """Checks what an environment returns, and tells its faults through ``info``.

    The observation that goes with a fault is the last sound one. A fault in `reset` is told by the next `step`; before there is a sound
    observation it is raised.

    Args:
        env: The environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._last: Any = None
        self._steps = 0
        self._pending: tuple[str, str] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment does."""
        self._steps, self._pending = 0, None
        try:
            observation, info = self.env.reset(seed=seed, options=options)
            problem = _problem(observation, 0.0)
        except Exception as error:
            if self._last is None:
                raise
            self._pending = _describe(error), traceback.format_exc()
            return self._last, {}
        if problem:
            if self._last is None:
                raise EnvironmentFaultError(f"{problem} in its first reset")
            self._pending = problem, ""
            return self._last, info
        self._last = observation
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment does."""
        if self._pending is not None:
            return self._fault(*self._pending, "in its reset")
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            return self._fault(_describe(error), traceback.format_exc(), f"in step {self._steps} of its episode")
        problem = _problem(observation, reward)
        if problem:
            return self._fault(problem, "", f"in step {self._steps} of its episode")
        self._last = observation
        return observation, reward, terminated, truncated, info

    def _fault(self, what: str, details: str, when: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        # Not terminated: the vectorized environment would reset what is broken.
        return self._last, 0.0, False, False, {KEY: {"what": f"{when}: {what}", "details": details}}


class Faults(VecEnvWrapper):
    """Raises the faults that `Guarded` environments tell, and names processes that died.

    Args:
        venv: The vectorized environment.
        name: Of the environment, for messages.
    """

    def __init__(self, venv: VecEnv, name: str) -> None:
        super().__init__(venv)
        self._name = name

    def reset(self) -> VecEnvObs:
        """As below."""
        try:
            return self.venv.reset()
        except (EOFError, ConnectionError) as error:
            raise self._death(error) from error

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
        for copy, info in enumerate(result[3]):
            if KEY in info:
                message, details = f"copy {copy} of environment {self._name!r} broke {info[KEY]['what']}", info[KEY]["details"]
                raise EnvironmentFaultError(message) from (InsideError("\n" + details) if details else None)
        return result

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """As below."""
        try:
            return self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        except (EOFError, ConnectionError) as error:
            raise self._death(error) from error

    def _death(self, error: Exception) -> EnvironmentFaultError:
        base = self.venv.unwrapped
        dead = []
        if isinstance(base, SubprocVecEnv):
            for copy, process in enumerate(base.processes):
                process.join(timeout=1.0)
                if process.exitcode is not None:
                    dead.append(f"copy {copy} ended with exit code {process.exitcode}")
        what = "; ".join(dead) or type(error).__name__
        return EnvironmentFaultError(f"the process of an environment died: {self._name!r}, {what}; what it printed may say why")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def _problem(observation: Any, reward: Any) -> str:
    """What is not finite; empty if all is."""
    if not np.isfinite(reward):
        return f"its reward is {reward}"
    parts = observation.items() if isinstance(observation, dict) else [("", observation)]
    for key, value in parts:
        array = np.asarray(value)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = np.argwhere(~np.isfinite(array))[0].tolist()
            return f"its observation{f' {key!r}' if key else ''} is {array[tuple(place)]} at index {place}"
    return ""
