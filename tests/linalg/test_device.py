"""The same functions on CUDA: equal results, and one host synchronization for a whole call of `inverse_many`."""

from __future__ import annotations

import pytest
import torch

from natgrad_apps.errors import NumericalError
from natgrad_apps.linalg import eigh_many, gram, inverse_many, matmul_nt, spd

pytestmark = pytest.mark.gpu


def matrices() -> list[torch.Tensor]:
    result = []
    for d in (5, 64, 5, 300, 64):
        x = torch.randn(2 * d, d, dtype=torch.float64)
        result.append((x.mT @ x / d + 0.1 * torch.eye(d, dtype=torch.float64)).cuda())
    return result


def test_results_equal_those_of_the_cpu() -> None:
    for matrix, inverse, (values, vectors) in zip(matrices(), inverse_many(matrices()), eigh_many(matrices()), strict=True):
        assert inverse.is_cuda
        assert torch.equal(inverse, inverse.mT)
        assert values.shape == vectors.shape[:-1] == matrix.shape[:-1]
    fixed = matrices()
    for inverse, reference in zip(inverse_many(fixed), inverse_many([matrix.cpu() for matrix in fixed]), strict=True):
        torch.testing.assert_close(inverse.cpu(), reference, rtol=1e-10, atol=1e-10)


def test_nothing_but_the_final_check_synchronizes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = matrices()
    inverse_many(given)  # library handles are made on first use
    monkeypatch.setattr(spd, "_all", lambda flags: True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        inverse_many(given)
        gram(given[3])
        matmul_nt(given[3], given[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_matrix_that_fails_is_named() -> None:
    with pytest.raises(NumericalError, match="3 x 3"):
        inverse_many([torch.eye(4).cuda(), -torch.eye(3).cuda()])
