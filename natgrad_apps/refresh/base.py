"""The contract of a refresh rule: when statistics are gathered and which blocks are refactorized."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from natgrad_apps.errors import ConfigError


@dataclass(frozen=True)
class Refresh(ABC):
    """When to do the expensive parts.

    Attributes:
        statistics_period: Steps between statistics; on other steps `capture` and `observe` do nothing.
        inverse_period: Steps between refreshes of a block.
    """

    statistics_period: int = 1
    inverse_period: int = 10

    def __post_init__(self) -> None:
        for name in ("statistics_period", "inverse_period"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")

    def statistics_due(self, step: int) -> bool:
        """Whether statistics are gathered at this step (counted from 0)."""
        return step % self.statistics_period == 0

    @abstractmethod
    def blocks_due(self, step: int, names: Sequence[str]) -> Sequence[str]:
        """The blocks to refresh at this step; the caller refreshes every block that has no cache yet in any case."""
