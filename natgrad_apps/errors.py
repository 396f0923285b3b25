"""Error and warning types, and helpers that make their messages say what was given, what is legal and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class NatgradError(Exception):
    """Base class of this package's own errors."""


class ConfigError(NatgradError, ValueError):
    """A configuration, name or argument is not legal."""


class ShapeError(NatgradError, ValueError):
    """A tensor does not have the shape that is needed."""


class CaptureError(NatgradError, RuntimeError):
    """`capture`, `observe` and `step` were used in an order that gives no statistics."""


class UnsupportedLayerError(NatgradError, TypeError):
    """`strict=True` met a parameter that no layer adapter handles."""


class NumericalError(NatgradError, ArithmeticError):
    """A factorization failed even in float64 with jitter."""


class UnsupportedLayerWarning(UserWarning):
    """Some parameters use the diagonal fallback; the message lists them."""


class NonFiniteWarning(RuntimeWarning):
    """A step was skipped because a gradient or statistic was NaN or infinite."""


class PerformanceWarning(UserWarning):
    """A slow, generic code path is used where a fast one could be written."""


def unknown_name(kind: str, given: str, available: Iterable[str]) -> ConfigError:
    """Build the error for a name that is not in a registry, with the nearest legal name.

    Args:
        kind: What the name should name, such as ``"curvature"``.
        given: The name that was given.
        available: The legal names.
    """
    legal = sorted(available)
    near = difflib.get_close_matches(given, legal, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {given!r}; available: {', '.join(legal)}{hint}")


def check_finite(name: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is a finite number."""
    _check_number(name, value)
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value!r}")


def check_positive(name: str, value: float, *, allow_zero: bool = False) -> None:
    """Raise `ConfigError` unless `value` is finite and positive (or zero, where that is legal)."""
    _check_number(name, value)
    legal = value >= 0 if allow_zero else value > 0
    if not legal or not math.isfinite(value):
        bound = ">= 0" if allow_zero else "> 0"
        raise ConfigError(f"{name} must be finite and {bound}, got {value!r}")


def check_fraction(name: str, value: float, *, below_one: bool = True) -> None:
    """Raise `ConfigError` unless `0 <= value < 1` (or `0 < value <= 1` with ``below_one=False``)."""
    _check_number(name, value)
    legal = 0 <= value < 1 if below_one else 0 < value <= 1
    if not legal:
        raise ConfigError(f"{name} must be in {'[0, 1)' if below_one else '(0, 1]'}, got {value!r}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
