r"""Noisy natural gradient: the shared K-FAC core with weights sampled from the posterior that its curvature defines.

Zhang, Sun, Duvenaud & Grosse, Noisy natural gradient as variational inference, ICML 2018, arXiv 1712.02390. Natural-gradient ascent of
``E_q sum_i log p(y_i | x_i, w) - lambda KL(q || N(0, I/p))`` over a normal ``q`` gives, with ``F`` the running average of the Fisher of
the mean log-likelihood at sampled weights and ``g`` the gradient of the mean negative log-likelihood there::

    gamma_in = lambda p / N
    Sigma    = (lambda / N) (F + gamma_in I)^-1
    mu      <- mu - alpha (F + (gamma_in + gamma_ex) I)^-1 momentum(g + gamma_in mu)

``gamma_ex`` is the damping of the step only. Departures from the paper: the gradient of the prior is taken at the mean (its expectation),
not at the sample; momentum is a running average with bias correction. Parameters that the outputs do not depend on keep their first
distribution.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, EigenNormal, KroneckerNormal, Normal
from natgrad_apps.bayes.methods.base import Method, Problem
from natgrad_apps.bayes.methods.noisy_learner import NoisyLearner
from natgrad_apps.blocks import Block
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.curvature.diagonal import Diagonal
from natgrad_apps.curvature.ekfac import EKFAC
from natgrad_apps.curvature.kfac import KFAC, cached, damped_factor, factored_shifts
from natgrad_apps.errors import check_positive
from natgrad_apps.linalg.spd import cholesky_many
from natgrad_apps.refresh.periodic import Periodic
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.steps.base import StepRule
from natgrad_apps.steps.plain import Plain
from natgrad_apps.types import State


@dataclass(frozen=True)
class NoisyMethod(Method):
    """Hyperparameters of a noisy natural gradient.

    Attributes:
        lr: ``alpha``.
        decay: Weight of the old value in the running average of the curvature.
        momentum: Weight of the old value in the running average of the gradient, in [0, 1).
        damping: Extrinsic damping ``gamma_ex``; never part of the posterior.
        statistics_period: Steps between statistics.
        inverse_period: Steps between factorizations.
        fisher: The Fisher estimate of the core; ``"mc"`` samples the targets from the model.
        initial_curvature: The running average begins at this multiple of the identity.
        initial_batches: Number of batches that this beginning counts for; with 0 the first batch replaces it.
        step: What makes a step of the preconditioned gradient: `Plain`, `KLClip` or `KLTrustRegion`.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 0.01
    decay: float = 0.99
    momentum: float = 0.9
    damping: float = 0.0
    statistics_period: int = 1
    inverse_period: int = 10
    fisher: Fisher | str = "mc"
    initial_curvature: float = 1.0
    initial_batches: int = 10
    step: StepRule = field(default_factory=Plain)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("initial_curvature", self.initial_curvature)
        check_positive("initial_batches", self.initial_batches, allow_zero=True)
        Periodic(self.statistics_period, self.inverse_period)

    @abstractmethod
    def curvature(self) -> Curvature:
        """The core's approximation of the layers."""

    @abstractmethod
    def layer_normal(self, state: State, scale: float, intrinsic: Tensor) -> Normal:
        """Posterior of a layer from the moments of its curvature.

        Args:
            state: Moments, and the cache of the last refresh.
            scale: ``lambda / N``.
            intrinsic: ``gamma_in``, 0-d.
        """

    def normal(self, block: Block, scale: float, intrinsic: Tensor) -> Normal:
        """Posterior of a layer or of a bare parameter, which is diagonal."""
        if block.layer is None:
            return diagonal_normal(block.state, scale, intrinsic)
        return self.layer_normal(block.state, scale, intrinsic)

    @property
    def follows_moments(self) -> bool:
        """Whether the posterior of layers changes with every batch, not only with a refresh."""
        return True

    def start(self, problem: Problem) -> NoisyLearner:
        """See `Method`."""
        return NoisyLearner(self, problem)


