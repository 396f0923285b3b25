"""Inverses, Cholesky factors and eigendecompositions against dense float64 results, and how they fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from natgrad_apps.errors import NumericalError, ShapeError
from natgrad_apps.linalg import cholesky_many, eigh_many, inverse_many, matrix_power, spd


def with_eigenvalues(values: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with the given eigenvalues in a random basis."""
    d = len(values)
    q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    matrix: Tensor = (q * values.double()) @ q.mT
    return (matrix + matrix.mT) / 2


def mixed() -> list[Tensor]:
    """Sizes that repeat (stacked), stand alone, are 1 x 1, batched, and of two dtypes."""
    matrices = [with_eigenvalues(torch.linspace(0.5, 3.0, d), seed) for seed, d in enumerate((4, 7, 4, 1, 70, 70, 4))]
    matrices[2] = matrices[2].float()
    matrices.append(torch.stack([with_eigenvalues(torch.linspace(1.0, 2.0, 4), seed) for seed in range(6)]).reshape(2, 3, 4, 4))
    matrices.append(torch.full((5, 1, 1), 4.0))
    return matrices


def tolerance(matrix: Tensor) -> float:
    """For condition numbers below 10 and sizes below 100: a few hundred roundings."""
    return 1e3 * torch.finfo(matrix.dtype).eps


def test_inverse_many_equals_the_dense_inverse() -> None:
    matrices = mixed()
    for matrix, inverse in zip(matrices, inverse_many(matrices), strict=True):
        assert (inverse.shape, inverse.dtype) == (matrix.shape, matrix.dtype)
        assert torch.equal(inverse, inverse.mT)
        torch.testing.assert_close(inverse.double(), torch.linalg.inv(matrix.double()), rtol=0, atol=tolerance(matrix))


def test_the_path_of_other_devices_gives_the_same_inverses(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [*mixed(), torch.ones(6, 6, dtype=torch.float64)]
    expected = inverse_many(matrices)
    monkeypatch.setattr(spd, "_by_lapack", spd._by_triangles)
    for inverse, reference in zip(inverse_many(matrices)[:-1], expected[:-1], strict=True):
        assert torch.equal(inverse, inverse.mT)
        torch.testing.assert_close(inverse, reference, rtol=0, atol=tolerance(reference))
    for broken in (torch.zeros(2, 2), torch.full((2, 2), math.nan)):
        with pytest.raises(NumericalError):
            inverse_many([broken])


def test_cholesky_many_equals_the_dense_factor() -> None:
    matrices = mixed()
    for matrix, factor in zip(matrices, cholesky_many(matrices), strict=True):
        assert (factor.shape, factor.dtype) == (matrix.shape, matrix.dtype)
        assert torch.equal(factor, factor.tril())
        torch.testing.assert_close(factor.double(), torch.linalg.cholesky(matrix.double()), rtol=0, atol=tolerance(matrix))


def test_eigh_many_reconstructs_and_sorts() -> None:
    matrices = mixed()
    for matrix, (values, vectors) in zip(matrices, eigh_many(matrices), strict=True):
        assert (values.shape, vectors.shape, values.dtype) == (matrix.shape[:-1], matrix.shape, matrix.dtype)
        assert (values.diff() >= 0).all()
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype).expand_as(matrix)
        torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=tolerance(matrix))
        torch.testing.assert_close((vectors * values.unsqueeze(-2)) @ vectors.mT, matrix, rtol=0, atol=tolerance(matrix))


def test_arguments_are_left_alone() -> None:
    matrices = mixed()
    copies = [matrix.clone() for matrix in matrices]
    inverse_many(matrices)
    cholesky_many(matrices)
    eigh_many(matrices)
    assert all(torch.equal(matrix, copy) for matrix, copy in zip(matrices, copies, strict=True))


def test_no_matrices_give_no_results() -> None:
    assert inverse_many([]) == cholesky_many([]) == eigh_many([]) == []


