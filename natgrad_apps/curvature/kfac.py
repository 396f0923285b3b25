"""K-FAC: a Kronecker product of the second moments of a layer's inputs and output gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.curvature.base import Curvature, require_cache
from natgrad_apps.errors import ConfigError
from natgrad_apps.linalg.blocks import BlockDiagonal, sandwich, split
from natgrad_apps.linalg.spd import cholesky_many, eigh_many, inverse_many
from natgrad_apps.statistics.moments import LayerStatistics, Statistics
from natgrad_apps.types import BlockSpec, DampingValue, State


@dataclass(frozen=True)
class KFAC(Curvature):
    r"""Kronecker-factored approximate curvature.

    ``F ~ G (x) A`` for row-major ``vec(W)``, ``A = E[a a^T]``, ``G = E[g g^T]`` (K-FAC equation 1; KFC equations 14-16
    for convolutions), so that ``F v = G v A`` for ``v: [*K, d_out, d_in]``.

    Damping. `Tikhonov` is exact: ``F_d = G (x) A + lambda I`` through eigendecompositions of both factors. A factored
    damping (`FactoredTikhonov`, `LevenbergMarquardt`) gives ``F_d = (G + gamma/pi I) (x) (A + pi gamma I)``, ``gamma =
    sqrt(lambda)``, ``pi^2 = (tr A/d_in) / (tr G/d_out)`` (section 6.3), through Cholesky inverses, which is several
    times cheaper.

    Shapes: moments ``A: [*K, d_in, d_in]``, ``G: [*K, d_out, d_out]``; a factor wider than `max_factor_size` is kept as
    diagonal blocks of equal size.
    Cost: accumulate ``N S (d_in^2 + C d_out^2)``, refresh ``d_in^3 + d_out^3`` (about 10 times that for `Tikhonov`), apply
    ``2 d_out d_in (d_out + d_in)`` (twice that for `Tikhonov`); memory ``2 (d_in^2 + d_out^2)``.
    Departures from the paper: no block-tridiagonal inverse.
    Reference: Martens & Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, ICML 2015,
    arXiv 1503.05671; Grosse & Martens, A Kronecker-factored approximate Fisher matrix for convolution layers, ICML
    2016, arXiv 1602.01407.

    Attributes:
        decay: See `Curvature`.
        max_factor_size: Widest factor that is kept whole.
    """

    max_factor_size: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.max_factor_size, int) or self.max_factor_size < 1:
            raise ConfigError(f"max_factor_size must be an integer >= 1, got {self.max_factor_size!r}")

    def parts(self, spec: BlockSpec) -> Iterator[tuple[str, slice | None]]:
        """Names of the factors' blocks and the rows that they cover; None covers all."""
        for letter, size in (("A", spec.d_in), ("G", spec.d_out)):
            ranges = split(size, self.max_factor_size)
            for i, part in enumerate(ranges):
                yield f"{letter}{i}", (part if len(ranges) > 1 else None)

    def measure(self, state: State, statistics: Statistics) -> dict[str, Tensor]:
        """``A`` and ``G`` of this batch."""
        assert isinstance(statistics, LayerStatistics)
        moment = {"A": statistics.input_moment, "G": statistics.gradient_moment}
        return {name: moment[name[0]](part) for name, part in self.parts(state.spec)}

    def finite(self, moments: dict[str, Tensor]) -> Tensor:
        """The traces suffice: a finite trace bounds every entry of a second moment (Cauchy-Schwarz)."""
        return torch.stack([m.diagonal(dim1=-2, dim2=-1).sum() for m in moments.values()]).sum().isfinite()

    def refresh(self, states: Sequence[State], damping: DampingValue) -> None:
        """Inverses of the damped factors, or eigendecompositions of the factors."""
        if damping.factored:
            self._refresh_inverses(states, damping.value)
        else:
            refresh_eigenbasis(states)
            for state in states:
                state.cache["damping"] = damping.value.to(state.spec.dtype, copy=True)

    def _refresh_inverses(self, states: Sequence[State], damping: Tensor) -> None:
        names, damped = [], []
        for state in states:
            state.cache = dict(zip(("shift_A", "shift_G"), factored_shifts(state, damping), strict=True))
            for letter in "AG":
                for i, block in enumerate(factor(state, letter).shifted(state.cache[f"shift_{letter}"]).blocks):
                    names.append((state, f"inv_{letter}{i}"))
                    damped.append(block)
        for (state, name), inverse in zip(names, inverse_many(damped), strict=True):
            state.cache[name] = inverse

    def multiply_power(self, state: State, v: Tensor, power: float) -> Tensor:
        """Two products for -1 and a factored damping; four for `Tikhonov`. Other factored powers decompose the damped factors on demand."""
        if "vectors_A0" in state.cache:
            return in_eigenbasis(state, v, (kronecker_eigenvalues(state) + require_cache(state, "damping")).pow(power))
        require_cache(state, "shift_A")
        if power == -1:
            a, g = cached(state, "inv_A"), cached(state, "inv_G")
        else:
            a, g = (damped_factor(state, letter) for letter in "AG")
            if power != 1:
                a, g = _power(a, power), _power(g, power)
        return sandwich(g, v, a)

    def quadratic(self, state: State, v: Tensor) -> Tensor:
        """``<v, G v A>``."""
        return (v * sandwich(factor(state, "G"), v, factor(state, "A"))).sum()

    def logdet(self, state: State) -> Tensor:
        """``d_in logdet G_d + d_out logdet A_d`` for a factored damping, else the sum of logarithms of the damped eigenvalues."""
        if "vectors_A0" in state.cache:
            return (kronecker_eigenvalues(state) + require_cache(state, "damping")).log().sum()
        require_cache(state, "shift_A")
        total = state.moments["A0"].new_zeros(())
        for letter, copies in (("A", state.spec.d_out), ("G", state.spec.d_in)):
            for block in cholesky_many(damped_factor(state, letter).blocks):
                total = total + 2 * copies * block.diagonal(dim1=-2, dim2=-1).log().sum()
        return total

    def eigenvalue_range(self, state: State) -> tuple[Tensor, Tensor]:
        """Products of the factors' extreme eigenvalues."""
        extremes = []
        for letter in "AG":
            values = torch.cat([e for e, _ in eigh_many(factor(state, letter).blocks)], dim=-1)
            extremes.append((values.amin(-1), values.amax(-1)))
        (low_a, high_a), (low_g, high_g) = extremes
        return (low_a * low_g).min(), (high_a * high_g).max()


