"""Reinforcement-learning agents with natural gradients."""

from __future__ import annotations

from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.networks import ACKTRCnn, ACKTRCnnPolicy
from natgrad_apps.agents.options import NaturalGradientOptions, OnPolicyArguments

__all__ = ["ACKTR", "ACKTRCnn", "ACKTRCnnPolicy", "NaturalGradientOptions", "OnPolicyArguments"]
