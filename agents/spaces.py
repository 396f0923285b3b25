"""Observations that can be learned from: what is legal is said before anything is built on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from natgrad_apps.errors import ConfigError

LEGAL = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


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