@dataclass(frozen=True)
class NoisyAdam(NoisyMethod):
    """Independent weights (section 3.2 of the paper): the diagonal of the Fisher.

    Squares are true per-example squares of gradients (targets sampled from the model by default), not the square of the minibatch
    gradient, so they do not depend on the batch size. Bare parameters, such as normalization gains: the square of the gradient of the
    summed sampled log-likelihood over the number of terms, which has the same expectation.

    Cost: one more backward pass to layer outputs than Adam, and a product of squares for each layer; memory ``3 n``.
    """

    def curvature(self) -> Curvature:
        """`Diagonal`."""
        return Diagonal(decay=self.decay)

    def layer_normal(self, state: State, scale: float, intrinsic: Tensor) -> Normal:
        """Precision ``(f + gamma_in) N / lambda``."""
        return diagonal_normal(state, scale, intrinsic)


@dataclass(frozen=True)
class NoisyKFAC(NoisyMethod):
    r"""A matrix-variate normal for each layer (section 3.3, equation 16).

    ``Sigma = (lambda/N) (S_in (x) A_in)^-1`` in row-major order, ``S_in = S + sqrt(gamma_in)/pi I``, ``A_in = A + pi sqrt(gamma_in) I``,
    ``pi^2 = (tr A / d_in) / (tr S / d_out)``: factored damping, for the posterior with ``gamma_in`` and for the step with ``gamma_in +
    gamma_ex``. A convolution's ``S`` is the sum over positions. Bare parameters have a diagonal posterior.

    Cost: that of the core's K-FAC; at a refresh two more Cholesky factors, at a step ``2 n (d_in + d_out)`` for a sample.

    Attributes:
        max_factor_size: Widest factor that is kept whole.
    """

    max_factor_size: int = 4096

    def curvature(self) -> Curvature:
        """`KFAC`."""
        return KFAC(decay=self.decay, max_factor_size=self.max_factor_size)

    @property
    def follows_moments(self) -> bool:
        """Only a refresh changes it: Cholesky factors are needed."""
        return False

    def layer_normal(self, state: State, scale: float, intrinsic: Tensor) -> Normal:
        """Cholesky factors of ``S_in`` and ``A_in``."""
        shift_a, shift_g = factored_shifts(state, intrinsic)
        shifted = State(state.spec, state.moments, {"shift_A": shift_a, "shift_G": shift_g})
        left, right = damped_factor(shifted, "G").blocks, damped_factor(shifted, "A").blocks
        factors = cholesky_many([*left, *right])
        return KroneckerNormal(tuple(factors[: len(left)]), tuple(factors[len(left) :]), left[0].new_tensor(scale))


@dataclass(frozen=True)
class NoisyEKFAC(NoisyMethod):
    """Independent weights in the eigenbasis of K-FAC, with the diagonal that is best there.

    ``Sigma = (lambda/N) Q diag(s + gamma_in)^-1 Q^T``, ``Q = Q_S (x) Q_A``: both dampings are exact. Bare parameters have a
    diagonal posterior.

    Cost: that of the core's EKFAC; at a step ``2 n (d_in + d_out)`` more for a sample.
    Reference: Bae, Zhang & Grosse, Eigenvalue corrected noisy natural gradient, 2018, arXiv 1811.12565.

    Attributes:
        max_factor_size: Widest factor that is kept whole.
    """

    max_factor_size: int = 4096

    def curvature(self) -> Curvature:
        """`EKFAC`."""
        return EKFAC(decay=self.decay, max_factor_size=self.max_factor_size)

    def layer_normal(self, state: State, scale: float, intrinsic: Tensor) -> Normal:
        """Variances ``(lambda/N) / (s + gamma_in)`` in the basis of the last refresh."""
        variance = scale / (state.moments["s"] + intrinsic.to(state.spec.dtype))
        left, right = (tuple(cached(state, f"vectors_{letter}").blocks) for letter in "GA")
        return EigenNormal(left, right, variance)


def diagonal_normal(state: State, scale: float, intrinsic: Tensor) -> Normal:
    """Precision ``(f + gamma_in) N / lambda`` from the moment of `Diagonal`."""
    return DiagonalNormal((state.moments["diagonal"] + intrinsic.to(state.spec.dtype)) / scale)