@pytest.mark.parametrize("d", [1, 5, 70])
def test_every_scale_of_float32_that_the_inverse_can_represent(d: int) -> None:
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        matrix = (with_eigenvalues(torch.linspace(0.5, 3.0, d)) * scale).float()
        [inverse] = inverse_many([matrix])
        torch.testing.assert_close(inverse.double() * scale, torch.linalg.inv(matrix.double()) * scale, rtol=0, atol=tolerance(matrix))


def test_ill_conditioned_float32_is_as_good_as_a_float64_inverse_of_the_same_matrix() -> None:
    # Diagonally scaled: condition number 1e12, yet every entry of the inverse is well determined.
    scales = torch.logspace(-6, 0, 20, dtype=torch.float64)
    core = with_eigenvalues(torch.linspace(0.5, 2.0, 20))
    matrix = (scales.unsqueeze(1) * core * scales).float()
    [inverse] = inverse_many([matrix])
    reference = torch.linalg.inv(matrix.double())
    scaled = (inverse.double() - reference) * scales * scales.unsqueeze(1)
    assert scaled.abs().max() < 1e-5


def test_a_pivot_that_float32_would_lose_is_computed_in_float64() -> None:
    # The last pivot is 2^-24 exactly; float32 arithmetic leaves nothing of it, because the first pivots are not squares.
    matrix = torch.tensor([[3.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 0.5 + 2.0**-24]])
    exact = torch.linalg.inv(matrix.double())
    assert exact[2, 2] == pytest.approx(2.0**24)
    [inverse] = inverse_many([matrix])
    torch.testing.assert_close(inverse.double(), exact, rtol=1e-6, atol=0)


def test_condition_1e12_in_float32_gives_a_positive_definite_inverse() -> None:
    matrix = with_eigenvalues(torch.logspace(-12, 0, 40)).float()
    [inverse] = inverse_many([matrix])
    [factor] = cholesky_many([matrix])
    assert inverse.isfinite().all()
    assert (torch.linalg.eigvalsh(inverse.double()) > 0).all()
    # The stated ladder adds at most 1e4 eps times the mean diagonal.
    shift = 1.1e4 * 1.2e-7 * float(matrix.diagonal().mean())
    assert torch.linalg.matrix_norm(factor.double() @ factor.double().mT - matrix.double(), 2) < shift


def test_a_singular_matrix_gets_the_stated_jitter() -> None:
    matrix = torch.ones(6, 6, dtype=torch.float64)
    [inverse] = inverse_many([matrix])
    eps = torch.finfo(torch.float64).eps
    smallest = 1 / torch.linalg.eigvalsh(inverse)[-1]
    assert eps / 10 < smallest < 1.1e4 * eps


