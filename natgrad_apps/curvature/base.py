"""The contract of a curvature approximation.

A curvature is a frozen dataclass of hyperparameters; what it learns lives in `State`. With ``F`` the Fisher block of a
layer and ``F_d`` its damped form, every application is served by four products: ``F_d^-1 v`` (each optimizer step),
``F_d v`` and ``v^T F v`` (trust regions), ``F_d^-1/2 v`` and ``logdet F_d`` (posterior samples and entropy).

Methods take one block at a time except `refresh`, which sees all blocks that are due, so that equal-sized factorizations run as one batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, check_fraction
from natgrad_apps.statistics.moments import Statistics
from natgrad_apps.types import BlockSpec, DampingValue, State


@dataclass(frozen=True)
class Curvature(ABC):
    """Base class of the approximations.

    Attributes:
        decay: Weight of the old value in the running averages, at most. The ``t``-th batch has the weight ``max(1 - decay, 1/t)``, so early
            averages are plain means (Martens & Grosse 2015, section 5).
        averages_over_ranks: Whether the moments of parts of a batch, measured by separate processes, may be averaged; not so if they are
            no means, or refer to a basis of their own batch.
    """

    averages_over_ranks: ClassVar[bool] = True

    decay: float = 0.95

    def __post_init__(self) -> None:
        check_fraction("decay", self.decay)

    def init(self, spec: BlockSpec) -> State:
        """An empty state: zero moments and no cache; the moments are allocated by the first batch."""
        return State(spec=spec, count=torch.zeros((), dtype=spec.dtype, device=spec.device))

    @abstractmethod
    def measure(self, state: State, statistics: Statistics) -> dict[str, Tensor]:
        """Moments of one batch, by name. They are means over terms, so batches combine as weighted means."""

    def combine(self, first: dict[str, Tensor], second: dict[str, Tensor], share: float | Tensor) -> dict[str, Tensor]:
        """Moments of two batches as one, `share` being the first one's part of the terms. Override for moments that are no means."""
        return {name: value * share + second[name] * (1 - share) for name, value in first.items()}

    def finite(self, moments: dict[str, Tensor]) -> Tensor:
        """Whether the moments are finite, as a 0-d tensor. Override where a part of them bounds the rest."""
        return torch.stack([m.sum() for m in moments.values()]).sum().isfinite()

    def accumulate(self, state: State, moments: dict[str, Tensor], accept: Tensor | None = None) -> None:
        """Fold the moments of a batch into the running averages, in place: ``m <- m + max(1 - decay, 1/t) (batch - m)``.

        Args:
            state: The state to change.
            moments: From `measure`.
            accept: A 0-d boolean tensor; where it is false nothing changes. None means true, and saves a pass over the moments.
        """
        state.count.add_(1 if accept is None else accept)
        weight = (1.0 / state.count.clamp_min(1.0)).clamp_min(1.0 - self.decay)
        for name, batch in moments.items():
            old = state.moments.get(name)
            if old is None:
                state.moments[name] = batch if accept is None else torch.where(accept, batch, torch.zeros_like(batch))
            else:
                old.lerp_(batch if accept is None else torch.where(accept, batch, old), weight.to(old.dtype))

    @abstractmethod
    def refresh(self, states: Sequence[State], damping: DampingValue) -> None:
        """Recompute the caches of these states from their moments, at this damping.

        Raises:
            NumericalError: A factorization failed even in float64 with jitter.
        """

    @abstractmethod
    def multiply_power(self, state: State, v: Tensor, power: float) -> Tensor:
        """``F_d^power v`` for ``v: [*K, d_out, d_in]``; powers -1, -1/2, 1/2 and 1.

        The inverse is that of the last refresh. ``F_d`` is a matrix power in the symmetric sense, so ``F_d^-1/2 F_d^-1/2 = F_d^-1``.
        """

    @abstractmethod
    def quadratic(self, state: State, v: Tensor) -> Tensor:
        """``v^T F v`` for the current, *undamped* ``F``, a 0-d tensor."""

    @abstractmethod
    def logdet(self, state: State) -> Tensor:
        """``log det F_d`` in nats, a 0-d tensor."""

    @abstractmethod
    def eigenvalue_range(self, state: State) -> tuple[Tensor, Tensor]:
        """Smallest and largest eigenvalue of the undamped ``F``, 0-d tensors. For diagnostics; may cost as much as a refresh."""

    def to_dense(self, state: State) -> Tensor:
        """The damped block ``F_d``, ``[n, n]`` with ``n`` the number of weights in row-major order; for tests and small layers."""
        size = math.prod(state.spec.shape)
        eye = torch.eye(size, dtype=state.spec.dtype, device=state.spec.device)
        rows = [self.multiply_power(state, row.reshape(state.spec.shape), 1.0).flatten() for row in eye]
        return torch.stack(rows)


def require_cache(state: State, name: str) -> Tensor:
    """An entry of the cache.

    Raises:
        ConfigError: The state was never refreshed.
    """
    if name not in state.cache:
        raise ConfigError(f"block {state.spec.name!r} has no {name!r} yet; observe a batch and call update() before multiplying")
    return state.cache[name]
