"""Spaces of observations and actions that can be learned from: what is legal is said before anything is built on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from natgrad_apps.errors import ConfigError

LEGAL = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
    """Raise unless there is something to choose, and choices are counted as SB3's distributions and one-hot codes count them.

    Raises:
        ConfigError: There is one action only, choices do not begin at 0, or they are no vector.
    """
    most = actions.n if isinstance(actions, spaces.Discrete) else actions.nvec.max() if isinstance(actions, spaces.MultiDiscrete) else 2
    if most < 2:
        raise ConfigError(f"the action space {actions} has a single action, so there is no policy to learn")
    _check_counts("actions", actions, "TransformAction")
    for name, part in _parts(observations):
        _check_counts(f"observations{name}", part, "TransformObservation")


def _check_counts(what: str, space: spaces.Space[Any], wrapper: str) -> None:
    wrapper = f"gymnasium.wrappers.{wrapper}"
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        raise ConfigError(f"{what} are {space}, of {space.nvec.ndim} dimensions; legal: a vector of choices; flatten them with {wrapper}")
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start):
        raise ConfigError(f"{what} are {space}, which does not begin at 0 as stable-baselines3 takes it to; shift them with {wrapper}")


def check_observations(space: spaces.Space[Any], env_id: str) -> None:
    """Raise unless an environment's observations are of a kind that networks can read.

    Args:
        space: Of the observations.
        env_id: Of the environment.

    Raises:
        ConfigError: They, or a part of a dictionary, are of another kind.
    """
    for name, part in _parts(space):
        if not isinstance(part, LEGAL):
            wrapper = "FlattenObservation" if isinstance(part, (spaces.Dict, spaces.Tuple)) else "TransformObservation"
            legal = ", ".join(kind.__name__ for kind in LEGAL)
            raise ConfigError(
                f"environment {env_id!r} has observations {part}{name}; legal are {legal}, or a Dict of these; wrap it where it is "
                f"registered, for instance in gymnasium.wrappers.{wrapper}"
            )


def check_arrays(space: spaces.Space[Any], setting: str) -> None:
    """Raise unless observations are arrays, or dictionaries of nothing else.

    Args:
        space: Of the observations.
        setting: Key of the configuration that needs it.

    Raises:
        ConfigError: They, or a part of a dictionary, are of another kind.
    """
    for name, part in _parts(space):
        if not isinstance(part, spaces.Box):
            raise ConfigError(f"{setting} needs observations that are arrays of numbers (Box), got {part}{name}; leave it out")


def check_policy(space: spaces.Space[Any], policy: str) -> None:
    """Raise unless a policy reads observations of this kind.

    Args:
        space: Of the observations that the agent sees.
        policy: Name of the policy.

    Raises:
        ConfigError: They are no dictionary, or no pixels, but the policy reads such.
    """
    if "MultiInput" in policy and not isinstance(space, spaces.Dict):
        raise ConfigError(
            f"agent.policy {policy!r} reads dictionaries of observations, got {space}; use {policy.replace('MultiInput', 'Mlp')!r}"
        )
    if "Cnn" in policy and not isinstance(space, spaces.Dict) and not is_image_space(space):
        raise ConfigError(
            f"agent.policy {policy!r} reads pixels, uint8 from 0 to 255 in three dimensions, and scales them itself, got {space}; give "
            "it such pixels where the environment is registered, with environment.normalize_observations false; for vectors use "
            f"{policy.replace('Cnn', 'Mlp')!r}"
        )


def has_pixels(space: spaces.Space[Any]) -> bool:
    """Whether a part of a dictionary of observations goes through a CNN."""
    return isinstance(space, spaces.Dict) and any(is_image_space(part) for part in space.values())


def _parts(space: spaces.Space[Any]) -> Iterator[tuple[str, spaces.Space[Any]]]:
    """The spaces of a dictionary, or the only one, each with its place as text."""
    if isinstance(space, spaces.Dict):
        yield from ((f" under {key!r}", part) for key, part in space.items())
    else:
        yield "", space
