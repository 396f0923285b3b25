"""Leading eigenpairs of a sum of outer products that is never formed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natgrad_apps.linalg.products import gram
from natgrad_apps.linalg.spd import eigh_many

# Columns of the start beyond the rank, and products with the matrix; see `leading_factor`.
OVERSAMPLING = 2
ITERATIONS = 4


class OuterSum:
    """``C C^T`` with ``C = [C_1, C_2, ...]: [n, c]``.

    Args:
        columns: The parts ``C_i: [n, c_i]``.
    """

    def __init__(self, columns: Sequence[Tensor]) -> None:
        self.columns = list(columns)

    @property
    def width(self) -> int:
        """``c``."""
        return sum(part.shape[1] for part in self.columns)

    def project(self, x: Tensor) -> Tensor:
        """``C^T x`` for ``x: [n, k]``; cost ``n c k``."""
        return torch.cat([part.mT @ x for part in self.columns])

    def expand(self, coefficients: Tensor) -> Tensor:
        """``C z`` for ``z: [c, k]``; cost ``n c k``."""
        parts = coefficients.split([part.shape[1] for part in self.columns])
        total: Tensor = self.columns[0] @ parts[0]
        for part, z in zip(self.columns[1:], parts[1:], strict=True):
            total = total.addmm_(part, z)
        return total

    def diagonal(self) -> Tensor:
        """``[n]``."""
        return torch.stack([part.square().sum(1) for part in self.columns]).sum(0)


def leading_factor(matrix: OuterSum, rank: int, start: Tensor, generator: torch.Generator) -> Tensor:
    r"""``U: [n, rank]`` with ``U U^T`` the best approximation of ``C C^T`` of that rank (Eckart-Young).

    Few columns: exactly. With the eigenvectors ``w`` of ``C^T C`` (``c x c``), ``C w`` is an eigenvector of ``C C^T`` with the norm
    ``sqrt(eigenvalue)``, so ``U = C W``; cost ``n c^2``. Few rows: from ``C C^T`` itself; cost ``n^2 c``.

    Else by subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011, algorithms 4.4 and 5.3) from a uniform random block of
    ``rank + 2`` columns to which `start` is added: four times ``Q <- orth(C C^T Q)``, then the eigenpairs of ``Q^T C C^T Q``; cost ``9 n c
    (rank + 2)``. With ``e`` the first eigenvalue beyond the block, the eigenvalue ``e_k`` has a relative error of about ``(e / e_k)^8``,
    its eigenvector one of about ``(e / e_k)^4``.

    Shapes: fewer columns than `rank` are filled up with zeros.

    Args:
        matrix: ``C C^T``.
        rank: Number of columns wanted.
        start: ``[n, k]``, a guess of the space, such as the result for a similar matrix.
        generator: Of the random block.
    """
    size, width = matrix.columns[0].shape[0], rank + OVERSAMPLING
    products = (2 * ITERATIONS + 1) * width
    if matrix.width <= min(products, size):
        [(_, vectors)] = eigh_many([gram(torch.cat(matrix.columns, dim=1))])
        found = matrix.expand(vectors[:, -rank:])
    elif size <= products:
        [(values, vectors)] = eigh_many([gram(torch.cat(matrix.columns, dim=1).mT.contiguous())])
        found = (vectors * values.sqrt())[:, -rank:]
    else:
        noise = torch.empty(size, width, dtype=start.dtype, device=start.device).uniform_(-1, 1, generator=generator)
        noise[:, : start.shape[1]] += start / start.norm().clamp_min(torch.finfo(start.dtype).tiny) * noise.norm() * (start.norm() > 0)
        q = noise
        for _ in range(ITERATIONS):
            q, _ = torch.linalg.qr(matrix.expand(matrix.project(q)))
        [(values, vectors)] = eigh_many([gram(matrix.project(q))])
        found = (q @ (vectors * values.sqrt()))[:, -rank:]
    return found if found.shape[1] == rank else torch.cat([found.new_zeros(size, rank - found.shape[1]), found], dim=1)
