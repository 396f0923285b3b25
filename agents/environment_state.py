"""States of running environments, so that a resumed run goes on in the middle of its episodes.

Gymnasium has no such notion, and many environments pickle only the arguments of their constructor (`EzPickle`). Here the state of an
environment is the attributes of every wrapper and of the environment itself, the generators of their spaces, and MuJoCo's and the Arcade
Learning Environment's simulators, saved by their own functions. Helpers that point back to the environment find the one that takes the
state. An environment that this does not reach (a simulator in C that cannot be pickled) has no state, and resuming then starts new
episodes; `capture` says so by returning None, and `why_no_state` says why.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import random
import zlib
from collections.abc import Iterator
from types import MemberDescriptorType
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from natgrad_apps.agents import instances, safe_pickle
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.words import one_line

# What never changes after construction, or only points to another layer.
_FIXED = frozenset({"env", "spec", "_cached_spec", "metadata", "_metadata"})
# Attributes that simulators fill in their own way.
_MUJOCO = frozenset({"model", "data", "mujoco_renderer"})
_ARCADE = frozenset({"ale", "_action_set"})
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


class Resumable(gym.Wrapper[Any, Any, Any, Any]):
    """Outermost wrapper, which gives an environment its state and takes it back; works through the pipes of `SubprocVecEnv` too.

    Args:
        env: The environment, newly made: its spaces are those that every copy has from the start.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._spaces = [(space, dict(vars(space))) for space in _find_spaces(env)]
        self._why_no_state: str | None = None

    def save_state(self) -> bytes | None:
        """The state of every layer below, or None if some part of it cannot be saved."""
        try:
            state = {"layers": [_layer_state(layer) for layer in _layers(self.env)], "spaces": self._changes_of_spaces()}
            data = safe_pickle.dumps(state, self._live())
            self._read(data)  # what could not be read again is no state
        except Exception as error:  # attributes may be any objects, whose pickling may raise anything
            self._why_no_state = self._explain(error)
            return None
        self._why_no_state = None
        return zlib.compress(data, level=1)

    def load_state(self, state: bytes) -> None:
        """Take back what `save_state` returned.

        Raises:
            pickle.UnpicklingError: It is no state of this environment, which stays as it was.
        """
        layers, spaces = self._read(_decompress(state))
        for layer, saved in zip(_layers(self.env), layers, strict=True):
            _set_layer_state(layer, saved)
        for (space, initial), changes in zip(self._spaces, spaces, strict=True):
            vars(space).update(initial | changes)

    def find_fault(self, state: bytes) -> str | None:
        """Why `load_state` would refuse a state, as text: an exception in another process would be lost. None if it would not.

        Args:
            state: What `save_state` returned.
        """
        try:
            self._read(_decompress(state))
        except pickle.UnpicklingError as error:
            return one_line(error)
        return None

    def why_no_state(self) -> str | None:
        """Why the last `save_state` returned None; None if it did not."""
        return self._why_no_state

    def _read(self, data: bytes) -> tuple[list[Any], list[Any]]:
        """Layers and spaces of a state that fits this environment."""
        state = safe_pickle.loads(data, self._packages(), self._live())
        layers = list(_layers(self.env))
        if not (type(state) is dict and [type(state.get(key)) for key in ("layers", "spaces")] == [list, list]):
            raise pickle.UnpicklingError("not a state of an environment")
        if (len(layers), len(self._spaces)) != (len(state["layers"]), len(state["spaces"])):
            raise pickle.UnpicklingError("the state of an environment with other wrappers or spaces")
        for layer, saved in zip(layers, state["layers"], strict=True):
            _check_layer_state(layer, saved)
        for (_, initial), changes in zip(self._spaces, state["spaces"], strict=True):
            if type(changes) is not dict or not initial.keys() >= changes.keys():
                raise pickle.UnpicklingError("the state of another space")
        return state["layers"], state["spaces"]

    def _packages(self) -> set[str]:
        """Top-level packages that define the layers below."""
        return {"gymnasium"} | {type(layer).__module__.partition(".")[0] for layer in _layers(self.env)}

    def _live(self) -> dict[str, Any]:
        """The parts of the environment that are no part of its state but that this may point to."""
        live: dict[str, Any] = {"": self}
        for index, layer in enumerate(_layers(self.env)):
            live[str(index)] = layer
            values = {name: vars(layer).get(name) for name in (_FIXED | _special(layer)) - {"env"}}
            live |= {f"{index}.{name}": value for name, value in values.items() if value is not None}
        return live | {f"space {index}": space for index, (space, _) in enumerate(self._spaces)}

    def _changes_of_spaces(self) -> list[dict[str, Any]]:
        """Generators, which change with every sample, and attributes that are no longer those of the construction."""
        return [
            {
                name: now
                for name, now in vars(space).items()
                if name in initial and (isinstance(now, _GENERATORS) or now is not initial[name])
            }
            for space, initial in self._spaces
        ]

    def _explain(self, error: Exception) -> str:
        """Name the attribute that cannot be saved, if it is one by itself."""
        for layer in _layers(self.env):
            for name, value in _layer_attributes(layer).items():
                try:
                    safe_pickle.loads(safe_pickle.dumps(value, self._live()), self._packages(), self._live())
                except Exception as own_error:
                    return f"attribute {name!r} of {type(layer).__name__}: {one_line(own_error)}"
        return one_line(error)


def capture(venv: VecEnv) -> dict[str, Any] | None:
    """State of a vectorized environment and its wrappers, or None if an environment has none.

    Args:
        venv: Its environments are `Resumable`.
    """
    states = venv.env_method("save_state")
    if any(state is None for state in states):
        return None
    wrappers = []
    for wrapper in _wrappers(venv):
        if isinstance(wrapper, VecNormalize):
            # VecNormalize leaves the discounted returns out of its own pickle.
            wrappers.append({"returns": wrapper.returns.copy()})
        elif isinstance(wrapper, VecFrameStack):
            wrappers.append({"stacked": _stacked(wrapper.stacked_obs)})
        else:
            wrappers.append({})
    return {"environments": states, "wrappers": wrappers}