def test_only_the_matrix_that_failed_is_done_again() -> None:
    good = with_eigenvalues(torch.linspace(0.5, 3.0, 6))
    together = inverse_many([good, torch.ones(6, 6, dtype=torch.float64), good])
    [alone] = inverse_many([good])
    torch.testing.assert_close(together[0], alone, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(together[2], alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("function", [inverse_many, cholesky_many])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_indefinite_matrix_raises_with_size_and_condition(function, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    matrix = with_eigenvalues(torch.tensor([-0.5, 1.0, 2.0])).to(dtype)
    with pytest.raises(NumericalError, match=r"3 x 3 .* eigenvalues from -5\.000e-01 to 2\.000e\+00, condition number -4\.0e\+00"):
        function([torch.eye(3, dtype=dtype), matrix])


def test_a_zero_matrix_raises() -> None:
    with pytest.raises(NumericalError, match="condition number inf"):
        inverse_many([torch.zeros(2, 2)])


def test_an_inverse_that_overflows_raises() -> None:
    with pytest.raises(NumericalError, match="overflows"):
        inverse_many([torch.eye(2) * 1e-42])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (3, 3)])
@pytest.mark.parametrize("function", [inverse_many, cholesky_many, eigh_many])
@pytest.mark.parametrize("d", [4, 80])
def test_non_finite_input_raises_at_once(function, place: tuple[int, int], value: float, d: int) -> None:  # type: ignore[no-untyped-def]
    matrix = torch.eye(d)
    matrix[place] = matrix[place[1], place[0]] = value
    with pytest.raises(NumericalError, match=f"{d} x {d} torch.float32 matrix holds NaN or infinity"):
        function([torch.eye(d), matrix])


def test_eigenvalues_below_zero_by_rounding_become_zero() -> None:
    x = torch.randn(10, 60, generator=torch.Generator().manual_seed(0))
    matrix = x.mT @ x
    assert torch.linalg.eigvalsh(matrix)[0] < 0
    [(values, _)] = eigh_many([matrix])
    assert values[0] == 0
    torch.testing.assert_close(values[50:].double(), torch.linalg.eigvalsh(matrix.double())[50:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_materially_negative_eigenvalue_raises(dtype: torch.dtype) -> None:
    bound = 10 * math.sqrt(3) * torch.finfo(dtype).eps
    for factor, legal in ((0.5, True), (3.0, False)):
        matrix = torch.diag(torch.tensor([-factor * bound, 0.5, 1.0], dtype=dtype))
        if legal:
            assert eigh_many([matrix])[0][0].tolist() == [0.0, 0.5, 1.0]
        else:
            with pytest.raises(NumericalError, match=r"3 x 3 .* beyond rounding"):
                eigh_many([matrix])


def test_eigh_falls_back_when_the_first_decomposition_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_eigenvalues(torch.linspace(0.5, 3.0, 5)).float()
    eigh = torch.linalg.eigh
    seen: list[torch.dtype] = []

    def fails_in_float32(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x.dtype)
        if x.dtype == torch.float32:
            raise torch.linalg.LinAlgError("failed to converge")  # type: ignore[attr-defined]
        values, vectors = eigh(x)
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", fails_in_float32)
    [(values, vectors)] = eigh_many([matrix])
    assert seen == [torch.float32, torch.float64]
    torch.testing.assert_close((vectors * values) @ vectors.mT, matrix, rtol=1e-5, atol=1e-6)

    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (torch.full(x.shape[:-1], math.nan), torch.full_like(x, math.nan)))
    with pytest.raises(NumericalError, match="failed in float64 on the CPU"):
        eigh_many([matrix])


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrix_power(power: float, dtype: torch.dtype) -> None:
    values = torch.logspace(-3, 0, 9, dtype=torch.float64)
    matrix = torch.stack([with_eigenvalues(values, seed) for seed in range(3)]).to(dtype)
    result = matrix_power(matrix, power)
    assert (result.dtype, result.shape) == (dtype, matrix.shape)
    assert torch.equal(result, result.mT)
    exact, vectors = torch.linalg.eigh(matrix.double())
    reference = (vectors * exact.pow(power).unsqueeze(-2)) @ vectors.mT
    # One rounding to the dtype of the largest entry is all that float64 arithmetic leaves.
    torch.testing.assert_close(result.double(), reference, rtol=0, atol=4 * torch.finfo(dtype).eps * float(reference.abs().max()) + 1e-10)


def test_matrix_power_of_singular_matrices() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    matrix = x.mT @ x
    root = matrix_power(matrix, 0.5)
    torch.testing.assert_close(root @ root, matrix, rtol=0, atol=1e-4)
    with pytest.raises(NumericalError, match=r"a singular 8 x 8 matrix has no power -0\.5; add damping"):
        matrix_power(matrix, -0.5)
    with pytest.raises(NumericalError, match="overflows"):
        matrix_power(torch.eye(2) * 1e-30, -2)


@pytest.mark.parametrize("matrix", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(0, 0), torch.zeros(2, 2, dtype=torch.bfloat16)])
def test_what_is_no_matrix_is_refused(matrix: Tensor) -> None:
    for function in (inverse_many, cholesky_many, eigh_many):
        with pytest.raises(ShapeError, match="needed, got"):
            function([matrix])
