"""One file a step rule; the folder is scanned."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from natgrad_apps.registry import build as _build
from natgrad_apps.steps.base import StepRule

__all__ = ["StepRule", "build"]


def build(spec: StepRule | str | Mapping[str, Any]) -> StepRule:
    """A step rule from an object, a name, or a mapping with ``name`` and fields."""
    return _build(sys.modules[__name__], StepRule, spec, "step")  # type: ignore[type-abstract]
