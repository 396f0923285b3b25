"""EKFAC: the eigenbasis of K-FAC with the diagonal that is best in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from natgrad_apps.curvature.base import require_cache
from natgrad_apps.curvature.kfac import KFAC, cached, in_eigenbasis, refresh_eigenbasis
from natgrad_apps.linalg.blocks import BlockDiagonal, sandwich
from natgrad_apps.linalg.spd import eigh_many
from natgrad_apps.statistics.moments import LayerStatistics, Statistics
from natgrad_apps.types import DampingValue, State


@dataclass(frozen=True)
class EKFAC(KFAC):
    r"""Eigenvalue-corrected K-FAC.

    ``F ~ (Q_G (x) Q_A) diag(s) (Q_G (x) Q_A)^T`` with ``Q_A, Q_G`` the eigenvectors of the K-FAC factors and ``s = 1/M
    sum_n (Q_G^T g_n a_n^T Q_A)^2`` (George et al. 2018, equation 6), the diagonal nearest to ``F`` in Frobenius norm in
    that basis; damped ``F_d = ... diag(s + lambda) ...``, so every damping is exact and ``factored`` makes no
    difference.

    When the basis changes, the running average of ``s`` is carried over by the same projection: the diagonal of the old
    approximation in the new basis, ``s_new = (R_G * R_G) s (R_A * R_A)^T`` with ``R = Q_new^T Q_old``.

    Shapes: moments ``A``, ``G`` as in K-FAC, ``s: [*K, d_out, d_in]``.
    Cost: accumulate as K-FAC plus ``N S d_in^2 + C N S d_out (d_in + d_out)``; refresh about ``10 (d_in^3 + d_out^3)``; apply
    ``4 d_out d_in (d_out + d_in)``; memory as K-FAC plus ``d_out d_in``.
    Departures from the paper: the sampled Fisher by default, where the paper's experiments use the empirical one.
    Reference: George, Laurent, Bouthillier, Ballas & Vincent, Fast approximate natural gradient descent in a
    Kronecker-factored eigenbasis, NeurIPS 2018, arXiv 1806.03884.
    """

    averages_over_ranks: ClassVar[bool] = False

    def measure(self, state: State, statistics: Statistics) -> dict[str, Tensor]:
        """``A``, ``G`` and ``s`` of this batch; before the first refresh the basis is that of the batch itself."""
        assert isinstance(statistics, LayerStatistics)
        moments = super().measure(state, statistics)
        if "vectors_A0" in state.cache:
            a, g = cached(state, "vectors_A"), cached(state, "vectors_G")
        else:
            a, g = (_safe_basis(moments, letter) for letter in "AG")
            for letter, basis in (("A", a), ("G", g)):
                state.cache |= {f"vectors_{letter}{i}": vectors for i, vectors in enumerate(basis.blocks)}
        moments["s"] = statistics.squared_gradient(left=g, right=a)
        return moments

    def finite(self, moments: dict[str, Tensor]) -> Tensor:
        """Traces of the factors, and the sum of ``s``, whose squares may overflow first."""
        return super().finite({n: m for n, m in moments.items() if n != "s"}) & moments["s"].sum().isfinite()

    def refresh(self, states: Sequence[State], damping: DampingValue) -> None:
        """New eigenvectors; ``s`` is carried into the new basis."""
        old = [(cached(state, "vectors_A"), cached(state, "vectors_G")) for state in states]
        refresh_eigenbasis(states)
        for state, (old_a, old_g) in zip(states, old, strict=True):
            squares_a = _squared_rotation(cached(state, "vectors_A"), old_a)
            squares_g = _squared_rotation(cached(state, "vectors_G"), old_g)
            state.moments["s"] = sandwich(squares_g, state.moments["s"], squares_a)
            state.cache = {n: v for n, v in state.cache.items() if not n.startswith("values_")}
            state.cache["damping"] = damping.value.to(state.spec.dtype, copy=True)

    def multiply_power(self, state: State, v: Tensor, power: float) -> Tensor:
        """Four products."""
        return in_eigenbasis(state, v, (state.moments["s"] + require_cache(state, "damping")).pow(power))

    def quadratic(self, state: State, v: Tensor) -> Tensor:
        """``sum_ij s_ij (Q_G^T v Q_A)_ij^2``."""
        require_cache(state, "vectors_A0")
        rotated = sandwich(cached(state, "vectors_G").transposed, v, cached(state, "vectors_A").transposed)
        return (state.moments["s"] * rotated.square()).sum()

    def logdet(self, state: State) -> Tensor:
        """``sum log(s + lambda)``."""
        return (state.moments["s"] + require_cache(state, "damping")).log().sum()

    def eigenvalue_range(self, state: State) -> tuple[Tensor, Tensor]:
        """Smallest and largest ``s``."""
        low, high = torch.aminmax(state.moments["s"])
        return low, high


def _safe_basis(moments: dict[str, Tensor], letter: str) -> BlockDiagonal:
    """Eigenvectors of the batch's factor; the identity where it is not finite (such a batch is rejected later)."""
    blocks = []
    for name, moment in moments.items():
        if name[0] == letter and name[1:].isdigit():
            eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device).expand_as(moment)
            blocks.append(torch.where(moment.isfinite().all(), moment, eye))
    return BlockDiagonal([vectors for _, vectors in eigh_many(blocks)])


def _squared_rotation(new: BlockDiagonal, old: BlockDiagonal) -> BlockDiagonal:
    """Squares of ``Q_new^T Q_old``, block by block."""
    return BlockDiagonal([(n.mT @ o).square_() for n, o in zip(new.blocks, old.blocks, strict=True)])
