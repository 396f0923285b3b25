"""Leading eigenpairs of a sum of outer products that is never formed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natgrad_apps.bayes.per_example import ExampleGradients
from natgrad_apps.linalg.products import gram
from natgrad_apps.linalg.spd import eigh_many

# Columns of the start beyond the rank, and products with the matrix; see `leading_factor`.
OVERSAMPLING = 2
ITERATIONS = 4
# Up to this many columns their inner products are taken in any case: for linear layers these cost next to nothing.
FEW_COLUMNS = 600


class OuterSum:
    """``C C^T`` with ``C = [U, G_1, G_2, ...]: [n, c]``.

    Args:
        factor: ``U: [n, L]``.
        examples: ``G_i``, gradients of examples by column; all with the same parts.
    """

    def __init__(self, factor: Tensor, examples: Sequence[ExampleGradients]) -> None:
        self.factor, self.examples = factor, list(examples)

    @property
    def width(self) -> int:
        """``c``."""
        return self.factor.shape[1] + sum(part.width for part in self.examples)

    def project(self, x: Tensor) -> Tensor:
        """``C^T x`` for ``x: [n, k]``; cost ``n c k``."""
        return torch.cat([self.factor.mT @ x, *(part.project(x) for part in self.examples)])

    def expand(self, coefficients: Tensor) -> Tensor:
        """``C z`` for ``z: [c, k]``; cost ``n c k``."""
        first, *parts = coefficients.split([self.factor.shape[1], *(part.width for part in self.examples)])
        total: Tensor = (first.mT @ self.factor.mT).mT
        for part, z in zip(self.examples, parts, strict=True):
            total = total.add_(part.expand(z))
        return total

    def diagonal(self) -> Tensor:
        """``[n]``."""
        return torch.stack([self.factor.square().sum(1), *(part.squares() for part in self.examples)]).sum(0)

    def inner(self) -> Tensor:
        """``C^T C: [c, c]``."""
        blocks = [[part.cross(other) for other in self.examples] for part in self.examples]
        mixed = [part.project(self.factor) for part in self.examples]
        rows = [torch.cat([self.factor.mT @ self.factor, *(m.mT for m in mixed)], dim=1)]
        rows += [torch.cat([m, *row], dim=1) for m, row in zip(mixed, blocks, strict=True)]
        full = torch.cat(rows)
        return (full + full.mT) / 2

    def dense(self) -> Tensor:
        """``C C^T: [n, n]``; for few weights."""
        return torch.stack([gram(part.mT.contiguous()) for part in (self.factor, *(p.dense().mT for p in self.examples))]).sum(0)


def leading_factor(matrix: OuterSum, rank: int, start: Tensor, generator: torch.Generator) -> Tensor:
    r"""``U: [n, rank]`` with ``U U^T`` the best approximation of ``C C^T`` of that rank (Eckart-Young).

    Few columns: exactly. With the eigenvectors ``w`` of ``C^T C`` (``c x c``), ``C w`` is an eigenvector of ``C C^T`` with the norm
    ``sqrt(eigenvalue)``, so ``U = C W``; cost ``2 n c L`` for linear layers, ``n c^2`` for others, and ``c^3``. Few rows: from ``C C^T``
    itself; cost ``n^2 c``.

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
    size, width = matrix.factor.shape[0], rank + OVERSAMPLING
    products = (2 * ITERATIONS + 1) * width
    if matrix.width <= min(max(products, FEW_COLUMNS), size):
        [(_, vectors)] = eigh_many([matrix.inner()])
        found = matrix.expand(vectors[:, -rank:])
    elif size <= products:
        [(values, vectors)] = eigh_many([matrix.dense()])
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
