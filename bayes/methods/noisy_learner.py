"""The steps of noisy natural gradients: running averages of the core, momentum, and the posterior made of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, Normal
from natgrad_apps.bayes.distributions.products import isotropic, precision_sum
from natgrad_apps.bayes.methods.base import Batch, Learner, Momentum, Outcome, Problem, all_finite
from natgrad_apps.bayes.posterior import Part, Posterior
from natgrad_apps.blocks import Block
from natgrad_apps.curvature.ekfac import EKFAC
from natgrad_apps.curvature.kfac import KFAC
from natgrad_apps.damping.tikhonov import FactoredTikhonov
from natgrad_apps.errors import ConfigError
from natgrad_apps.preconditioner import Preconditioner
from natgrad_apps.refresh.periodic import Periodic
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.steps.base import Proposal

if TYPE_CHECKING:
    from natgrad_apps.bayes.methods.noisy import NoisyMethod


class NoisyLearner(Learner):
    """Running averages of the core, momentum, and the posterior made of them.

    Args:
        method: Hyperparameters.
        problem: What is to be solved.

    Attributes:
        core: The shared core; its damping is ``gamma_in + gamma_ex`` of each block.
    """

    def __init__(self, method: NoisyMethod, problem: Problem) -> None:
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
