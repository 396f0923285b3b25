"""K-FAC whose input factor is kept as rows where there are fewer rows than columns: nothing of size ``d_in x d_in`` is ever formed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from natgrad_apps.curvature.base import require_cache
from natgrad_apps.curvature.kfac import KFAC, cached, factor, split_damping
from natgrad_apps.linalg.blocks import BlockDiagonal, split
from natgrad_apps.linalg.products import gram, gram_nt, matmul_nt
from natgrad_apps.linalg.spd import cholesky_many, eigh_many, inverse_many
from natgrad_apps.statistics.moments import LayerStatistics, Statistics
from natgrad_apps.types import DampingValue, State

ROWS = "R"


@dataclass(frozen=True)
class GramKFAC(KFAC):
    r"""``F ~ G (x) A`` as `KFAC`, with ``A = R^T R`` and ``R: [n, d_in]`` the batch's inputs times the root of their share.

    With the decomposition ``R R^T = U diag(l) U^T`` of the ``n x n`` Gram matrix and ``B = U^T R`` (so that ``A = B^T B`` and ``B B^T =
    diag(l)``), every power of a damped ``A`` is exact without a ``d_in x d_in`` matrix (Sherman-Morrison-Woodbury; for -1 the bracket is
    ``-1 / (delta (l + delta))``)::

        (A + delta I)^p = delta^p I + B^T diag([(l + delta)^p - delta^p] / l) B

    A layer takes this form when its batch has fewer rows than columns, as wide inputs of a few counted nodes have (140 rows of 1434 columns
    for Cora's public split), and the dense form of `KFAC` otherwise. Rows cannot be averaged over time: in this form ``A`` is that of the
    last batch, which for full batches is all there is, and ``decay`` is for ``G``. Rows that did not change since the last refresh, such
    as the constant inputs of a first layer, are not decomposed again.

    Shapes: moments ``R: [n, d_in]`` instead of ``A``, ``G: [d_out, d_out]``.
    Cost: accumulate ``n d_in + C N S d_out^2``, refresh ``n^2 d_in + 9 n^3 + d_out^3`` (``d_out^3`` for unchanged rows), apply
    ``2 d_out d_in (n + d_out)``; memory ``2 n d_in``.
    Departures from the paper: the time average of ``A``, see above.
    Reference: see `KFAC`; the Gram form as in Ren & Goldfarb, Efficient subsampled Gauss-Newton and natural gradient methods for training
    neural networks, 2019, arXiv 1906.02353.
    """

    averages_over_ranks: ClassVar[bool] = False

    def measure(self, state: State, statistics: Statistics) -> dict[str, Tensor]:
        """``R`` or ``A``, and ``G`` of this batch."""
        assert isinstance(statistics, LayerStatistics)
        if state.spec.lead or statistics.input_count >= state.spec.d_in:
            return super().measure(state, statistics)
        gradients = {name: statistics.gradient_moment(part) for name, part in self.parts(state.spec) if name.startswith("G")}
        return {ROWS: statistics.input_root(), **gradients}

    def combine(self, first: dict[str, Tensor], second: dict[str, Tensor], share: float | Tensor) -> dict[str, Tensor]:
        """Rows of both batches; if one batch has the dense form, so has the sum."""
        if ROWS in first and ROWS in second:
            rows = torch.cat([first[ROWS] * share**0.5, second[ROWS] * (1 - share) ** 0.5])
            mine, theirs = ({k: v for k, v in part.items() if k != ROWS} for part in (first, second))
            return {ROWS: rows, **super().combine(mine, theirs, share)}
        return super().combine(self._dense(first), self._dense(second), share)

    def finite(self, moments: dict[str, Tensor]) -> Tensor:
        """The traces suffice; that of ``A`` is the sum of the squares of the rows."""
        if ROWS not in moments:
            return super().finite(moments)
        rest = {k: v for k, v in moments.items() if k != ROWS}
        return super().finite(rest) & moments[ROWS].square().sum().isfinite()

    def accumulate(self, state: State, moments: dict[str, Tensor], accept: Tensor | None = None) -> None:
        """Average ``G``; the rows replace those of the batch before. A rejected batch on a device waits for it if its form is new."""
        replaced = {k for k in state.moments if k == ROWS or k.startswith("A")}
        forms_agree = ROWS in moments and ROWS in state.moments and moments[ROWS].shape == state.moments[ROWS].shape
        rows = moments.get(ROWS)
        if replaced and accept is not None and (rows is not None or ROWS in state.moments):
            if forms_agree and rows is not None:
                rows = torch.where(accept, rows, state.moments[ROWS])
            elif not bool(accept):
                return
        if replaced and (ROWS in moments) != (ROWS in state.moments):
            for name in replaced:
                del state.moments[name]
        super().accumulate(state, {k: v for k, v in moments.items() if k != ROWS}, accept)
        if rows is not None:
            state.moments[ROWS] = rows if accept is None or replaced else torch.where(accept, rows, torch.zeros_like(rows))

    def refresh(self, states: Sequence[State], damping: DampingValue) -> None:
        """As `KFAC`; in the Gram form, decompose the rows unless they are those of the last refresh."""
        super().refresh([state for state in states if ROWS not in state.moments], damping)
        for state in states:
            if ROWS in state.moments:
                self._refresh_rows(state, damping)

    def _refresh_rows(self, state: State, damping: DampingValue) -> None:
        rows, before = state.moments[ROWS], state.cache
        kept = before.get("rows")
        if kept is not None and kept.shape == rows.shape and (kept is rows or torch.equal(kept, rows)):
            state.cache = {name: before[name] for name in ("rows", "values", "basis")}
        else:
            [(values, vectors)] = eigh_many([gram_nt(rows)])
            state.cache = {"rows": rows, "values": values, "basis": vectors.mT @ rows}
        gradients = factor(state, "G")
        if damping.factored:
            mean_a = state.cache["values"].sum() / state.spec.d_in
            shifts = split_damping(mean_a, gradients.diagonal().mean(-1), damping.value)
            state.cache["shift_A"], state.cache["shift_G"] = shifts
            for i, inverse in enumerate(inverse_many(gradients.shifted(shifts[1]).blocks)):
                state.cache[f"inv_G{i}"] = inverse
            return
        state.cache["damping"] = damping.value.to(state.spec.dtype, copy=True)
        for i, (values, vectors) in enumerate(eigh_many(gradients.blocks)):
            state.cache[f"values_G{i}"], state.cache[f"vectors_G{i}"] = values, vectors

    def multiply_power(self, state: State, v: Tensor, power: float) -> Tensor:
        """See the class; with exact damping row by row in the eigenbasis of ``G``, whose eigenvalues multiply ``l``."""
        if ROWS not in state.moments or "basis" not in state.cache:
            return super().multiply_power(state, v, power)
        values, basis = state.cache["values"], state.cache["basis"]
        if "damping" in state.cache:
            delta, vectors = state.cache["damping"], cached(state, "vectors_G")
            scaled = matmul_nt(vectors.transposed.times_transposed(v.mT), basis) * _bracket(_gradient_values(state), values, delta, power)
            return delta.pow(power) * v + vectors.times_transposed(basis.mT @ scaled.mT)
        delta = require_cache(state, "shift_A")
        inner = matmul_nt(v, basis) * _bracket(torch.ones_like(delta).reshape(1), values, delta, power)
        return _gradient_power(state, power).times_transposed((delta.pow(power) * v + inner @ basis).mT)

    def quadratic(self, state: State, v: Tensor) -> Tensor:
        """``<v R^T, G v R^T>``."""
        if ROWS not in state.moments:
            return super().quadratic(state, v)
        projected = matmul_nt(v, state.moments[ROWS])
        return (projected * factor(state, "G").times_transposed(projected.mT)).sum()

    def logdet(self, state: State) -> Tensor:
        """As `KFAC`; the ``d_in - n`` eigenvalues of ``A`` outside the rows are zero."""
        if ROWS not in state.moments or "basis" not in state.cache:
            return super().logdet(state)
        values, d_in, d_out = state.cache["values"], state.spec.d_in, state.spec.d_out
        if "damping" in state.cache:
            delta, gradients = state.cache["damping"], _gradient_values(state)
            return d_out * (d_in - len(values)) * delta.log() + (gradients.unsqueeze(1) * values + delta).log().sum()
        shift = require_cache(state, "shift_A")
        total = d_out * ((values + shift).log().sum() + (d_in - len(values)) * shift.log())
        for block in cholesky_many(factor(state, "G").shifted(state.cache["shift_G"]).blocks):
            total = total + 2 * d_in * block.diagonal().log().sum()
        return total

    def eigenvalue_range(self, state: State) -> tuple[Tensor, Tensor]:
        """Zero, because ``A`` has fewer rows than columns, and the product of the largest eigenvalues."""
        if ROWS not in state.moments:
            return super().eigenvalue_range(state)
        [(values, _)] = eigh_many([gram_nt(state.moments[ROWS])])
        gradients = torch.cat([found for found, _ in eigh_many(factor(state, "G").blocks)])
        return values.new_zeros(()), values.max() * gradients.max()

    def _dense(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """Moments with ``A`` instead of rows."""
        if ROWS not in moments:
            return moments
        rows = moments[ROWS]
        ranges = split(rows.shape[-1], self.max_factor_size)
        dense = {f"A{i}": gram(rows[:, part]) for i, part in enumerate(ranges)}
        return {**dense, **{k: v for k, v in moments.items() if k != ROWS}}


def _bracket(scale: Tensor, values: Tensor, delta: Tensor, power: float) -> Tensor:
    """``[(c l + delta)^p - delta^p] / l`` for every scale ``c: [m]`` and value ``l: [n]``, without cancellation: ``[m, n]``."""
    c, value = scale.unsqueeze(1), values.unsqueeze(0)
    if power == 1:
        return c.expand(len(scale), len(values))
    if power == -1:
        return -c / (delta * (c * value + delta))
    ratio = c * value / delta
    small = ratio == 0
    safe = torch.where(small, torch.ones_like(ratio), ratio)
    quotient = torch.where(small, torch.full_like(ratio, power), torch.expm1(power * torch.log1p(safe)) / safe)
    return delta.pow(power - 1) * c * quotient


def _gradient_values(state: State) -> Tensor:
    return torch.cat([v for n, v in state.cache.items() if n.startswith("values_G")])


def _gradient_power(state: State, power: float) -> BlockDiagonal:
    """``(G + shift I)^p`` with the shift of the last refresh."""
    if power == -1:
        return cached(state, "inv_G")
    damped = factor(state, "G").shifted(state.cache["shift_G"])
    if power == 1:
        return damped
    return BlockDiagonal([(vectors * values.pow(power).unsqueeze(-2)) @ vectors.mT for values, vectors in eigh_many(damped.blocks)])
