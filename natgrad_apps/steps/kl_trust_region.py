"""KL trust region: bounds the step that is taken, momentum included."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from natgrad_apps.errors import check_positive
from natgrad_apps.steps.base import Outcome, Proposal, StepRule


@dataclass(frozen=True)
class KLTrustRegion(StepRule):
    """``d = momentum d_prev - lr P``, then ``d <- nu d`` with ``nu = min(1, sqrt(2 radius / d^T F d))``.

    To second order ``KL(p_theta || p_theta+d) = 1/2 d^T F d`` with the *undamped* Fisher, so the predicted KL of the
    step that is taken never exceeds the radius. Costs two products a layer.
    Reference: Wu, Mansimov, Liao, Grosse & Ba, Scalable trust-region method for deep reinforcement learning using
    Kronecker-factored approximation, NeurIPS 2017, arXiv 1708.05144, section 3.2. Departures: momentum is inside the
    bound, and the quadratic form is not the damped one.

    Attributes:
        radius: Bound of the predicted KL of one step, in nats (for a mean log-likelihood: nats for each term).
    """

    radius: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)

    def __call__(self, proposal: Proposal) -> Outcome:
        """See the class. ``predicted_kl`` is ``1/2 d^T F d`` of the step that is taken."""
        update = proposal.combine()
        quadratic = proposal.quadratic(update)
        total = torch.stack(list(quadratic.values())).sum().clamp_min(0.0)
        bound = 2 * self.radius
        # One part in a million below the bound, so that rounding in the products cannot lift the recomputed form above it.
        scale = torch.where(total > bound, torch.sqrt(bound / total.clamp_min(bound)) * (1 - 1e-6), torch.ones_like(total))
        square = scale.square()
        return Outcome([d.mul_(scale) for d in update], scale, square * total / 2, {name: q * square for name, q in quadratic.items()})
