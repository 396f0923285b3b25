"""Step without a bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from natgrad_apps.steps.base import Outcome, Proposal, StepRule


@dataclass(frozen=True)
class Plain(StepRule):
    """``d = momentum d_prev - lr F_d^-1 g`` (heavy-ball momentum, as in `torch.optim.SGD` with the learning rate inside the buffer)."""

    def __call__(self, proposal: Proposal) -> Outcome:
        """See the class. ``predicted_kl`` is ``1/2 lr^2 <P, g>``."""
        slope = proposal.slope()
        return Outcome(proposal.combine(), torch.ones_like(slope), slope / 2)
