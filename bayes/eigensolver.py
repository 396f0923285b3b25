"""Leading eigenpairs of a sum of outer products that is never formed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natgrad_apps.bayes.per_example import ExampleGradients
from natgrad_apps.linalg.products import gram, matmul_nt
from natgrad_apps.linalg.spd import eigh_many


class OuterSum:
    """``C C^T`` with ``C = [w U, G_1, G_2, ...]: [n, c]``.

    Args:
        rows: ``U^T: [L, n]``.
        examples: ``G_i``, gradients of examples by column; all with the same parts.
        weight: ``w``.
    """

    def __init__(self, rows: Tensor, examples: Sequence[ExampleGradients], weight: float = 1.0) -> None:
        self.rows, self.examples, self.weight = rows, list(examples), weight

    @property
    def width(self) -> int:
        """``c``."""
        return len(self.rows) + sum(part.width for part in self.examples)

    def expand(self, coefficients: Tensor) -> Tensor:
        """``(C z)^T: [k, n]`` for ``z: [c, k]``; cost ``n c k``."""
        first, *parts = coefficients.split([len(self.rows), *(part.width for part in self.examples)])
        total: Tensor = (first.mT * self.weight) @ self.rows
        for part, z in zip(self.examples, parts, strict=True):
            part.expand(z, total)
        return total

    def diagonal(self) -> Tensor:
        """``[n]``."""
        total = squared_columns(self.rows).mul_(self.weight**2)
        for part in self.examples:
            total += part.squares()
        return total

    def inner(self) -> Tensor:
        """``C^T C: [c, c]``; for linear layers ``<g a^T, g' a'^T> = <g, g'> <a, a'>``, so no gradient of an example is formed."""
        blocks = [[part.cross(other) for other in self.examples] for part in self.examples]
        mixed = [part.project(self.rows) * self.weight for part in self.examples]
        lines = [torch.cat([matmul_nt(self.rows, self.rows) * self.weight**2, *(m.mT for m in mixed)], dim=1)]
        lines += [torch.cat([m, *line], dim=1) for m, line in zip(mixed, blocks, strict=True)]
        full = torch.cat(lines)
        return (full + full.mT) / 2

    def dense(self) -> Tensor:
        """``C C^T: [n, n]``; for few weights."""
        return torch.stack([gram(part) for part in (self.rows * self.weight, *(p.dense() for p in self.examples))]).sum(0)


def squared_columns(rows: Tensor) -> Tensor:
    """Sums of squares over the rows, ``[n]`` for ``[L, n]``; row by row, because reductions over a first dimension are slow."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total.addcmul_(row, row)
    return total


def leading_factor(matrix: OuterSum, rank: int) -> Tensor:
    r"""``U^T: [rank, n]`` with ``U U^T`` the best approximation of ``C C^T`` of that rank (Eckart-Young), without iterations.

    With the eigenvectors ``w`` of ``C^T C`` (``c x c``), ``C w`` is an eigenvector of ``C C^T`` with the norm ``sqrt(eigenvalue)``, so
    ``U = C W``: cost ``2 n c rank`` for linear layers, ``n c^2`` for others, and ``9 c^3``. If there are fewer weights than columns, from
    ``C C^T`` itself: cost ``n^2 c`` and ``9 n^3``.

    Shapes: fewer columns than `rank` are filled up with zeros.

    Args:
        matrix: ``C C^T``.
        rank: Number of rows wanted.
    """
    size = matrix.rows.shape[1]
    if matrix.width <= size:
        [(_, vectors)] = eigh_many([matrix.inner()])
        found = matrix.expand(vectors[:, -rank:])
    else:
        [(values, vectors)] = eigh_many([matrix.dense()])
        found = (vectors * values.sqrt())[:, -rank:].mT.contiguous()
    return found if len(found) == rank else torch.cat([found.new_zeros(rank - len(found), size), found])
