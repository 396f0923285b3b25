"""One file an approximation; the folder is scanned, nothing is listed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from natgrad_apps.curvature.base import Curvature
from natgrad_apps.registry import available as _available
from natgrad_apps.registry import build as _build

__all__ = ["Curvature", "available", "build"]


def available() -> dict[str, type[Curvature]]:
    """The approximations by name."""
    return _available(sys.modules[__name__], Curvature)  # type: ignore[type-abstract]


def build(spec: Curvature | str | Mapping[str, Any]) -> Curvature:
    """A curvature from an object, a name, or a mapping with ``name`` and fields."""
    return _build(sys.modules[__name__], Curvature, spec, "curvature")  # type: ignore[type-abstract]
