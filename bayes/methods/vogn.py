"""VOGN: mean-field variational inference from true per-example squares of gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, Normal
from natgrad_apps.bayes.methods.base import Method, Problem
from natgrad_apps.bayes.methods.rows import RowsLearner
from natgrad_apps.bayes.per_example import ExampleGradients


@dataclass(frozen=True)
class VOGN(Method):
    r"""Variational online Gauss-Newton.

    With ``g_i`` the gradient of the log-likelihood of example ``i`` at the sampled weights and ``M`` the batch::

        Sigma = (lambda/N) diag(s + gamma)^-1,   gamma = lambda p / N
        s  <- decay s + (1 - decay) 1/M sum_i g_i^2
        m  <- momentum m + (1 - momentum) (g + gamma mu),   mu <- mu - lr m / (1 - momentum^t) / (s + gamma + damping)

    Squares are true per-example squares for every parameter (biases of convolutions, normalization layers, shared weights): from inputs
    and output gradients for linear layers that are called once, through `torch.func` for all others. Batch normalization and dropout in
    training mode are refused.

    Departures from Osawa et al.: the decay does not depend on the temperature; the extrinsic damping is not part of the posterior.

    Cost: for linear layers a product of squares beyond Adam's; for other parameters one more forward and backward pass by example, and
    the gradients of all examples in memory.
    Reference: Khan et al., ICML 2018, arXiv 1806.04854, section 3.3; Osawa et al., Practical deep learning with Bayesian principles,
    NeurIPS 2019, arXiv 1906.02506.

    Attributes:
        lr: Learning rate.
        decay: Weight of the old value of ``s``.
        momentum: Weight of the old value of the gradient's average.
        damping: Extrinsic damping; never part of the posterior.
        initial_curvature: First value of ``s``.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 0.01
    decay: float = 0.99
    momentum: float = 0.9
    damping: float = 0.0
    initial_curvature: float = 1.0

    def start(self, problem: Problem) -> VOGNLearner:
        """See `Method`."""
        return VOGNLearner(problem, self)


class VOGNLearner(RowsLearner):
    """The running average of the squares.

    Args:
        problem: What is to be solved.
        method: Hyperparameters.
    """

    def __init__(self, problem: Problem, method: VOGN) -> None:
        super().__init__(problem, method.lr, method.momentum)
        self.method = method
        self.squares = self.flat.full(method.initial_curvature)
        self.begin()

    def normal(self) -> Normal:
        """Precision ``(s + gamma_in) N / lambda``."""
        return DiagonalNormal(torch.add(self.squares, self.intrinsic()).div_(self.problem.scale))

    def fold(self, examples: ExampleGradients, share: float) -> None:
        """Add the squares."""
        self.collect(examples.squares().mul_(share))

    def advance(self, gradient: Tensor, moment: Tensor | None) -> None:
        """See `VOGN`; `moment` are the squares."""
        assert moment is not None
        gamma = self.intrinsic()
        self.squares.lerp_(moment, 1 - self.method.decay)
        average = self.average(self.pulled(gradient))
        self.move(average, torch.add(self.squares, gamma, out=moment).add_(self.method.damping), 1 / self.momentum.correction)

    def averages(self) -> dict[str, Tensor]:
        """``s``."""
        return {"squares": self.squares}
