"""What the arguments of an agent must be."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, NoReturn

from natgrad_apps.agents.options import DEFAULTS, NaturalGradientOptions
from natgrad_apps.errors import ConfigError, check_finite, check_positive


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
    if not isinstance(given["normalize_advantage"], bool):
        raise ConfigError(f"normalize_advantage must be True or False, got {given['normalize_advantage']!r}")
    for name in ("n_steps", "gamma", "max_grad_norm"):
        if given[name] is not None:
            check_positive(name, given[name])
    check_finite("ent_coef", given["ent_coef"])
    for name in ("vf_coef", "gae_lambda"):
        check_positive(name, given[name], allow_zero=True)
    for name in ("gamma", "gae_lambda"):
        if given[name] > 1:
            raise ConfigError(f"{name} must be at most 1, got {given[name]!r}")


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
