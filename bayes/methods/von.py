"""VON: mean-field variational inference from the diagonal of the Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, Normal
from natgrad_apps.bayes.methods.base import Batch, Method, Outcome, Problem, check_count
from natgrad_apps.bayes.methods.flat import FlatLearner


@dataclass(frozen=True)
class VON(Method):
    r"""Variational online Newton.

    With ``H`` the Hessian of the mean loss of the batch at the sampled weights and probes ``z`` of random signs (Hutchinson)::

        Sigma = (lambda/N) diag(max(s, 0) + gamma)^-1,   gamma = lambda p / N
        s  <- decay s + (1 - decay) mean_z[z * H z],     E[z * H z] = diag(H)
        mu <- mu - lr (g + gamma mu) / (max(s, 0) + gamma + damping)

    Departures from the paper: the diagonal is estimated, without bias, in place of ``n`` second derivatives; a negative average counts
    as zero, where the paper leaves the precision to become negative.

    Cost: for each probe a backward pass through the gradient, about twice a backward pass; memory that of the graph of the gradient.
    Reference: Khan et al., ICML 2018, arXiv 1806.04854, section 3.2.

    Attributes:
        lr: Learning rate.
        decay: Weight of the old value of ``s``.
        damping: Extrinsic damping; never part of the posterior.
        probes: Probes for each weight sample.
        initial_curvature: First value of ``s``.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 0.01
    decay: float = 0.99
    damping: float = 0.0
    probes: int = 1
    initial_curvature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("probes", self.probes)

    def start(self, problem: Problem) -> VONLearner:
        """See `Method`."""
        return VONLearner(problem, self)


class VONLearner(FlatLearner):
    """The running average of the Hessian's diagonal.

    Args:
        problem: What is to be solved.
        method: Hyperparameters.

    Attributes:
        hessian: ``s``.
    """

    def __init__(self, problem: Problem, method: VON) -> None:
        super().__init__(problem, method.lr, 0.0)
        self.method = method
        self.hessian = self.flat.full(method.initial_curvature)
        self._generator = torch.Generator(device=self.flat.device)
        self._generator.manual_seed(problem.seed)
        self.begin()

    def normal(self) -> Normal:
        """Precision ``(max(s, 0) + gamma) N / lambda``."""
        return DiagonalNormal((self.hessian.clamp_min(0) + self.intrinsic()) / self.problem.scale)

    def gather(self, batch: Batch) -> Outcome:
        """The gradient with its graph, and Hessian-vector products."""
        outputs = self.forward(batch)
        likelihood, targets = self.judge(outputs, batch)
        nll = -likelihood.log_prob(targets).mean()
        live = self.problem.weights.live
        found = torch.autograd.grad(nll * batch.weight, list(live.values()), create_graph=True, allow_unused=True)
        gradients = {name: g for name, g in zip(live, found, strict=True) if g is not None}
        self.add({name: g.detach() for name, g in gradients.items()})
        curved = [g for g in gradients.values() if g.requires_grad]
        for _ in range(self.method.probes if curved else 0):
            probe = torch.randint(0, 2, (self.flat.size,), generator=self._generator, device=self.flat.device).mul_(2).sub_(1)
            signs = dict(zip(live, self.flat.unpack(probe.to(self.flat.dtype)), strict=True))
            vectors = [signs[name] for name, g in gradients.items() if g.requires_grad]
            products = torch.autograd.grad(
                curved, list(live.values()), vectors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            self.collect(self.flat.pack(products) * probe / self.method.probes)
        return Outcome(nll.detach(), self.problem.task.squared_error(outputs.detach(), targets))

    def advance(self, gradient: Tensor, moment: Tensor | None) -> None:
        """See `VON`; `moment` is the diagonal, None if no gradient depends on a weight."""
        gamma = self.intrinsic()
        self.hessian.lerp_(torch.zeros_like(gradient) if moment is None else moment, 1 - self.method.decay)
        self.move(gradient.addcmul(gamma, self.deviation()), self.hessian.clamp_min(0) + gamma + self.method.damping)

    def averages(self) -> dict[str, Tensor]:
        """``s``."""
        return {"hessian": self.hessian}

    def state_dict(self) -> dict[str, Any]:
        """The generator too."""
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(saved)
        self._generator.set_state(saved["generator"].cpu())
