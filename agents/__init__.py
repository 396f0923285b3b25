"""Reinforcement-learning agents with natural gradients.

Names are imported when they are first used: Stable-Baselines3 takes seconds, and a help text or a configuration error needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natgrad_apps.agents.acktr import ACKTR
    from natgrad_apps.agents.networks import ACKTRCnn, ACKTRCnnPolicy
    from natgrad_apps.agents.options import NaturalGradientOptions, OnPolicyArguments

__all__ = ["ACKTR", "ACKTRCnn", "ACKTRCnnPolicy", "NaturalGradientOptions", "OnPolicyArguments"]

_HOMES = {
    "ACKTR": "acktr",
    "ACKTRCnn": "networks",
    "ACKTRCnnPolicy": "networks",
    "NaturalGradientOptions": "options",
    "OnPolicyArguments": "options",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
