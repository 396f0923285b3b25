"""Names of an agent's objectives, for a value loss that has its own step rule."""

from __future__ import annotations

ACTOR, CRITIC = "actor", "critic"