def why_no_state(venv: VecEnv) -> str | None:
    """Why the last `capture` returned None, in words; None if it did not.

    Args:
        venv: Its environments are `Resumable`.
    """
    return next((reason for reason in venv.env_method("why_no_state") if reason is not None), None)


def restore(venv: VecEnv, state: dict[str, Any]) -> None:
    """Take back what `capture` returned; the statistics of VecNormalize are not part of it.

    Args:
        venv: Its environments are `Resumable`.
        state: For as many environments.

    Raises:
        ConfigError: It is the state of other environments, or was tampered with.
    """
    for index, saved in enumerate(state["environments"]):
        (fault,) = venv.env_method("find_fault", saved, indices=[index])
        if fault is not None:
            raise ConfigError(f"the checkpoint's state of environment {index} cannot be read: {fault}; start a new run")
    for index, saved in enumerate(state["environments"]):
        venv.env_method("load_state", saved, indices=[index])
    for wrapper, saved in zip(_wrappers(venv), state["wrappers"], strict=True):
        if isinstance(wrapper, VecNormalize):
            wrapper.returns = saved["returns"].copy()
        elif isinstance(wrapper, VecFrameStack):
            _set_stacked(wrapper.stacked_obs, saved["stacked"])


def _wrappers(venv: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv


def _stacked(stack: StackedObservations[Any]) -> Any:
    inner = getattr(stack, "sub_stacked_observations", None)
    return {key: _stacked(value) for key, value in inner.items()} if inner else np.array(stack.stacked_obs)


def _set_stacked(stack: StackedObservations[Any], saved: Any) -> None:
    if isinstance(saved, dict):
        for key, value in saved.items():
            _set_stacked(stack.sub_stacked_observations[key], value)
    else:
        stack.stacked_obs[:] = saved


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _find_spaces(env: gym.Env[Any, Any]) -> list[gym.Space[Any]]:
    """The spaces among the attributes of all layers and their classes, and the spaces that these are made of, each once."""
    found: list[gym.Space[Any]] = []
    seen: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if not isinstance(value, (gym.Space, dict, list, tuple)) or id(value) in seen:
            return
        seen[id(value)] = value
        if isinstance(value, gym.Space):
            found.append(value)
            visit(vars(value))
        else:
            for part in list(value.values()) if isinstance(value, dict) else value:
                visit(part)

    for layer in _layers(env):
        for value in (*vars(layer).values(), getattr(layer, "observation_space", None), getattr(layer, "action_space", None)):
            if isinstance(value, gym.Space):
                visit(value)
    return found


def _layer_attributes(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    own = _FIXED | _special(layer)
    return {name: value for name, value in vars(layer).items() if name not in own}


def _layer_state(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    if any(isinstance(value, MemberDescriptorType) for base in type(layer).__mro__ for value in vars(base).values()):
        raise pickle.PicklingError(f"{type(layer).__name__} has __slots__, which are not saved")
    state: dict[str, Any] = {"attributes": _layer_attributes(layer)}
    if _is_arcade(layer):
        state["arcade"] = layer.ale.cloneState(include_rng=True)  # type: ignore[attr-defined]
    elif _is_mujoco(layer):
        state["mujoco"] = copy.copy(layer.data)  # type: ignore[attr-defined]  # the data itself would be a reference to it
    return state


def _check_layer_state(layer: gym.Env[Any, Any], state: Any) -> None:
    simulator = {"arcade"} if _is_arcade(layer) else {"mujoco"} if _is_mujoco(layer) else set()
    if not (type(state) is dict and state.keys() == {"attributes"} | simulator and type(state["attributes"]) is dict):
        raise pickle.UnpicklingError(f"not a state of {type(layer).__name__}")
    attributes = state["attributes"]
    own = _FIXED | _special(layer)
    for name in attributes:
        if type(name) is not str or name in own or (instances.is_method(type(layer), name) and name not in vars(layer)):
            raise pickle.UnpicklingError(f"{name!r} is no attribute of {type(layer).__name__}")


def _set_layer_state(layer: gym.Env[Any, Any], state: dict[str, Any]) -> None:
    for name in _layer_attributes(layer).keys() - state["attributes"].keys():
        del vars(layer)[name]
    vars(layer).update(state["attributes"])
    if _is_arcade(layer):
        layer.ale.restoreState(state["arcade"])  # type: ignore[attr-defined]
    elif _is_mujoco(layer):
        # Not imported at the top: only an environment that has loaded it already comes here.
        importlib.import_module("mujoco").mj_copyData(layer.data, layer.model, state["mujoco"])  # type: ignore[attr-defined]


def _special(layer: gym.Env[Any, Any]) -> frozenset[str]:
    return _ARCADE if _is_arcade(layer) else _MUJOCO if _is_mujoco(layer) else frozenset()


def _is_arcade(layer: gym.Env[Any, Any]) -> bool:
    return hasattr(layer, "ale") and hasattr(layer.ale, "cloneState") and not isinstance(layer, gym.Wrapper)


def _is_mujoco(layer: gym.Env[Any, Any]) -> bool:
    return not isinstance(layer, gym.Wrapper) and type(vars(layer).get("data")).__name__ == "MjData"


def _decompress(state: bytes) -> bytes:
    try:
        return zlib.decompress(state)
    except (zlib.error, TypeError) as error:
        raise pickle.UnpicklingError(f"not a state of an environment: {error}") from error
