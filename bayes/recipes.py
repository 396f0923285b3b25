"""Methods by name: ``noisy_kfac`` is `NoisyKFAC`. Whatever `natgrad_apps.bayes` offers is found by itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

import natgrad_apps.bayes as package
from natgrad_apps import registry, steps
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.steps.base import StepRule
from natgrad_apps.steps.kl_trust_region import KLTrustRegion

LEARNING_RATES = {"vadam": 0.01, "vprop": 0.01, "noisy_kfac": 0.05, "noisy_ekfac": 0.05, "noisy_adam": 0.05}
DEFAULT_LR = 0.1
"""First learning rates for standardized tables, where none is given; chosen with the preset ``uci``, see docs/bayes.md."""
DEFAULTS: Mapping[str, Any] = {"damping": 1e-3, "step": KLTrustRegion(1e-3)}
"""Extrinsic damping and bound of a step, where none is given and the method has one. Without them a unit that few training rows switch on
can take a step of up to ``lr N / prior_precision`` times its gradient: noisy K-FAC then diverged on UCI power and protein, see
docs/bayes.md."""


def methods() -> dict[str, type[Method]]:
    """Public methods by name."""
    found = {name: getattr(package, name) for name in package.__all__}
    return {
        _snake(name): value
        for name, value in sorted(found.items())
        if inspect.isclass(value) and issubclass(value, Method) and value is not Method
    }


def check_method(name: str, arguments: Mapping[str, Any]) -> None:
    """Build a method and forget it.

    Raises:
        ConfigError: There is no such method, or it has no such argument, or a value is not legal.
    """
    build_method(name, arguments)


def build_method(name: str, arguments: Mapping[str, Any]) -> Method:
    """A method with its hyperparameters.

    Args:
        name: A key of `methods`.
        arguments: Hyperparameters by name, ``step`` also as a mapping such as ``{"name": "kl_clip", "kl_clip": 0.01}``; the others keep
            their defaults, but for the learning rate and `DEFAULTS`.

    Raises:
        ConfigError: There is no such method, or it has no such argument, or a value is not legal.
    """
    known = methods()
    if name not in known:
        raise unknown_name("method", name, known)
    cls = known[name]
    assert dataclasses.is_dataclass(cls)
    legal = [f.name for f in dataclasses.fields(cls) if f.init]
    for argument in arguments:
        if argument not in legal:
            raise unknown_name(f"argument of {name}", argument, legal)
    try:
        defaults = {"lr": LEARNING_RATES.get(name, DEFAULT_LR), **{key: value for key, value in DEFAULTS.items() if key in legal}}
        chosen = {**defaults, **arguments}
        if "step" in chosen:
            chosen["step"] = registry.build(steps, StepRule, chosen["step"], "step")
        built = cls(**chosen)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built with {dict(arguments)}: {error}") from error
    assert isinstance(built, Method)
    return built


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
