"""The diagonal of the Fisher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.curvature.base import Curvature, require_cache
from natgrad_apps.statistics.moments import Statistics
from natgrad_apps.types import DampingValue, State


@dataclass(frozen=True)
class Diagonal(Curvature):
    r"""Diagonal Fisher: true per-unit squares, not the square of a batch gradient.

    ``F ~ diag(f)``, ``f_ij = 1/M sum_n (sum_s g_nsi a_nsj)^2``; damped ``F_d = diag(f + lambda)``.

    Shapes: moment ``diagonal: [*K, d_out, d_in]``.
    Cost: accumulate ``C N S d_out d_in``, refresh none; memory ``d_out d_in``.
    Departures from the paper: none; Adam-like methods use the square of the batch mean instead, which is biased by the batch size.
    Reference: Becker & LeCun, Improving the convergence of back-propagation learning with second order methods, 1988;
    for the Fisher, Amari, Natural gradient works efficiently in learning, Neural Computation 1998.
    """

    def measure(self, state: State, statistics: Statistics) -> dict[str, Tensor]:
        """``f`` of this batch."""
        del state
        return {"diagonal": statistics.squared_gradient()}

    def refresh(self, states: Sequence[State], damping: DampingValue) -> None:
        """Take over the damping; there is nothing to factorize, so products always use the newest diagonal."""
        for state in states:
            state.cache["damping"] = damping.value.to(state.spec.dtype, copy=True)

    def multiply_power(self, state: State, v: Tensor, power: float) -> Tensor:
        """``(f + lambda)^power v``."""
        damped = _damped(state)
        return v / damped if power == -1 else v * damped**power

    def quadratic(self, state: State, v: Tensor) -> Tensor:
        """``sum_ij f_ij v_ij^2``."""
        return (state.moments["diagonal"] * v.square()).sum()

    def logdet(self, state: State) -> Tensor:
        """``sum_ij log(f_ij + lambda)``."""
        return _damped(state).log().sum()

    def eigenvalue_range(self, state: State) -> tuple[Tensor, Tensor]:
        """Smallest and largest entry."""
        low, high = torch.aminmax(state.moments["diagonal"])
        return low, high


def _damped(state: State) -> Tensor:
    return require_cache(state, "damping") + state.moments["diagonal"]
