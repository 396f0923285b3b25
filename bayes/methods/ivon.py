"""IVON: mean-field variational inference whose curvature needs gradients only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, Normal
from natgrad_apps.bayes.methods.base import Method, Problem
from natgrad_apps.bayes.methods.flat import FlatLearner
from natgrad_apps.errors import ConfigError, check_positive


@dataclass(frozen=True)
class IVON(Method):
    r"""Improved variational online Newton.

    With ``w = mu + e``, ``Sigma = (lambda/N) diag(h + gamma)^-1``, ``gamma = lambda p / N`` and ``g`` the gradient of the mean loss at
    ``w``, Price's theorem gives the diagonal of the expected Hessian from the noise. By parts, ``E[H_ii] = E[g_i e_i] / Sigma_ii``, so::

        ĥ  = (N/lambda) (h + gamma) mean_k[g e]
        m  <- b1 m + (1 - b1) g
        h  <- b2 h + (1 - b2) ĥ + 1/2 (1 - b2)^2 (h - ĥ)^2 / (h + gamma)
        mu <- mu - lr (h0 + gamma) clip((m / (1 - b1^t) + gamma mu) / (h + gamma))

    The last term of ``h`` keeps ``h + gamma > 0``: with ``a = (ĥ - h)/(h + gamma)`` and ``r = 1 - b2`` the new ``h + gamma`` is
    ``(h + gamma) (1 + r a + r^2 a^2 / 2)``, and that quadratic has no real zero.

    Departures from the paper: none in the update. The antithetic weight samples of `Variational` lower the variance of ``ĥ``.

    Cost: one forward and backward pass a sample, as Adam; memory ``5 n``.
    Reference: Shen, Daheim, Cong, Nickl, Marconi, Bazan, Yokota, Gurevych, Cremers, Khan & Möllenhoff, Variational learning is effective
    for large deep networks, ICML 2024, arXiv 2402.17641, algorithm 1.

    Attributes:
        lr: Learning rate; the step is scaled by ``h0 + gamma``, so it is comparable to that of SGD at the beginning.
        betas: ``b1`` and ``b2``, in [0, 1).
        initial_curvature: ``h0``.
        clip: Largest entry of the preconditioned gradient.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99999)
    initial_curvature: float = 1.0
    clip: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("initial_curvature", self.initial_curvature)
        if not isinstance(self.clip, (int, float)) or not self.clip > 0:
            raise ConfigError(f"clip must be > 0 (math.inf for none), got {self.clip!r}")

    def start(self, problem: Problem) -> IVONLearner:
        """See `Method`."""
        return IVONLearner(problem, self)


class IVONLearner(FlatLearner):
    """The running average ``h``.

    Args:
        problem: What is to be solved.
        method: Hyperparameters.

    Attributes:
        hessian: ``h``.
    """

    def __init__(self, problem: Problem, method: IVON) -> None:
        super().__init__(problem, method.lr, method.betas[0])
        self.method = method
        self.hessian = self.flat.full(method.initial_curvature)
        self.begin()

    def normal(self) -> Normal:
        """Precision ``(h + gamma) N / lambda``."""
        return DiagonalNormal(torch.add(self.hessian, self.intrinsic()).div_(self.problem.scale))

    def absorb(self, gradient: Tensor) -> None:
        """The gradient, and its product with the noise."""
        noise = self.flat.gather(self.problem.weights.live).sub_(self.mean())
        self.collect(noise.mul_(gradient))
        super().absorb(gradient)

    def advance(self, gradient: Tensor, moment: Tensor | None) -> None:
        """See `IVON`; `moment` is the mean product."""
        assert moment is not None
        gamma, rate, mu = self.intrinsic(), 1 - self.method.betas[1], self.deviation()
        # The noise came from the posterior's own precision, which is older than a prior that was learned since.
        (part,) = self.posterior.parts.values()
        change = part.normal.multiply_precision(moment).sub_(self.hessian)
        correction = change.square().div_(self.hessian + gamma)
        self.hessian.add_(change, alpha=rate).add_(correction, alpha=0.5 * rate**2)
        direction = torch.addcmul(self.average(gradient) / self.momentum.correction, gamma, mu).div_(self.hessian + gamma)
        limit = self.method.clip
        self.move(direction.clamp_(-limit, limit).mul_(self.method.initial_curvature + gamma))

    def averages(self) -> dict[str, Tensor]:
        """``h``."""
        return {"hessian": self.hessian}
