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

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, EigenNormal, KroneckerNormal, Normal
from natgrad_apps.bayes.distributions.products import isotropic, precision_sum
from natgrad_apps.bayes.methods.base import Batch, Learner, Method, Momentum, Outcome, Problem, all_finite
from natgrad_apps.bayes.posterior import Part, Posterior
from natgrad_apps.blocks import Block
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.curvature.diagonal import Diagonal
from natgrad_apps.curvature.ekfac import EKFAC
from natgrad_apps.curvature.kfac import KFAC, cached, damped_factor, factored_shifts
from natgrad_apps.damping.tikhonov import FactoredTikhonov
from natgrad_apps.errors import ConfigError, check_positive
from natgrad_apps.linalg.spd import cholesky_many
from natgrad_apps.preconditioner import Preconditioner
from natgrad_apps.refresh.periodic import Periodic
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.steps.base import Proposal, StepRule
from natgrad_apps.steps.plain import Plain
from natgrad_apps.types import State


@dataclass(frozen=True)
class _Noisy(Method):
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
class NoisyAdam(_Noisy):
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
class NoisyKFAC(_Noisy):
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
class NoisyEKFAC(_Noisy):
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


class NoisyLearner(Learner):
    """Running averages of the core, momentum, and the posterior made of them.

    Args:
        method: Hyperparameters.
        problem: What is to be solved.

    Attributes:
        core: The shared core; its damping is ``gamma_in + gamma_ex`` of each block.
    """

    def __init__(self, method: _Noisy, problem: Problem) -> None:
        super().__init__(problem, method.lr)
        self.method = method
        fisher = Fisher.of(method.fisher)
        if fisher.kind == "forward_only":
            raise ConfigError("fisher='forward_only' ignores the likelihood, so it defines no posterior; use 'mc', 'exact' or 'empirical'")
        seeded = Fisher(fisher.kind, fisher.samples, fisher.sharing, fisher.subsample, fisher.seed + problem.seed)
        refresh = Periodic(method.statistics_period, method.inverse_period)
        self.core = Preconditioner(problem.model, method.curvature(), damping=FactoredTikhonov(), refresh=refresh, fisher=seeded)
        self._momentum = Momentum(method.momentum)
        self._damped: dict[str, tuple[Normal, Normal]] = {}  # a posterior, and it with the extrinsic damping
        self._intrinsic_of_blocks()  # raises if the prior does not fit
        self.posterior = Posterior(lambda: problem.weights.mean, self._first_parts())
        if method.initial_batches:
            for block in self.core.blocks.values():
                _prime(block, method.initial_curvature, method.initial_batches)

    def _names(self, block: Block) -> tuple[str, ...]:
        return tuple(self.problem.weights.names[p] for p in block.parameters)

    def _intrinsic_of_blocks(self) -> dict[str, Tensor]:
        """``gamma_in`` of every block."""
        prior = self.problem.prior
        return {n: self.problem.intrinsic(prior.common(self._names(b), n)) for n, b in self.core.blocks.items()}

    def _part(self, block: Block, normal: Normal) -> Part:
        return self.problem.prior.join(Part(self._names(block), normal, block.to_matrix, partial(_unpack, block)))

    def _first_parts(self) -> dict[str, Part]:
        """Before the first batch: independent weights with the precision ``(f0 + gamma_in) N / lambda``."""
        parts = {}
        for name, intrinsic in self._intrinsic_of_blocks().items():
            block = self.core.blocks[name]
            flat = torch.ones(block.spec.shape, dtype=block.spec.dtype, device=block.spec.device)
            precision = (self.method.initial_curvature + intrinsic * self.problem.prior.share).to(flat) / self.problem.scale
            parts[name] = self._part(block, DiagonalNormal(flat * precision))
        return parts

    def gather(self, batch: Batch) -> Outcome:
        """Statistics and the gradient from one forward pass."""
        with self.core.capture():
            outputs = self.forward(batch)
            likelihood, targets = self.judge(outputs, batch)
            self.core.observe(likelihood, targets if self.core.fisher.kind == "empirical" else None)
        nll = -likelihood.log_prob(targets).mean()
        self.add(self.gradient(nll, batch))
        return Outcome(nll.detach(), self.problem.task.squared_error(outputs.detach(), targets))

    def discard(self) -> None:
        """Forget the gradient and the statistics of the step."""
        super().discard()
        self.core.discard()

    @torch.no_grad()
    def update(self) -> bool:
        """See `Learner`."""
        weights, prior = self.problem.weights, self.problem.prior
        gradients = self.take()
        intrinsic = self._intrinsic_of_blocks()
        extrinsic = self.method.damping
        self.core.block_damping = {name: value + extrinsic for name, value in intrinsic.items()}
        if not bool(self.core.update(all_finite(gradients))):
            return False
        averaged = self._momentum(prior.add_gradient(gradients, weights.live, self.problem.scale))
        self._follow(intrinsic)
        matrices = self.core.to_blocks({p: averaged[name] for name, p in weights.live.items()})
        used = {name: matrix for name, matrix in matrices.items() if self.core.known(name)}
        directions = self.core.from_blocks(self._precondition(used))
        self._apply({weights.names[p]: d for p, d in directions.items()}, averaged)
        self.steps += 1
        return True

    def _precondition(self, gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``(F + lambda/N P_0 + gamma_ex)^-1 v`` by block: from the core, or from the posterior where the prior has a structure."""
        if not self.problem.prior.joins:
            return self.core.multiply_power(gradients, -1)
        scale, extrinsic = self.problem.scale, self.method.damping
        result = {}
        for name, matrix in gradients.items():
            normal = self.posterior.parts[name].normal
            if extrinsic > 0 and (name not in self._damped or self._damped[name][0] is not normal):
                self._damped[name] = normal, precision_sum(normal, isotropic(normal, matrix.new_tensor(extrinsic / scale)))
            result[name] = (self._damped[name][1] if extrinsic > 0 else normal).multiply_covariance(matrix) / scale
        return result

    def _apply(self, directions: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        live = self.problem.weights.live
        names: Sequence[str] = list(directions)
        if not names:
            return
        proposal = Proposal(
            preconditioned=[directions[n] for n in names],
            gradients=[gradients[n] for n in names],
            velocity=[None] * len(names),
            lr=[self.lr / self._momentum.correction] * len(names),
            momentum=[0.0] * len(names),
            quadratic=lambda step: self.core.quadratic(self.core.to_blocks({live[n]: d for n, d in zip(names, step, strict=True)})),
        )
        for name, d in zip(names, self.method.step(proposal).update, strict=True):
            live[name].add_(d)

    def _follow(self, intrinsic: Mapping[str, Tensor]) -> None:
        """Rebuild the distributions of the blocks whose curvature or factors changed."""
        refreshed = set(self.core.refreshed)
        parts = {}
        for name, block in self.core.blocks.items():
            changed = name in refreshed or block.layer is None or self.method.follows_moments
            if changed and self.core.known(name):
                own = intrinsic[name] * self.problem.prior.share
                parts[name] = self._part(block, self.method.normal(block, self.problem.scale, own))
            elif name in self.posterior.parts:
                parts[name] = self.posterior.parts[name]
            else:  # a layer that turned out to be read, not called, and is bare parameters now
                parts[name] = self._first_parts()[name]
        self.posterior.parts = parts

    def state_dict(self) -> dict[str, Any]:
        """Core, momentum and posterior."""
        core = copy.deepcopy(self.core.state_dict())  # the core's own, as torch's, shares tensors that later steps change
        return {**super().state_dict(), "core": core, "momentum": self._momentum.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.core.load_state_dict(saved["core"])
        if set(self.core.blocks) != set(self.posterior.parts):
            self.posterior.parts = self._first_parts()
        super().load_state_dict(saved)
        self._momentum.load_state_dict(saved["momentum"], self.problem.weights.live)


def _unpack(block: Block, matrix: Tensor) -> Sequence[Tensor]:
    return block.from_matrix(matrix)


def _prime(block: Block, value: float, batches: int) -> None:
    """Begin the running averages of a block at ``F = value I``, which counts for a number of batches."""
    state, curvature, spec = block.state, block.curvature, block.spec
    if isinstance(curvature, KFAC):
        for name, part in curvature.parts(spec):
            size = {"A": spec.d_in, "G": spec.d_out}[name[0]]
            width = size if part is None else len(range(size)[part])
            eye = torch.eye(width, dtype=spec.dtype, device=spec.device) * value**0.5
            state.moments[name] = eye.expand(*spec.lead, width, width).clone()
        if isinstance(curvature, EKFAC):
            state.moments["s"] = torch.full(spec.shape, value, dtype=spec.dtype, device=spec.device)
    else:
        state.moments["diagonal"] = torch.full(spec.shape, value, dtype=spec.dtype, device=spec.device)
    state.count.fill_(batches)
