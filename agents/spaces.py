"""Observations that can be learned from: what is legal is said before anything is built on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymnasium import spaces

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


def _parts(space: spaces.Space[Any]) -> Iterator[tuple[str, spaces.Space[Any]]]:
    """The spaces of a dictionary, or the only one, each with its place as text."""
    if isinstance(space, spaces.Dict):
        yield from ((f" under {key!r}", part) for key, part in space.items())
    else:
        yield "", space
