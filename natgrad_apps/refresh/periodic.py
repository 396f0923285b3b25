"""Refresh every block at once, or a few blocks at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from natgrad_apps.refresh.base import Refresh


@dataclass(frozen=True)
class Periodic(Refresh):
    """All blocks every ``inverse_period`` steps: the fewest, largest batches of factorizations."""

    def blocks_due(self, step: int, names: Sequence[str]) -> Sequence[str]:
        """All or none."""
        return names if step % self.inverse_period == 0 else ()


@dataclass(frozen=True)
class Staggered(Refresh):
    """A few blocks at each step.

    Block ``i`` of ``n`` is due at the steps ``k inverse_period + floor(i inverse_period / n)``: the same work, spread
    evenly, so that no step is slow.
    """

    def blocks_due(self, step: int, names: Sequence[str]) -> Sequence[str]:
        """The blocks of this step's slot."""
        slot, count = step % self.inverse_period, len(names)
        return [name for i, name in enumerate(names) if i * self.inverse_period // count == slot]
