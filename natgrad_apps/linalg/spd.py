"""Factorizations of symmetric positive (semi-)definite matrices that fail loudly, batched over equal sizes.

The common path computes in the dtype of its input and reads one flag back from the device for the whole call. Matrices
that failed are done again, one by one, in float64, then with jitter; what still fails raises `NumericalError`.

"Failed" means a Cholesky pivot that is not positive or that rounding has consumed: ``L_ii^2 <= sqrt(d) eps A_ii``, a
test that does not depend on the scaling of rows. It also finds every NaN and infinity, because those reach a pivot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.errors import NumericalError, ShapeError
from natgrad_apps.linalg.products import gram

JITTER_LADDER = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4)
"""Jitter tried in float64, one after the other, in units of machine epsilon (of the input's dtype) times the mean diagonal."""

NEGATIVE_TOLERANCE = 10.0
"""An eigenvalue above ``-NEGATIVE_TOLERANCE sqrt(d) eps max|eigenvalue|`` (`eps` of the input's dtype) counts as zero."""

# Stacking is a copy and LAPACK loops over the stack anyway: on CPU it only saves Python's calls, which matter for small matrices.
_CPU_STACK_WIDTH = 64

# A computation on a stack [B, d, d]: its result, and which of the B matrices it succeeded for.
_Computation = Callable[[Tensor], tuple[Tensor, Tensor]]


def inverse_many(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Invert symmetric positive definite matrices ``[..., d, d]`` through Cholesky; only the lower triangles are read.

    Cost ``d^3`` multiply-adds for each matrix (a third of it for the factor); one host check for the whole call.

    Args:
        matrices: Matrices of any sizes, float32 or float64, on any devices; equal ones are done in one batched call.

    Returns:
        Exactly symmetric inverses in the order, shape, dtype and on the device of the matrices.

    Raises:
        NumericalError: A matrix is not finite, or not positive definite even in float64 with the largest jitter.
        ShapeError: A matrix is not square.
    """
    return _factorize(matrices, _inverse)


def cholesky_many(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Lower Cholesky factors of symmetric positive definite matrices ``[..., d, d]``; only the lower triangles are read.

    Cost ``d^3 / 3`` multiply-adds for each matrix; one host check for the whole call. Arguments, results and errors as in
    `inverse_many`.
    """
    return _factorize(matrices, _cholesky)


def eigh_many(matrices: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Eigendecompositions of symmetric positive semi-definite matrices ``[..., d, d]``; only the lower triangles are read.

    Cost about ``9 d^3`` multiply-adds for each matrix, in practice 5 to 10 times `inverse_many`. On CUDA torch runs a
    sequential loop above ``d = 32``, and checks convergence on the host.

    Args:
        matrices: As in `inverse_many`.

    Returns:
        For each matrix: eigenvalues ``[..., d]``, ascending and not negative, and eigenvectors ``[..., d, d]`` as columns.

    Raises:
        NumericalError: A matrix is not finite, has an eigenvalue below the bound that `NEGATIVE_TOLERANCE` sets, or the
            decomposition failed in float64 on the CPU too.
        ShapeError: A matrix is not square.
    """
    return _decompose(matrices, [torch.finfo(matrix.dtype).eps for matrix in matrices])


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Symmetric power of a positive semi-definite matrix ``[..., d, d]``, computed in float64, in the dtype of `matrix`.

    Raises:
        NumericalError: As in `eigh_many`; or `power` is negative and the matrix is singular to the precision of its dtype
            (an eigenvalue of at most ``eps`` times the largest); or the result overflows.
        ShapeError: `matrix` is not square.
    """
    eps = torch.finfo(matrix.dtype).eps
    [(values, vectors)] = _decompose([_double(matrix)], [eps])
    if power < 0 and bool((values[..., 0] <= eps * values[..., -1]).any()):
        raise NumericalError(f"a singular {_size(matrix)} matrix has no power {power}; add damping to its diagonal first")
    result = (vectors * values.pow(power).unsqueeze(-2)) @ vectors.mT
    result = ((result + result.mT) * 0.5).to(matrix)
    if not bool(result.isfinite().all()):
        raise NumericalError(f"the power {power} of a {_size(matrix)} matrix overflows {matrix.dtype}; rescale the matrix or use float64")
    return result


@dataclass(frozen=True)
class _Group:
    """Matrices of one size, dtype and device: their places in the sequence, and one stack ``[B, d, d]`` of them."""

    places: list[int]
    stack: Tensor

    def scatter(self, result: Tensor, matrices: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """The parts of a result ``[B, ...]`` with the leading shapes of the matrices that they belong to.

        Several parts are copied into memory of their own: products of views whose first byte is not aligned round differently from
        products of the same numbers read back from a checkpoint, and a resumed run must be bit-equal.
        """
        counts = [math.prod(matrices[place].shape[:-2]) for place in self.places]
        for place, part in zip(self.places, result.split(counts), strict=True):
            own = part if len(counts) == 1 else part.clone()
            yield place, own.reshape(*matrices[place].shape[:-2], *result.shape[1:])


def _groups(matrices: Sequence[Tensor]) -> list[_Group]:
    places: dict[object, list[int]] = {}
    for i, matrix in enumerate(matrices):
        _check(matrix)
        alone = matrix.device.type == "cpu" and matrix.shape[-1] > _CPU_STACK_WIDTH
        places.setdefault((matrix.shape[-1], matrix.dtype, matrix.device, i if alone else None), []).append(i)
    groups = []
    for members in places.values():
        flat = [matrices[i].reshape(-1, *matrices[i].shape[-2:]) for i in members]
        groups.append(_Group(members, flat[0] if len(flat) == 1 else torch.cat(flat)))
    return groups


def _all(flags: Sequence[Tensor]) -> bool:
    """Whether every entry of every flag is true: the one host check of a call."""
    if not flags:
        return True
    return bool(torch.stack([flag.all().to(flags[0].device, non_blocking=True) for flag in flags]).all())


def _factorize(matrices: Sequence[Tensor], compute: _Computation) -> list[Tensor]:
    groups = _groups(matrices)
    outcomes = [compute(group.stack) for group in groups]
    passed = _all([flags for _, flags in outcomes])
    results: list[Tensor] = list(matrices)
    for group, (result, flags) in zip(groups, outcomes, strict=True):
        if not passed:
            for i in flags.logical_not().nonzero().flatten().tolist():
                result[i] = _climb(group.stack[i], compute)
        for place, part in group.scatter(result, matrices):
            results[place] = part
    return results


def _passed(stack: Tensor, factor: Tensor, info: Tensor) -> Tensor:
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    lost = math.sqrt(stack.shape[-1]) * torch.finfo(stack.dtype).eps * stack.diagonal(dim1=-2, dim2=-1)
    # Comparisons with NaN, and of infinity with infinity, are false.
    return (info == 0) & (pivots > lost).all(-1)


def _cholesky(stack: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(stack, check_errors=False)
    return factor, _passed(stack, factor, info)


def _inverse(stack: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(stack, check_errors=False)
    inverse = _by_lapack(factor) if stack.device.type == "cpu" else _by_triangles(factor)
    # The diagonal bounds every entry of a positive definite matrix, so an overflow shows there.
    return inverse, _passed(stack, factor, info) & inverse.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)


def _by_lapack(factor: Tensor) -> Tensor:
    try:
        # LAPACK computes one triangle and copies it, so the result is symmetric; transposed, it is contiguous.
        return torch.cholesky_inverse(factor).mT
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a pivot is exactly zero
        return torch.full_like(factor, math.nan)


def _by_triangles(factor: Tensor) -> Tensor:
    """``L^-T L^-1``. `torch.cholesky_inverse` checks for errors on the host, which stalls a device."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return gram(torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False))


def _climb(matrix: Tensor, compute: _Computation) -> Tensor:
    """Do one matrix ``[d, d]`` again in float64 with growing jitter."""
    _check_finite(matrix)
    double = _double(matrix)
    unit = torch.finfo(matrix.dtype).eps * float(double.diagonal().mean())
    for rung in JITTER_LADDER:
        shifted = double.clone()
        shifted.diagonal().add_(rung * unit)
        result, flags = compute(shifted.unsqueeze(0))
        cast = result[0].to(matrix)
        if bool(flags) and bool(cast.isfinite().all()):
            return cast
    values = torch.linalg.eigvalsh(double.cpu())
    low, high = float(values[0]), float(values[-1])
    raise NumericalError(
        f"a {_size(matrix)} {matrix.dtype} matrix is not positive definite, or its inverse overflows, even in float64 with jitter "
        f"{JITTER_LADDER[-1] * unit:.1e}: eigenvalues from {low:.3e} to {high:.3e}, "
        f"condition number {high / low if low else math.inf:.1e}; increase the damping"
    )


def _decompose(matrices: Sequence[Tensor], precisions: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    groups = _groups(matrices)
    outcomes = [_eigh(group.stack, precisions[group.places[0]]) for group in groups]
    passed = _all([flags for _, _, flags in outcomes])
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for group, (values, vectors, flags) in zip(groups, outcomes, strict=True):
        if not passed:
            for i in flags.logical_not().nonzero().flatten().tolist():
                values[i], vectors[i] = _eigh_again(group.stack[i], precisions[group.places[0]])
        values.clamp_(min=0.0)
        for (place, part), (_, columns) in zip(group.scatter(values, matrices), group.scatter(vectors, matrices), strict=True):
            results[place] = (part, columns)
    return [results[i] for i in range(len(matrices))]


def _eigh(stack: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(stack)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return stack.new_zeros(stack.shape[:-1]), torch.zeros_like(stack), stack.new_zeros(stack.shape[0], dtype=torch.bool)
    bound = NEGATIVE_TOLERANCE * math.sqrt(stack.shape[-1]) * eps * values.abs().amax(-1)
    # LAPACK may return finite values for a matrix that holds a NaN, so the input is looked at too.
    finite = torch.stack([x.isfinite().all(-1).all(-1) for x in (stack, vectors)]).all(0) & values.isfinite().all(-1)
    return values, vectors, finite & (values[..., 0] >= -bound)


def _eigh_again(matrix: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Decompose one matrix ``[d, d]`` in float64, then in float64 on the CPU."""
    _check_finite(matrix)
    lowest = math.nan
    for double in (_double(matrix), _double(matrix).cpu()):
        values, vectors, flags = _eigh(double.unsqueeze(0), eps)
        if bool(flags):
            return values[0].to(matrix), vectors[0].to(matrix)
        lowest = float(values.min())
    if lowest < 0:
        raise NumericalError(
            f"a {_size(matrix)} {matrix.dtype} matrix that should be positive semi-definite has an eigenvalue {lowest:.3e}, "
            "beyond rounding; check the statistics it was built from"
        )
    raise NumericalError(f"the eigendecomposition of a {_size(matrix)} {matrix.dtype} matrix failed in float64 on the CPU too")


def _double(matrix: Tensor) -> Tensor:
    """A float64 copy, on the CPU where the device has no float64."""
    return matrix.to("cpu" if matrix.device.type == "mps" else matrix.device, torch.float64)


def _check(matrix: Tensor) -> None:
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or not matrix.shape[-1]:
        raise ShapeError(f"a square matrix [..., d, d] with d >= 1 is needed, got shape {tuple(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"a float32 or float64 matrix is needed, got {matrix.dtype}; convert it first")


def _check_finite(matrix: Tensor) -> None:
    if not bool(matrix.isfinite().all()):
        raise NumericalError(f"a {_size(matrix)} {matrix.dtype} matrix holds NaN or infinity; check the statistics it was built from")


def _size(matrix: Tensor) -> str:
    return f"{matrix.shape[-2]} x {matrix.shape[-1]}"
