"""SLANG: variational inference with a precision of low rank plus a diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import LowRankNormal, Normal
from natgrad_apps.bayes.eigensolver import OuterSum, leading_factor, squared_columns
from natgrad_apps.bayes.methods.base import Method, Problem, check_choice, check_count
from natgrad_apps.bayes.methods.rows import RowsLearner
from natgrad_apps.bayes.per_example import ExampleGradients
from natgrad_apps.errors import ConfigError


@dataclass(frozen=True)
class SLANG(Method):
    r"""Structured low-rank approximate natural gradient.

    The running average of the curvature of the mean loss is ``F ~ U U^T + diag(d)``, ``U: [n, L]``, and ``Sigma = (lambda/N) (F +
    diag(gamma))^-1``. With the per-example gradients ``G: [n, M K]`` at ``K`` weight samples, scaled so that ``G G^T`` is their second
    moment, and ``b = 1 - decay``::

        U  <- leading L eigenvectors, times the roots of their eigenvalues, of  C C^T = decay U U^T + b G G^T
        d  <- decay d + max(0, diag(C C^T) - diag(U U^T))
        mu <- mu - lr (U U^T + diag(d + gamma + damping))^-1 (momentum(g) + gamma mu)

    so the diagonal of ``F`` is that of the average, exactly. The eigenpairs are exact, from inner products of the columns of ``C``.

    Curvature costs several times what a gradient does. `statistics_period` and `subsample` spend it less often and on fewer examples
    (with weights that leave the expectation of ``G G^T`` as it is); every step draws, and steps along the whole batch's gradient.

    Departures from the paper: those two, where 1 and 1 are the paper; the prior's share of the diagonal is ``gamma`` itself, not its
    running average, so a learned prior acts at once; per-example gradients come from `torch.func`, for any layer; the eigensolver; learning
    rates are constant unless `Variational.set_lr` changes them.

    Cost: a step that is not due: four products of a vector with ``U`` beyond Adam's. One that is due: see
    `natgrad_apps.bayes.eigensolver.leading_factor`, with ``c = L + M K / subsample`` columns. Memory ``3 n L`` (``5 n L`` with extrinsic
    damping), and ``c`` inputs and output gradients of linear layers, or gradients of other parameters.
    Reference: Mishkin, Kunstner, Nielsen, Schmidt & Khan, SLANG: Fast structured covariance approximations for Bayesian deep learning with
    natural gradient, NeurIPS 2018, arXiv 1811.04504, algorithm 1.

    Attributes:
        rank: ``L``.
        lr: Learning rate.
        decay: Weight of the old value of the curvature, when it is renewed.
        momentum: Weight of the old value of the gradient's average.
        damping: Extrinsic damping; never part of the posterior.
        fisher: ``"empirical"``, or ``"exact"`` for the generalized Gauss-Newton matrix (a row for each example and output).
        initial_curvature: First value of ``d``; ``U`` begins at zero.
        statistics_period: Steps between renewals of the curvature, once the running average is full (after ``1 / (1 - decay)`` steps).
        subsample: The curvature is that of every `subsample`-th example.

    Raises:
        ConfigError: A value is not legal.
    """

    rank: int = 8
    lr: float = 0.01
    decay: float = 0.99
    momentum: float = 0.9
    damping: float = 0.0
    fisher: str = "empirical"
    initial_curvature: float = 1.0
    statistics_period: int = 1
    subsample: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "statistics_period", "subsample"):
            check_count(name, getattr(self, name))
        check_choice("fisher of SLANG", self.fisher, ("exact", "empirical"))

    def start(self, problem: Problem) -> SLANGLearner:
        """See `Method`."""
        return SLANGLearner(problem, self)


class SLANGLearner(RowsLearner):
    """``U`` and ``d``.

    Args:
        problem: What is to be solved.
        method: Hyperparameters.

    Attributes:
        diagonal: ``d``.
    """

    def __init__(self, problem: Problem, method: SLANG) -> None:
        super().__init__(problem, method.lr, method.momentum, method.fisher)
        if method.rank > self.flat.size:
            raise ConfigError(f"rank={method.rank} is more than the number of weights, {self.flat.size}; use FullGaussian or a lower rank")
        self.method = method
        self._rows = torch.zeros(method.rank, self.flat.size, dtype=self.flat.dtype, device=self.flat.device)
        self.diagonal = self.flat.full(method.initial_curvature)
        self._seen: list[ExampleGradients] = []
        self._followed: Tensor | None = None
        self.begin()

    @property
    def factor(self) -> Tensor:
        """``U: [n, L]``, its columns contiguous in memory."""
        return self._rows.mT

    @factor.setter
    def factor(self, value: Tensor) -> None:
        self._rows = value.mT.contiguous()

    @property
    def due(self) -> bool:
        """Every step until the running average is full, then every `statistics_period` steps."""
        return self.steps * (1 - self.method.decay) < 1 or self.steps % self.method.statistics_period == 0

    def chosen(self, examples: int) -> slice:
        """Every `subsample`-th example, the first one moving from one time to the next."""
        stride = min(self.method.subsample, examples)
        times, rest = divmod(self.steps, self.method.statistics_period)
        return slice((times + rest) % stride, None, stride)

    def fold(self, examples: ExampleGradients, share: float) -> None:
        """Keep the gradients; their sum of squares tells whether they are finite."""
        self._seen.append(examples.scaled(((1 - self.method.decay) * share) ** 0.5))
        self.collect(examples.squares().sum())

    def discard(self) -> None:
        """Forget the gradients too."""
        super().discard()
        self._seen = []

    def normal(self) -> Normal:
        """``(U U^T + diag(d + gamma)) N / lambda``."""
        scale = self.problem.scale
        return LowRankNormal((self._rows / scale**0.5).mT, (self.diagonal + self.intrinsic()) / scale)

    def follow(self) -> None:
        """Decompose anew if the curvature or the prior has changed."""
        if self.intrinsic() is self._followed:
            return
        self._followed = self.intrinsic()
        super().follow()
        normal = self.posterior.parts["weights"].normal
        assert isinstance(normal, LowRankNormal)
        self._damped, self._unit = normal, self.problem.scale
        if self.method.damping > 0:  # else the posterior is the damped curvature already
            self._damped, self._unit = LowRankNormal(self.factor, self.diagonal + self._followed + self.method.damping), 1.0

    def advance(self, gradient: Tensor, moment: Tensor | None) -> None:
        """See `SLANG`."""
        del moment
        if self._seen:
            matrix = OuterSum(self._rows, self._seen, self.method.decay**0.5)
            diagonal = matrix.diagonal()
            self._rows = leading_factor(matrix, self.method.rank)
            rest = diagonal.sub_(squared_columns(self._rows)).clamp_min_(0)
            self.diagonal = rest.add_(self.diagonal, alpha=self.method.decay)
            self._followed = None
        self.follow()
        direction = torch.addcmul(self.average(gradient) / self.momentum.correction, self.intrinsic(), self.deviation())
        self.move(self._damped.multiply_covariance(direction), factor=1 / self._unit)

    def averages(self) -> dict[str, Tensor]:
        """``U`` and ``d``."""
        return {"factor": self.factor, "diagonal": self.diagonal}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(saved)
        self._followed = None
