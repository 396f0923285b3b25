"""What the arguments of an agent must be."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, NoReturn

from gymnasium import spaces

from natgrad_apps.agents.options import DEFAULTS, NaturalGradientOptions
from natgrad_apps.errors import ConfigError, check_positive


def check_values(given: Mapping[str, Any]) -> None:
    """Raise unless the numbers are legal and the policy's Fisher is known.

    Raises:
        ConfigError: They are not.
    """
    if given["use_sde"]:
        raise ConfigError(
            "ACKTR does not support use_sde=True: with state-dependent exploration the variance of the policy depends on its features, and "
            "that Fisher is not estimated here; use use_sde=False (independent Gaussian noise)"
        )
    for name in ("n_steps", "gamma", "max_grad_norm"):
        if given[name] is not None:
            check_positive(name, given[name])
    for name in ("ent_coef", "vf_coef", "gae_lambda"):
        check_positive(name, given[name], allow_zero=True)
    for name in ("gamma", "gae_lambda"):
        if given[name] > 1:
            raise ConfigError(f"{name} must be at most 1, got {given[name]!r}")


def check_action_space(space: spaces.Space[Any]) -> None:
    """Raise unless there is something to choose.

    Raises:
        ConfigError: There is one action only.
    """
    choices = [space.n] if isinstance(space, spaces.Discrete) else space.nvec.flatten() if isinstance(space, spaces.MultiDiscrete) else [2]
    if max(choices) < 2:
        raise ConfigError(f"the action space {space} has a single action, so there is no policy to learn")


def reject(name: str) -> NoReturn:
    """Raise the error for an unknown argument.

    Raises:
        TypeError: Always.
    """
    options = [f.name for f in dataclasses.fields(NaturalGradientOptions)]
    if name in options:
        raise TypeError(f"ACKTR got an unexpected argument {name!r}; it belongs to natural_gradient={{{name!r}: ...}}")
    legal = [n for n in DEFAULTS if not n.startswith("_")]
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise TypeError(f"ACKTR got an unexpected argument {name!r}{hint}; legal: policy, env, natural_gradient, {', '.join(legal)}")
