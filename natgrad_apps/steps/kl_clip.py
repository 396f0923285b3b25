"""KL clip: scales the preconditioned gradient before momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from natgrad_apps.errors import check_positive
from natgrad_apps.steps.base import Outcome, Proposal, StepRule


@dataclass(frozen=True)
class KLClip(StepRule):
    """``nu = min(1, sqrt(kl_clip / sum lr^2 <P, g>))``, ``d = momentum d_prev - nu lr P``.

    The convention of the public K-FAC optimizers and of baselines' ``kfac_clip``: no factor 2, the damped metric, and
    momentum outside, so ``kl_clip`` corresponds to a trust region of radius ``kl_clip / 2`` for a single step and to
    more with momentum. `KLTrustRegion` bounds what is taken. Baselines' ACKTR multiplies what it has clipped by ``1 - momentum``, so
    that its steps are running means of clipped ones: its rule with a rate ``lr`` and a clip ``c`` is this one with
    ``lr (1 - momentum)`` and ``c (1 - momentum)^2``.
    Reference: Ba, Grosse & Martens, Distributed second-order optimization using Kronecker-factored approximations, ICLR 2017, section 5.

    Attributes:
        kl_clip: Bound, in nats.
    """

    kl_clip: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("kl_clip", self.kl_clip)

    def __call__(self, proposal: Proposal) -> Outcome:
        """See the class. ``predicted_kl`` is ``1/2 nu^2 lr^2 <P, g>``."""
        slope = proposal.slope()
        scale = torch.sqrt(self.kl_clip / slope.clamp_min(self.kl_clip))
        return Outcome(proposal.combine(scale), scale, scale.square() * slope / 2)
