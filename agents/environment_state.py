"""States of running environments, so that a resumed run goes on in the middle of its episodes.

Gymnasium has no such notion, and many environments pickle only the arguments of their constructor (`EzPickle`). Here the state of an
environment is the attributes of every wrapper and of the environment itself, with MuJoCo's and the Arcade Learning Environment's simulators
saved by their own functions. An environment that this does not reach (a simulator in C that cannot be pickled) has no state, and resuming
then starts new episodes; `capture` says so by returning None.
"""

from __future__ import annotations

import importlib
import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from natgrad_apps.agents import safe_pickle

# What never changes after construction, or only points to another layer.
_FIXED = frozenset(
    {"env", "spec", "_cached_spec", "metadata", "_metadata", "observation_space", "_observation_space", "_action_space", "action_space"}
)
# Attributes that simulators fill in their own way.
_MUJOCO = frozenset({"model", "data", "mujoco_renderer"})
_ARCADE = frozenset({"ale", "_action_set"})


class Resumable(gym.Wrapper[Any, Any, Any, Any]):
    """Outermost wrapper, which gives an environment its state and takes it back; works through the pipes of `SubprocVecEnv` too."""

    def save_state(self) -> bytes | None:
        """The state of every layer below, or None if some part of it cannot be saved."""
        try:
            state = safe_pickle.dumps([_layer_state(layer) for layer in _layers(self.env)])
            safe_pickle.loads(state, self._packages())  # what could not be read again is no state
            return zlib.compress(state, level=1)
        except (TypeError, AttributeError, pickle.PickleError, NotImplementedError, RecursionError):
            return None

    def load_state(self, state: bytes) -> None:
        """Take back what `save_state` returned."""
        for layer, saved in zip(_layers(self.env), safe_pickle.loads(zlib.decompress(state), self._packages()), strict=True):
            _set_layer_state(layer, saved)

    def _packages(self) -> set[str]:
        """Top-level packages that define the layers below."""
        return {type(layer).__module__.partition(".")[0] for layer in _layers(self.env)}


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


def restore(venv: VecEnv, state: dict[str, Any]) -> None:
    """Take back what `capture` returned; the statistics of VecNormalize are not part of it."""
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


def _layer_state(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    attributes = vars(layer)
    own = _FIXED | _special(layer)
    state: dict[str, Any] = {"attributes": {name: value for name, value in attributes.items() if name not in own}}
    if _is_arcade(layer):
        state["arcade"] = layer.ale.cloneState(include_rng=True)  # type: ignore[attr-defined]
    elif _is_mujoco(layer):
        state["mujoco"] = layer.data  # type: ignore[attr-defined]
    return state


def _set_layer_state(layer: gym.Env[Any, Any], state: dict[str, Any]) -> None:
    vars(layer).update(state["attributes"])
    if "arcade" in state:
        layer.ale.restoreState(state["arcade"])  # type: ignore[attr-defined]
    elif "mujoco" in state:
        # Not imported at the top: only an environment that has loaded it already comes here.
        importlib.import_module("mujoco").mj_copyData(layer.data, layer.model, state["mujoco"])  # type: ignore[attr-defined]


def _special(layer: gym.Env[Any, Any]) -> frozenset[str]:
    return _ARCADE if _is_arcade(layer) else _MUJOCO if _is_mujoco(layer) else frozenset()


def _is_arcade(layer: gym.Env[Any, Any]) -> bool:
    return hasattr(layer, "ale") and hasattr(layer.ale, "cloneState") and not isinstance(layer, gym.Wrapper)


def _is_mujoco(layer: gym.Env[Any, Any]) -> bool:
    return not isinstance(layer, gym.Wrapper) and type(vars(layer).get("data")).__name__ == "MjData"
