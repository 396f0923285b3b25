"""What a step did, as an `Info`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.objectives import Gradients
from natgrad_apps.preconditioner import Preconditioner
from natgrad_apps.steps.base import Outcome
from natgrad_apps.types import Bound, Info


@dataclass(frozen=True)
class Share:
    """One objective's part in a step: its rule's outcome, and the same update by parameter."""

    objective: str
    outcome: Outcome
    update: Gradients


def describe_step(core: Preconditioner, norms: Gradients, shares: Sequence[Share], update: Gradients, accepted: Tensor) -> Info:
    """What a step did.

    Args:
        core: The curvature it was made with.
        norms: Norm of each parameter's gradient.
        shares: Parts of the objectives, at least one.
        update: Their sum.
        accepted: Whether the step was taken, a 0-d boolean tensor.
    """
    bounds = {s.objective: Bound(s.outcome.predicted_kl, s.outcome.scale * accepted) for s in shares}
    predicted_kl, forms = shares[0].outcome.predicted_kl, shares[0].outcome.quadratic
    if len(shares) > 1:  # shares overlap where objectives share parameters
        forms = quadratic(core, update)
        predicted_kl = torch.stack(list(forms.values())).sum().clamp_min(0.0) / 2
    return Info(
        predicted_kl=predicted_kl,
        scale=torch.stack([bound.scale for bound in bounds.values()]).min(),
        damping=core.damping_value.clone(),
        skipped=~accepted,
        skipped_steps=core.skipped_steps.clone(),
        gradient_norms=_block_norms(core, norms),
        update_norms=_block_norms(core, dict(zip(update, torch._foreach_norm(list(update.values())), strict=True))),
        quadratic=forms,
        objectives=bounds,
    )


def describe_skipped(core: Preconditioner, norms: Gradients, objectives: Iterable[str]) -> Info:
    """A step that was not taken."""
    zero = torch.zeros((), device=core.damping_value.device)
    gradients = _block_norms(core, norms)
    return Info(
        predicted_kl=zero,
        scale=zero,
        damping=core.damping_value.clone(),
        skipped=~zero.bool(),
        skipped_steps=core.skipped_steps.clone(),
        gradient_norms=gradients,
        update_norms=dict.fromkeys(gradients, zero),
        quadratic={},
        objectives=dict.fromkeys(objectives, Bound(zero, zero)),
    )


def quadratic(core: Preconditioner, update: Gradients) -> Mapping[str, Tensor]:
    """``d^T F d`` of each block of a step, with the undamped Fisher."""
    return core.quadratic(core.to_blocks(update))


def _block_norms(core: Preconditioner, norms: Gradients) -> dict[str, Tensor]:
    """Norms of parameters joined over the parameters of each block."""
    joined = {}
    for name, block in core.blocks.items():
        parts = [norms[p] for p in block.parameters if p in norms]
        if parts:
            joined[name] = parts[0] if len(parts) == 1 else torch.stack([n.to(parts[0]) for n in parts]).norm()
    return joined
