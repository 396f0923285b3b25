"""One file a damping rule; the folder is scanned."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from natgrad_apps.damping.base import Damping
from natgrad_apps.damping.tikhonov import Tikhonov
from natgrad_apps.registry import build as _build

__all__ = ["Damping", "build"]


def build(spec: Damping | float | str | Mapping[str, Any]) -> Damping:
    """A damping rule from an object, a number (`Tikhonov`), a name, or a mapping with ``name`` and fields."""
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        return Tikhonov(float(spec))
    return _build(sys.modules[__name__], Damping, spec, "damping")
