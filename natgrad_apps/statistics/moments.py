"""Moments of one batch for one block: the only place where sums over examples, positions and Fisher columns are taken and normalised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.errors import ShapeError
from natgrad_apps.linalg.blocks import BlockDiagonal, sandwich
from natgrad_apps.linalg.products import gram
from natgrad_apps.statistics.uses import Use, join, same_units
from natgrad_apps.types import BlockSpec

# Per-example gradients are formed for at most this many entries at a time (64 MiB in float32).
CHUNK = 2**24


class Statistics(ABC):
    """What a curvature may ask of one batch. Results are normalised for the mean log-likelihood."""

    @abstractmethod
    def squared_gradient(self, left: BlockDiagonal | None = None, right: BlockDiagonal | None = None) -> Tensor:
        """Diagonal of the Fisher in a basis: ``1/M sum_n (left^T g_n right)^2`` entrywise, ``g_n: [*K, d_out, d_in]`` of unit ``n``."""


@dataclass(frozen=True)
class LayerStatistics(Statistics):
    """Moments of ``a`` and ``g`` of one layer.

    Attributes:
        spec: The block.
        uses: Calls of the layer that the likelihood depends on; they count as further positions of the same units.
        terms: ``M``, the number of likelihood terms, or the sum of their weights.
        reduce: Whether positions are reduced (else expanded).
        has_weight: False when the only column is the bias.
        has_bias: Whether a column of ones is appended.
    """

    spec: BlockSpec
    uses: Sequence[Use]
    terms: float | Tensor
    reduce: bool
    has_weight: bool
    has_bias: bool

    def input_moment(self, part: slice | None = None) -> Tensor:
        """``A: [*K, d_in, d_in]``: second moment of the inputs, the bias column included.

        Args:
            part: Rows and columns wanted, for factors that are split into diagonal blocks.
        """
        wide = part is not None and not self.reduce and any(use.inputs is not None and use.inputs.chunk for use in self.uses)
        if wide or any(use.weights is not None for use in self.uses):
            moment: Tensor | None = None
            for root in self._roots():
                own = gram(root if part is None else root[..., part])
                moment = own if moment is None else moment.add_(own)
            assert moment is not None
            return moment
        if not self.has_weight or (self.reduce and self.has_weight) or part is not None:
            rows = self._reduced_inputs() if self.reduce else self._input_rows().flatten(-3, -2)
            rows = rows if part is None else rows[..., part]
            return gram(rows).div_(rows.shape[-2])
        total: Tensor | None = None
        sums: Tensor | None = None
        count = 0
        for use in self.uses:
            inputs = use.row_inputs
            assert inputs is not None
            second, first = inputs.second_moment()
            total = second if total is None else total + second
            sums = first if sums is None else sums + first
            count += inputs.units * inputs.positions
        assert total is not None
        assert sums is not None
        if not self.has_bias:
            return total.to(self.spec.dtype).div_(count)
        d = self.spec.d_in - 1
        moment = torch.empty((*self.spec.lead, d + 1, d + 1), dtype=self.spec.dtype, device=total.device)
        torch.div(total, count, out=moment[..., :d, :d])
        mean = sums.to(self.spec.dtype) / count
        moment[..., :d, d] = mean
        moment[..., d, :d] = mean
        moment[..., d, d] = 1.0
        return moment

    @property
    def input_count(self) -> int:
        """Number of rows of `input_root`."""
        if self.reduce:
            return len(self._support(self.uses[0]))
        return sum(len(self._support(use)) * len(range(use.positions)[use.chosen]) for use in self.uses)

    def input_root(self) -> Tensor:
        """Rows ``R: [*K, rows, d_in]`` with ``A = R^T R``: the inputs times the root of their share, without those of weight zero."""
        parts = list(self._roots())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def _roots(self) -> Iterator[Tensor]:
        """`input_root` in pieces."""
        if self.reduce:
            use = self.uses[0]
            units = self._support(use)
            rows, weights = self._reduced_inputs(), self._row_weights(use).sum(-1)
            kept = weights[units]
            yield rows[..., units, :] * (kept / weights.sum()).sqrt().unsqueeze(-1)
            return
        shares = [self._row_weights(use)[:, use.chosen] for use in self.uses]
        total = torch.stack([share.sum() for share in shares]).sum()
        for use, share in zip(self.uses, shares, strict=True):
            units = self._support(use)
            for piece in units.split((use.inputs.chunk if use.inputs is not None else None) or max(1, len(units))):
                rows = self._unit_inputs(use, piece)[..., use.chosen, :].flatten(-3, -2)
                yield rows * (share[piece].flatten() / total).sqrt().unsqueeze(-1)

    def _support(self, use: Use) -> Tensor:
        return use.support if use.support is not None else torch.arange(use.units, device=self.spec.device)

    def _row_weights(self, use: Use) -> Tensor:
        """``[N, S]``."""
        if use.weights is not None:
            return use.weights.to(self.spec.dtype)
        return torch.ones((use.units, use.positions), dtype=self.spec.dtype, device=self.spec.device)

    def _unit_inputs(self, use: Use, units: Tensor) -> Tensor:
        """``[*K, units, S, d_in]`` of one call."""
        if use.inputs is None:
            return self._inputs_of(use)[..., units, :, :]
        whole = use.support is None and len(units) == use.units
        return self._augment(use.inputs.rows() if whole else use.inputs.unit_rows(units))

    def gradient_moment(self, part: slice | None = None) -> Tensor:
        """``G: [*K, d_out, d_out]``: second moment of the output gradients, ``1/M`` of a sum; the identity with ``forward_only``."""
        if not self.uses[0].gradients:
            size = self.spec.d_out if part is None else len(range(self.spec.d_out)[part])
            eye = torch.eye(size, dtype=self.spec.dtype, device=self.spec.device)
            return eye.expand(*self.spec.lead, size, size).contiguous()
        total: Tensor | None = None
        columns = self._reduced_gradients() if self.reduce else self._gradient_rows()
        for rows, weight in columns:
            rows = rows if part is None else rows[..., part]
            moment = (gram(rows.squeeze(-2)) if rows.shape[-2] == 1 else gram(rows, rows=2)).mul_(weight / self.terms)
            total = moment if total is None else total.add_(moment)
        assert total is not None
        return total

    def squared_gradient(self, left: BlockDiagonal | None = None, right: BlockDiagonal | None = None) -> Tensor:
        """See `Statistics`. Cost ``C N S d_out d_in`` plus the rotations; per-unit gradients are formed in chunks, never all at once."""
        if not self.uses[0].gradients:
            moment = self.input_moment()
            rotated = moment if right is None else sandwich(right.transposed, moment, right.transposed)
            diagonal = rotated.diagonal(dim1=-2, dim2=-1)
            return diagonal.unsqueeze(-2).expand(self.spec.shape).clone()
        total = torch.zeros(self.spec.shape, dtype=self.spec.dtype, device=self.spec.device)
        for a, g, weight in self._unit_pairs():
            # Rotating the inputs costs N S d_in^2, rotating the gradients made of them N d_out d_in^2.
            late = a.shape[-2] > self.spec.d_out
            a = a if late else _rotate(a, right)
            g = _rotate(g, left)
            if a.shape[-2] == 1:  # one position: the square of an outer product is the outer product of squares
                total.add_(g.squeeze(-2).square().mT @ a.squeeze(-2).square(), alpha=weight)
                continue
            for part in _chunks(a.shape[-3], self.spec.d_out * self.spec.d_in):
                gradients = g[..., part, :, :].mT @ a[..., part, :, :]
                gradients = _rotate(gradients, right) if late else gradients
                total.add_(gradients.square_().sum(-3), alpha=weight)
        return total.div_(self.terms)

    def dense(self) -> Tensor:
        """``F: [*K, d_out*d_in, d_out*d_in]``, the exact block of this batch in row-major order; for small layers."""
        size = self.spec.d_out * self.spec.d_in
        if not self.uses[0].gradients:
            eye = torch.eye(self.spec.d_out, dtype=self.spec.dtype, device=self.spec.device)
            product = torch.einsum("ij,...kl->...ikjl", eye, self.input_moment())
            return product.reshape(*self.spec.lead, size, size)
        total = torch.zeros((*self.spec.lead, size, size), dtype=self.spec.dtype, device=self.spec.device)
        for a, g, weight in self._unit_pairs():
            for part in _chunks(a.shape[-3], size):
                rows = (g[..., part, :, :].mT @ a[..., part, :, :]).flatten(-2, -1)
                total.add_(gram(rows), alpha=weight)
        return total.div_(self.terms)

    def _augment(self, rows: Tensor) -> Tensor:
        """Append the column of ones."""
        rows = rows.to(self.spec.dtype)
        return torch.cat([rows, rows.new_ones((*rows.shape[:-1], 1))], dim=-1) if self.has_bias else rows

    def _inputs_of(self, use: Use) -> Tensor:
        """``[*K, N, S, d_in]`` of one call."""
        if use.inputs is not None:
            return self._augment(use.inputs.rows())
        shape = (*self.spec.lead, use.units, use.positions, 1)
        return torch.ones(shape, dtype=self.spec.dtype, device=self.spec.device)

    def _input_rows(self) -> Tensor:
        """Inputs of every call at the chosen positions, as ``[*K, 1, rows, d_in]``."""
        parts = [self._inputs_of(use)[..., use.chosen, :] for use in self.uses]
        return torch.cat([part.flatten(-3, -2).unsqueeze(-3) for part in parts], dim=-2)

    def _reduced_inputs(self) -> Tensor:
        """Inputs averaged over positions and calls, ``[*K, N, d_in]``."""
        self._check_units()
        if not self.has_weight:
            return self._inputs_of(self.uses[0])[..., :1, :].squeeze(-2)
        positions = sum(use.positions for use in self.uses)
        total: Tensor | None = None
        for use in self.uses:
            assert use.inputs is not None
            part = use.inputs.reduced().to(self.spec.dtype) * (use.positions / positions)
            total = part if total is None else total + part
        assert total is not None
        return self._augment(total)

    def _gradient_rows(self) -> Iterator[tuple[Tensor, float]]:
        """Gradients of every call and column, ``[*K, N, S, d_out]``, with the weight that undoes sub-sampling."""
        for use in self.uses:
            for g in use.gradients:
                yield g[..., use.chosen, :].to(self.spec.dtype), use.row_weight

    def _reduced_gradients(self) -> Iterator[tuple[Tensor, float]]:
        """Gradients summed over positions and calls, ``[*K, N, 1, d_out]`` for each column."""
        self._check_units()
        for column in zip(*(use.gradients for use in self.uses), strict=True):
            total: Tensor | None = None
            for g in column:
                part = g.to(self.spec.dtype).sum(-2, keepdim=True)
                total = part if total is None else total + part
            assert total is not None
            yield total, 1.0 / self.uses[0].fraction

    def _unit_pairs(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """``a: [*K, N, S, d_in]`` and ``g: [*K, N, S, d_out]`` of every column; calls with the same units are joined along ``S``."""
        if self.reduce:
            a = self._reduced_inputs().unsqueeze(-2)
            for rows, weight in self._reduced_gradients():
                yield a, rows, weight
            return
        for group in same_units(self.uses):
            a = join([self._inputs_of(use) for use in group])
            for column in zip(*(use.gradients for use in group), strict=True):
                yield a, join([g.to(self.spec.dtype) for g in column]), 1.0 / group[0].fraction

    def _check_units(self) -> None:
        counts = {use.units for use in self.uses}
        if len(counts) > 1:
            raise ShapeError(
                f"layer {self.spec.name!r} was called with {sorted(counts)} units in one forward pass; sharing='reduce' averages "
                "the positions of each unit, so every call needs the same number; use sharing='expand'"
            )


@dataclass(frozen=True)
class ParameterStatistics(Statistics):
    """Moments of a bare parameter: the summed log-likelihood gradient of each Fisher column, or a diagonal that the likelihood knows.

    Scores of different terms are independent with zero mean (sampled targets, or random signs), so ``E[(sum_n g_n)^2] = sum_n E[g_n^2]``.
    """

    spec: BlockSpec
    gradients: Sequence[Tensor]
    terms: float | Tensor
    known: Tensor | None = None

    def squared_gradient(self, left: BlockDiagonal | None = None, right: BlockDiagonal | None = None) -> Tensor:
        """``1/M sum_c (sum_n g_cn)^2``, shaped ``[1, size]``. The only basis is the standard one."""
        assert left is None
        assert right is None
        if self.known is not None:
            return self.known.to(self.spec.dtype).reshape(self.spec.shape).clone()
        total = torch.zeros(self.spec.shape, dtype=self.spec.dtype, device=self.spec.device)
        for g in self.gradients:
            total.add_(g.to(self.spec.dtype).reshape(self.spec.shape).square())
        return total.div_(self.terms)


def _rotate(rows: Tensor, basis: BlockDiagonal | None) -> Tensor:
    """``rows: [*K, N, S, d]`` in another basis ``[*K, d, d]``."""
    return rows if basis is None else basis.after(rows.flatten(-3, -2)).reshape(rows.shape)


def _chunks(units: int, entries: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(entries, 1))
    for start in range(0, units, step):
        yield slice(start, start + step)
