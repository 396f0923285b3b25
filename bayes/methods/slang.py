"""SLANG: variational inference with a precision of low rank plus a diagonal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import LowRankNormal, Normal
from natgrad_apps.bayes.eigensolver import OuterSum, leading_factor
from natgrad_apps.bayes.methods.base import Method, Problem
from natgrad_apps.bayes.methods.flat import RowsLearner
from natgrad_apps.bayes.per_example import ExampleGradients
from natgrad_apps.errors import ConfigError, check_fraction, check_positive, unknown_name
from natgrad_apps.likelihoods import Likelihood


@dataclass(frozen=True)
class SLANG(Method):
    r"""Structured low-rank approximate natural gradient.

    The running average of the curvature of the mean loss is ``F ~ U U^T + diag(d)``, ``U: [n, L]``, and ``Sigma = (lambda/N) (F +
    diag(gamma))^-1``. With the per-example gradients ``G: [n, M K]`` at ``K`` weight samples, scaled so that ``G G^T`` is their second
    moment, and ``b = 1 - decay``::

        U  <- leading L eigenvectors, times the roots of their eigenvalues, of  C C^T = decay U U^T + b G G^T
        d  <- decay d + max(0, diag(C C^T) - diag(U U^T))
        mu <- mu - lr (U U^T + diag(d + gamma + damping))^-1 (momentum(g) + gamma mu)

    so the diagonal of ``F`` is that of the average, exactly. The eigenpairs come from products with ``C`` only.

    Departures from the paper: the prior's share of the diagonal is ``gamma`` itself, not its running average, so a learned prior acts at
    once; per-example gradients come from `torch.func`, for any layer; Rayleigh-Ritz in place of Nystrom; learning rates are constant unless
    `Variational.set_lr` changes them.

    Cost: see `natgrad_apps.bayes.eigensolver.leading_factor`, with ``c = L + M K`` columns; memory ``2 n L``, and ``M K`` inputs and output
    gradients of linear layers, or gradients of other parameters.
    Reference: Mishkin, Kunstner, Nielsen, Schmidt & Khan, SLANG: Fast structured covariance approximations for Bayesian deep learning with
    natural gradient, NeurIPS 2018, arXiv 1811.04504, algorithm 1.

    Attributes:
        rank: ``L``.
        lr: Learning rate.
        decay: Weight of the old value of the curvature.
        momentum: Weight of the old value of the gradient's average.
        damping: Extrinsic damping; never part of the posterior.
        fisher: ``"empirical"``, or ``"exact"`` for the generalized Gauss-Newton matrix (a row for each example and output).
        initial_curvature: First value of ``d``; ``U`` begins at zero.

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

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ConfigError(f"rank must be an integer >= 1, got {self.rank!r}")
        check_positive("lr", self.lr, allow_zero=True)
        check_fraction("decay", self.decay)
        check_fraction("momentum", self.momentum)
        check_positive("damping", self.damping, allow_zero=True)
        check_positive("initial_curvature", self.initial_curvature, allow_zero=True)
        if self.fisher not in ("exact", "empirical"):
            raise unknown_name("fisher of SLANG", str(self.fisher), ("exact", "empirical"))

    def start(self, problem: Problem) -> SLANGLearner:
        """See `Method`."""
        return SLANGLearner(problem, self)


class SLANGLearner(RowsLearner):
    """``U`` and ``d``.

    Args:
        problem: What is to be solved.
        method: Hyperparameters.

    Attributes:
        factor: ``U``.
        diagonal: ``d``.
    """

    def __init__(self, problem: Problem, method: SLANG) -> None:
        super().__init__(problem, method.lr, method.momentum)
        if method.rank > self.flat.size:
            raise ConfigError(f"rank={method.rank} is more than the number of weights, {self.flat.size}; use FullGaussian or a lower rank")
        self.method = method
        self.factor = torch.zeros(self.flat.size, method.rank, dtype=self.flat.dtype, device=self.flat.device)
        self.diagonal = self.flat.full(method.initial_curvature)
        self._examples_seen: list[ExampleGradients] = []
        self._generator = torch.Generator(device=self.flat.device)
        self._generator.manual_seed(problem.seed)
        self.begin()

    def normal(self) -> Normal:
        """``(U U^T + diag(d + gamma)) N / lambda``."""
        scale = self.problem.scale
        return LowRankNormal(self.factor / scale**0.5, (self.diagonal + self.intrinsic()) / scale)

    def fold(self, examples: ExampleGradients, share: float) -> None:
        """Keep the gradients for ``"empirical"``."""
        if self.method.fisher == "empirical":
            self._examples_seen.append(examples.scaled(share**0.5))

    def columns(self, likelihood: Likelihood) -> Iterator[Tensor]:
        """Columns of a root of the outputs' Fisher for ``"exact"``."""
        if self.method.fisher == "exact":
            for (column,) in likelihood.fisher_columns():
                yield column

    def fold_column(self, examples: ExampleGradients, share: float) -> None:
        """Keep ``J^T v``."""
        self._examples_seen.append(examples.scaled(share**0.5))

    def discard(self) -> None:
        """Forget the gradients too."""
        super().discard()
        self._examples_seen = []

    @torch.no_grad()
    def update(self) -> bool:
        """See `SLANG`."""
        gradient, seen = self.take_vector(), self._examples_seen
        self.discard()
        decay, gamma = self.method.decay, self.intrinsic()
        matrix = OuterSum(self.factor * decay**0.5, [part.scaled((1 - decay) ** 0.5) for part in seen])
        diagonal = matrix.diagonal()
        if not bool((diagonal.sum() + gradient.sum()).isfinite()):
            return False
        self.steps += 1
        self.factor = leading_factor(matrix, self.method.rank, self.factor, self._generator)
        rest = diagonal.sub_(self.factor.square().sum(1)).clamp_min_(0)
        self.diagonal = self.diagonal * decay + rest
        direction = torch.addcmul(self.average(gradient) / self.momentum.correction, gamma, self.deviation())
        self.follow()
        if self.method.damping == 0:  # the posterior is the damped curvature already, and has its decomposition
            (part,) = self.posterior.parts.values()
            self.move(part.normal.multiply_covariance(direction) / self.problem.scale)
        else:
            self.move(LowRankNormal(self.factor, self.diagonal + gamma + self.method.damping).multiply_covariance(direction))
        return True

    def averages(self) -> dict[str, Tensor]:
        """``U`` and ``d``."""
        return {"factor": self.factor, "diagonal": self.diagonal}

    def state_dict(self) -> dict[str, Any]:
        """The generator too."""
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(saved)
        self._generator.set_state(saved["generator"].cpu())
