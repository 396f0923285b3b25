"""The exact Fisher block of a layer, as a dense matrix: the reference for small networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.curvature.base import Curvature, require_cache
from natgrad_apps.errors import ConfigError
from natgrad_apps.linalg.spd import cholesky_many, eigh_many
from natgrad_apps.statistics.moments import LayerStatistics, Statistics
from natgrad_apps.types import BlockSpec, DampingValue, State


@dataclass(frozen=True)
class Exact(Curvature):
    r"""Dense Fisher block of each layer.

    ``F = 1/M sum_n vec(sum_s g_ns a_ns^T) vec(...)^T`` with row-major ``vec``; damped ``F_d = F + lambda I``.

    Shapes: moment ``F: [*K, D, D]`` with ``D = d_out d_in``.
    Cost: accumulate ``C N D^2``, refresh ``D^3 / 3``, apply ``2 D^2``; memory ``2 D^2``.
    Departures from the paper: blocks between layers are dropped.
    Reference: Amari, Natural gradient works efficiently in learning, Neural Computation 1998.

    Attributes:
        decay: See `Curvature`.
        max_size: Largest ``D`` that is accepted; beyond it the memory of ``D^2`` entries is a mistake more often than a wish.
    """

    max_size: int = 8192

    def init(self, spec: BlockSpec) -> State:
        """An empty state.

        Raises:
            ConfigError: The block is larger than `max_size`.
        """
        size = spec.d_out * spec.d_in
        if size > self.max_size:
            raise ConfigError(
                f"curvature 'exact' on {spec.name!r} needs a {size} x {size} matrix, above max_size={self.max_size}; "
                "use 'kfac' or raise max_size"
            )
        return super().init(spec)

    def measure(self, state: State, statistics: Statistics) -> dict[str, Tensor]:
        """``F`` of this batch."""
        del state
        assert isinstance(statistics, LayerStatistics)
        return {"F": statistics.dense()}

    def refresh(self, states: Sequence[State], damping: DampingValue) -> None:
        """Cholesky factors of ``F + lambda I``."""
        damped = [_shift(state.moments["F"], damping.value) for state in states]
        for state, factor in zip(states, cholesky_many(damped), strict=True):
            state.cache["cholesky"] = factor
            state.cache["damping"] = damping.value.to(state.spec.dtype, copy=True)

    def multiply_power(self, state: State, v: Tensor, power: float) -> Tensor:
        """Triangular solves for -1, a product for 1, an eigendecomposition for other powers."""
        factor = require_cache(state, "cholesky")
        column = v.flatten(-2, -1).unsqueeze(-1)
        if power == -1:
            result = torch.cholesky_solve(column, factor)
        elif power == 1:
            result = factor @ (factor.mT @ column)
        else:
            [(values, vectors)] = eigh_many([_symmetric(factor @ factor.mT)])
            result = vectors @ (values.pow(power).unsqueeze(-1) * (vectors.mT @ column))
        return result.reshape(v.shape)

    def quadratic(self, state: State, v: Tensor) -> Tensor:
        """``vec(v)^T F vec(v)``."""
        column = v.flatten(-2, -1).unsqueeze(-1)
        return (column * (state.moments["F"] @ column)).sum()

    def logdet(self, state: State) -> Tensor:
        """From the Cholesky diagonal."""
        return 2 * require_cache(state, "cholesky").diagonal(dim1=-2, dim2=-1).log().sum()

    def eigenvalue_range(self, state: State) -> tuple[Tensor, Tensor]:
        """By eigenvalues of ``F``."""
        [(values, _)] = eigh_many([state.moments["F"]])
        return values.min(), values.max()


def _shift(matrix: Tensor, value: Tensor) -> Tensor:
    result = matrix.clone()
    result.diagonal(dim1=-2, dim2=-1).add_(value)
    return result


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