def _blocks(tensors: dict[str, Tensor], prefix: str) -> BlockDiagonal:
    return BlockDiagonal([value for name, value in tensors.items() if name.startswith(prefix) and name[len(prefix) :].isdigit()])


def factor(state: State, letter: str) -> BlockDiagonal:
    """The factor ``A`` or ``G``."""
    return _blocks(state.moments, letter)


def cached(state: State, prefix: str) -> BlockDiagonal:
    """A factor-shaped entry of the cache."""
    return _blocks(state.cache, prefix)


def damped_factor(state: State, letter: str) -> BlockDiagonal:
    """``A + pi gamma I`` or ``G + gamma/pi I`` with the shifts of the last refresh."""
    return factor(state, letter).shifted(state.cache[f"shift_{letter}"])


def factored_shifts(state: State, damping: Tensor) -> tuple[Tensor, Tensor]:
    """``pi gamma`` and ``gamma / pi``, each ``[*K]``; ``pi = 1`` where a trace is zero."""
    mean_a, mean_g = (factor(state, letter).diagonal().mean(-1) for letter in "AG")
    return split_damping(mean_a, mean_g, damping)


def split_damping(mean_a: Tensor, mean_g: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """`factored_shifts` from the mean eigenvalues of the factors."""
    gamma = damping.to(mean_a.dtype).sqrt()
    ratio = torch.where((mean_a > 0) & (mean_g > 0), mean_a / mean_g, torch.ones_like(mean_a))
    pi = ratio.sqrt()
    return pi * gamma, gamma / pi


def refresh_eigenbasis(states: Sequence[State]) -> None:
    """Put eigenvectors and eigenvalues of both factors into the caches, replacing what was there."""
    names, matrices = [], []
    for state in states:
        state.cache = {}
        for letter in "AG":
            for i, block in enumerate(factor(state, letter).blocks):
                names.append((state, f"{letter}{i}"))
                matrices.append(block)
    for (state, name), (values, vectors) in zip(names, eigh_many(matrices), strict=True):
        state.cache[f"values_{name}"] = values
        state.cache[f"vectors_{name}"] = vectors


def kronecker_eigenvalues(state: State) -> Tensor:
    """Products of the factors' eigenvalues, ``[*K, d_out, d_in]``."""
    a, g = (torch.cat([v for n, v in state.cache.items() if n.startswith(f"values_{letter}")], dim=-1) for letter in "AG")
    return g.unsqueeze(-1) * a.unsqueeze(-2)


def in_eigenbasis(state: State, v: Tensor, scale: Tensor) -> Tensor:
    """``Q_G [(Q_G^T v Q_A) * scale] Q_A^T``."""
    a, g = cached(state, "vectors_A"), cached(state, "vectors_G")
    rotated = sandwich(g.transposed, v, a.transposed)
    return sandwich(g, rotated * scale, a)


def _power(matrix: BlockDiagonal, power: float) -> BlockDiagonal:
    return BlockDiagonal([(vectors * values.pow(power).unsqueeze(-2)) @ vectors.mT for values, vectors in eigh_many(matrix.blocks)])
