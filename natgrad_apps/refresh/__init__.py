"""One file a family of refresh rules; the folder is scanned."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from natgrad_apps.refresh.base import Refresh
from natgrad_apps.registry import build as _build

__all__ = ["Refresh", "build"]


def build(spec: Refresh | str | Mapping[str, Any]) -> Refresh:
    """A refresh rule from an object, a name, or a mapping with ``name`` and fields."""
    return _build(sys.modules[__name__], Refresh, spec, "refresh")  # type: ignore[type-abstract]
