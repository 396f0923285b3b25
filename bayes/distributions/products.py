r"""What two normal distributions have to do with each other: a sum of precisions, and the trace in their divergence.

A sum of two precisions is not always of their family: `precision_sum` says what stands for it then.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions.base import Normal
from natgrad_apps.bayes.distributions.dense import DenseNormal
from natgrad_apps.bayes.distributions.diagonal import DiagonalNormal
from natgrad_apps.bayes.distributions.eigen import EigenNormal
from natgrad_apps.bayes.distributions.kronecker import KroneckerNormal
from natgrad_apps.bayes.distributions.low_rank import LowRankNormal
from natgrad_apps.errors import ConfigError
from natgrad_apps.linalg.blocks import BlockDiagonal, sandwich
from natgrad_apps.linalg.spd import cholesky_many

FLIPS = 3
"""Alternations of `precision_sum`; what is left to gain is below a thousandth of a nat for each weight (tests/bayes/test_products.py)."""


@singledispatch
def precision_diagonal(normal: Normal) -> Tensor:
    """Diagonal of ``P``, in the shape of a draw.

    Args:
        normal: Any family.
    """
    raise TypeError(f"no diagonal of the precision of {type(normal).__name__}")


@precision_diagonal.register
def _(normal: DiagonalNormal) -> Tensor:
    return normal.precision


@precision_diagonal.register
def _(normal: DenseNormal) -> Tensor:
    return normal.cholesky.square().sum(-1)


@precision_diagonal.register
def _(normal: LowRankNormal) -> Tensor:
    return normal.factor.square().sum(-1) + normal.diagonal


@precision_diagonal.register
def _(normal: EigenNormal) -> Tensor:
    left, right = (BlockDiagonal([q.square() for q in blocks]) for blocks in (normal.left, normal.right))
    return sandwich(left, normal.variance.reciprocal(), right)


@precision_diagonal.register
def _(normal: KroneckerNormal) -> Tensor:
    rows, columns = (torch.cat([b.square().sum(-1) for b in blocks], -1) for blocks in (normal.left, normal.right))
    return rows.unsqueeze(-1) * columns.unsqueeze(-2) / normal.scale


def dense_precision(normal: Normal) -> Tensor:
    """``P: [n, n]``, for small ``n``."""
    eye = torch.eye(normal.size, dtype=normal.like.dtype, device=normal.like.device).reshape(normal.size, *normal.shape)
    return normal.multiply_precision(eye).reshape(normal.size, normal.size)


def trace_of_product(prior: Normal, own: Normal) -> Tensor:
    r"""``tr(P_0 Sigma)``, 0-d.

    With a diagonal on either side it is ``sum diag(P_0) diag(Sigma)``. A Kronecker prior ``S_0 (x) A_0 / s_0`` with

    * a Kronecker ``Sigma = s S^-1 (x) A^-1``: ``s / s_0 tr(S_0 S^-1) tr(A_0 A^-1)``, and ``tr(L_0 L_0^T (L L^T)^-1) = |L^-1 L_0|^2``;
    * ``Sigma = Q diag(v) Q^T``: ``sum_ij v_ij diag(Q_L^T S_0 Q_L)_i diag(Q_R^T A_0 Q_R)_j / s_0``.

    A prior ``Q_0 diag(1/v_0) Q_0^T`` with ``Q diag(v) Q^T``: ``sum_ijkl v_ij (Q_L^T Q_0L)_ik^2 (Q_R^T Q_0R)_jl^2 / v_0kl``.
    A dense prior ``L_0 L_0^T``: ``tr(L_0^T Sigma L_0)``.

    Args:
        prior: Of precision ``P_0``.
        own: Of covariance ``Sigma``, in the same shape.

    Raises:
        ConfigError: There is no closed form for the pair.
    """
    if isinstance(prior, DiagonalNormal) or isinstance(own, DiagonalNormal):
        return (precision_diagonal(prior) * own.variances()).sum()
    if isinstance(prior, DenseNormal):
        return (prior.cholesky * own.multiply_covariance(prior.cholesky.mT).mT).sum()
    if isinstance(prior, KroneckerNormal) and isinstance(own, KroneckerNormal):
        sides = [_against(a, b) for a, b in ((own.left, prior.left), (own.right, prior.right))]
        return (sides[0] * sides[1]).sum() * own.scale / prior.scale
    if isinstance(own, EigenNormal) and isinstance(prior, (EigenNormal, KroneckerNormal)):
        return (own.variance * _diagonal_in_basis(prior, own)).sum()
    raise _unknown_pair(prior, own)


def precision_sum(own: Normal, prior: Normal) -> Normal:
    r"""A distribution of the family of ``own`` whose precision stands for ``P + P_0``.

    * Diagonal: ``P + diag(P_0)``, and in a Kronecker eigenbasis ``Q``: ``Q^T P Q + diag(Q^T P_0 Q)``: of this family the distribution that
      minimizes ``KL(q || N(0, (P + P_0)^-1))`` (``d/d v_i [v_i (P + P_0)_ii - log v_i] / 2 = 0``).
    * Dense, and low rank with a diagonal prior: exact.
    * Kronecker, ``P = S (x) A / s`` and ``P_0 = S_0 (x) A_0 / s_0``: of this family ``L (x) R`` the same minimum, where both derivatives
      vanish: ``L = [tr(A R^-1) S / s + tr(A_0 R^-1) S_0 / s_0] / d_in``, ``R = [tr(S L^-1) A / s + tr(S_0 L^-1) A_0 / s_0] / d_out``. Each
      side in turn, `FLIPS` times, from ``A / tr A + A_0 / tr A_0``; no turn can raise the divergence. (A product of sums of factors, as in
      K-FAC's damping, has cross terms instead: twice the precision for ``P_0 = P``.)

    Args:
        own: Of precision ``P``.
        prior: Of precision ``P_0``, in the same shape.

    Raises:
        ConfigError: The prior is of a family that ``own`` cannot take up.
    """
    if isinstance(own, DiagonalNormal):
        return DiagonalNormal(own.precision + precision_diagonal(prior))
    if isinstance(own, EigenNormal) and isinstance(prior, (DiagonalNormal, EigenNormal, KroneckerNormal)):
        return EigenNormal(own.left, own.right, (own.variance.reciprocal() + _diagonal_in_basis(prior, own)).reciprocal())
    if isinstance(own, DenseNormal):
        added = torch.diag(prior.precision) if isinstance(prior, DiagonalNormal) else dense_precision(prior)
        return DenseNormal(cholesky_many([own.cholesky @ own.cholesky.mT + added])[0])
    if isinstance(own, LowRankNormal) and isinstance(prior, DiagonalNormal):
        return LowRankNormal(own.factor, own.diagonal + prior.precision)
    if isinstance(own, KroneckerNormal) and isinstance(prior, KroneckerNormal):
        return _kronecker_sum(own, prior)
    raise _unknown_pair(prior, own)


def isotropic(like: Normal, precision: Tensor) -> Normal:
    """``N(0, I / precision)`` in a family that `precision_sum` can add to ``like``.

    Args:
        like: Has the shape.
        precision: 0-d.
    """
    if not isinstance(like, KroneckerNormal):
        return DiagonalNormal(precision.to(like.like).expand(like.shape))
    eyes = [
        tuple(torch.eye(b.shape[-1], dtype=b.dtype, device=b.device).expand_as(b) for b in blocks) for blocks in (like.left, like.right)
    ]
    return KroneckerNormal(eyes[0], eyes[1], precision.to(like.like).reciprocal())


def _kronecker_sum(own: KroneckerNormal, prior: KroneckerNormal) -> KroneckerNormal:
    ratio = own.scale / prior.scale
    lefts, rights = _pairs(own.left, prior.left), _pairs(own.right, prior.right)
    rows, columns = own.shape[-2:]
    right = _mixed(rights, _trace(own.right).reciprocal(), _trace(prior.right).reciprocal())
    for _ in range(FLIPS):
        left = _mixed(lefts, _against(right, own.right) / columns, ratio * _against(right, prior.right) / columns)
        right = _mixed(rights, _against(left, own.left) / rows, ratio * _against(left, prior.left) / rows)
    return KroneckerNormal(left, right, own.scale)


def _mixed(pairs: list[tuple[Tensor, Tensor]], own: Tensor, prior: Tensor) -> tuple[Tensor, ...]:
    """Cholesky factors of ``own S + prior S_0`` from those of ``S`` and ``S_0``."""
    return tuple(cholesky_many([_square(a) * own[..., None, None] + _square(b) * prior[..., None, None] for a, b in pairs]))


def _square(factor: Tensor) -> Tensor:
    return factor @ factor.mT


def _trace(blocks: tuple[Tensor, ...]) -> Tensor:
    """Trace of ``L L^T``, ``[*K]``."""
    return torch.stack([b.square().sum((-2, -1)) for b in blocks]).sum(0)


def _against(own: tuple[Tensor, ...], prior: tuple[Tensor, ...]) -> Tensor:
    """``|L^-1 L_0|^2``, ``[*K]``."""
    ratios = [torch.linalg.solve_triangular(a, b, upper=False).square().sum((-2, -1)) for a, b in _pairs(own, prior)]
    return torch.stack(ratios).sum(0)


def _diagonal_in_basis(prior: Normal, own: EigenNormal) -> Tensor:
    """``diag(Q^T P_0 Q)`` in the shape of a draw."""
    if isinstance(prior, DiagonalNormal):
        squares = [BlockDiagonal([q.mT.square().contiguous() for q in blocks]) for blocks in (own.left, own.right)]
        return sandwich(squares[0], prior.precision, squares[1])
    if isinstance(prior, KroneckerNormal):
        rows, columns = (
            torch.cat([(q.mT @ b).square().sum(-1) for q, b in _pairs(mine, theirs)], -1)
            for mine, theirs in ((own.left, prior.left), (own.right, prior.right))
        )
        return rows.unsqueeze(-1) * columns.unsqueeze(-2) / prior.scale
    assert isinstance(prior, EigenNormal)
    left, right = (
        BlockDiagonal([(q.mT @ b).square() for q, b in _pairs(mine, theirs)])
        for mine, theirs in ((own.left, prior.left), (own.right, prior.right))
    )
    return sandwich(left, prior.variance.reciprocal(), right)


def _pairs(own: tuple[Tensor, ...], prior: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    if [b.shape for b in own] != [b.shape for b in prior]:
        raise ConfigError("the factors of the two distributions have other blocks; use the same max_factor_size for both")
    return list(zip(own, prior, strict=True))


def _unknown_pair(prior: Normal, own: Normal) -> ConfigError:
    mine, theirs = type(own).__name__, type(prior).__name__
    return ConfigError(f"a prior of the family {theirs} does not go with a posterior of the family {mine}; use the same method for both")
