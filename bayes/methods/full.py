"""Full-covariance natural-gradient variational inference: the reference for small models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DenseNormal, Normal
from natgrad_apps.bayes.methods.base import Method, Problem, check_choice
from natgrad_apps.bayes.methods.flat import check_size
from natgrad_apps.bayes.methods.rows import RowsLearner
from natgrad_apps.bayes.per_example import ExampleGradients
from natgrad_apps.linalg.products import gram
from natgrad_apps.linalg.spd import cholesky_many


@dataclass(frozen=True)
class FullGaussian(Method):
    r"""One normal distribution over all weights.

    ::

        Sigma = (lambda/N) (F + diag(gamma))^-1,   gamma = lambda p / N
        F  <- decay F + (1 - decay) F_batch(w)
        mu <- mu - lr (F + diag(gamma) + damping I)^-1 momentum(g + gamma mu)

    ``F_batch``: with ``"exact"`` the generalized Gauss-Newton matrix ``1/M sum_i J_i^T H_i J_i``, ``H_i`` the Fisher of the outputs (for
    linear and logistic regression the Hessian, so the fixed point is that of exact Gaussian variational inference); with ``"empirical"``
    the second moment of the per-example gradients.

    Cost: ``M n^2`` for each output, ``n^3`` a step; memory ``2 n^2``.
    Reference: Khan & Rue, The Bayesian learning rule, JMLR 2023, arXiv 2107.04562, section 4.

    Attributes:
        lr: Learning rate; 1 is Newton's step.
        decay: Weight of the old value of ``F``.
        momentum: Weight of the old value of the gradient's average.
        damping: Extrinsic damping; never part of the posterior.
        fisher: ``"exact"`` or ``"empirical"``.
        initial_curvature: ``F`` begins at this multiple of the identity.
        max_size: Largest number of weights.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 0.1
    decay: float = 0.9
    momentum: float = 0.0
    damping: float = 0.0
    fisher: str = "exact"
    initial_curvature: float = 1.0
    max_size: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("fisher of FullGaussian", self.fisher, ("exact", "empirical"))

    def start(self, problem: Problem) -> FullLearner:
        """See `Method`."""
        return FullLearner(problem, self)


class FullLearner(RowsLearner):
    """The running average of ``F``.

    Args:
        problem: What is to be solved.
        method: Hyperparameters.
    """

    def __init__(self, problem: Problem, method: FullGaussian) -> None:
        super().__init__(problem, method.lr, method.momentum, method.fisher)
        check_size(self.flat.size, method.max_size, "the full covariance")
        self.method = method
        self.curvature = torch.diag(self.flat.full(method.initial_curvature))
        self.begin()

    def _intrinsic_matrix(self) -> Tensor:
        """``gamma: [n, n]``."""
        matrix = self.problem.prior.matrix(self.flat.names)
        return torch.diag(self.intrinsic()) if matrix is None else self.problem.intrinsic(matrix)

    def normal(self) -> Normal:
        """Cholesky factor of ``(F + diag(gamma)) N / lambda``."""
        [factor] = cholesky_many([(self.curvature + self._intrinsic_matrix()) / self.problem.scale])
        return DenseNormal(factor)

    def fold(self, examples: ExampleGradients, share: float) -> None:
        """Add ``G G^T``."""
        self.collect(gram(examples.dense()).mul_(share))

    def advance(self, gradient: Tensor, moment: Tensor | None) -> None:
        """See `FullGaussian`; `moment` is ``F_batch``."""
        assert moment is not None
        gamma = self._intrinsic_matrix()
        self.curvature = self.curvature.lerp(moment, 1 - self.method.decay)
        damping = torch.diag(self.flat.full(self.method.damping))
        [factor] = cholesky_many([self.curvature + gamma + damping])
        average = self.average(gradient.addmv(gamma, self.deviation())) / self.momentum.correction
        self.move(torch.cholesky_solve(average.unsqueeze(-1), factor).squeeze(-1))

    def averages(self) -> dict[str, Tensor]:
        """``F``."""
        return {"curvature": self.curvature}
