"""Factorizations of symmetric positive (semi-)definite matrices that fail loudly, batched over equal sizes.

The common path computes in the dtype of its input and reads one flag back from the device for the whole call. Matrices that failed are done again,
one by one, in float64, then with jitter; what still fails raises `NumericalError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from natgrad_apps.errors import NumericalError, ShapeError

JITTER_LADDER = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4)
"""Jitter tried in float64, in units of machine epsilon (of the input's dtype) times the mean diagonal."""


def inverse_many(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Invert symmetric positive definite matrices ``[..., d, d]``; results are exactly symmetric and keep dtype and device."""
    return _factorize(matrices, _inverse)


def cholesky_many(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Lower Cholesky factors of symmetric positive definite matrices ``[..., d, d]``."""
    return _factorize(matrices, _cholesky)


def eigh_many(matrices: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Eigenvalues (ascending, not negative) ``[..., d]`` and eigenvectors ``[..., d, d]`` of symmetric positive semi-definite matrices."""
    return [_eigh(matrix) for matrix in matrices]


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Symmetric power of a positive (semi-)definite matrix ``[..., d, d]``, computed in float64 and returned in the dtype of `matrix`."""
    [(values, vectors)] = eigh_many([matrix.double()])
    if power < 0 and bool((values <= 0).any()):
        raise NumericalError(f"a singular {_size(matrix)} matrix has no power {power}; add damping to its diagonal first")
    return ((vectors * values.pow(power).unsqueeze(-2)) @ vectors.mT).to(matrix.dtype)


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(matrix, check_errors=False)
    return factor, (info == 0) & factor.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)


def _inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(matrix, check_errors=False)
    inverse = torch.cholesky_inverse(factor)
    inverse = (inverse + inverse.mT).mul_(0.5)
    return inverse, (info == 0) & inverse.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)


def _factorize(matrices: Sequence[Tensor], compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
    for matrix in matrices:
        _check_square(matrix)
    results, passed = [], []
    for matrix in matrices:
        result, ok = compute(matrix)
        results.append(result)
        passed.append(ok.all())
    if matrices and not bool(torch.stack([flag.cpu() for flag in passed]).all()):
        for i, (matrix, flag) in enumerate(zip(matrices, passed, strict=True)):
            if not flag:
                flat = [_retry(single, compute) for single in _singles(matrix)]
                results[i] = torch.stack(flat).reshape(matrix.shape)
    return results


def _retry(matrix: Tensor, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    if not bool(matrix.isfinite().all()):
        raise NumericalError(f"a {_size(matrix)} matrix holds NaN or infinite values")
    double = matrix.double()
    unit = torch.finfo(matrix.dtype).eps * float(double.diagonal().mean())
    for rung in JITTER_LADDER:
        shifted = double.clone()
        shifted.diagonal().add_(rung * unit)
        result, ok = compute(shifted)
        if bool(ok) and bool(result.to(matrix.dtype).isfinite().all()):
            return result.to(matrix.dtype)
    values = torch.linalg.eigvalsh(double)
    raise NumericalError(
        f"a {_size(matrix)} matrix is not positive definite: eigenvalues from {float(values[0]):.3e} to {float(values[-1]):.3e}; increase the damping"
    )


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    _check_square(matrix)
    if not bool(matrix.isfinite().all()):
        raise NumericalError(f"a {_size(matrix)} matrix holds NaN or infinite values")
    values, vectors = torch.linalg.eigh(matrix)
    bound = 10.0 * math.sqrt(matrix.shape[-1]) * torch.finfo(matrix.dtype).eps * values.abs().amax(-1)
    if bool((values[..., 0] < -bound).any()):
        raise NumericalError(f"a {_size(matrix)} matrix has a negative eigenvalue {float(values.min()):.3e}")
    return values.clamp_min(0.0), vectors


def _singles(matrix: Tensor) -> Iterator[Tensor]:
    yield from matrix.reshape(-1, *matrix.shape[-2:])


def _check_square(matrix: Tensor) -> None:
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(f"a square matrix [..., d, d] is needed, got shape {tuple(matrix.shape)}")


def _size(matrix: Tensor) -> str:
    return f"{matrix.shape[-2]} x {matrix.shape[-1]}"
