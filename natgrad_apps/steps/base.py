"""The contract of a step rule: how a preconditioned gradient and the momentum become the step that is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """What a step rule works with; lists run over the parameters, each tensor in its parameter's shape.

    Attributes:
        preconditioned: ``P = F_d^-1 g``.
        gradients: ``g``, weight decay included.
        velocity: The previous step of each parameter, or None before the first one.
        lr: Learning rate of each parameter's group.
        momentum: Momentum of each parameter's group.
        quadratic: Maps a step to ``d^T F d`` of each block, for the undamped ``F``.
    """

    preconditioned: Sequence[Tensor]
    gradients: Sequence[Tensor]
    velocity: Sequence[Tensor | None]
    lr: Sequence[float | Tensor]
    momentum: Sequence[float]
    quadratic: Callable[[Sequence[Tensor]], Mapping[str, Tensor]]

    def combine(self, scale: Tensor | float = 1.0) -> list[Tensor]:
        """``d = momentum d_prev - scale lr P`` for each parameter. Consumes `preconditioned`: the result takes its memory."""
        update = []
        for p, v, lr, momentum in zip(self.preconditioned, self.velocity, self.lr, self.momentum, strict=True):
            d = p.mul_(-lr * scale)
            update.append(d if v is None or momentum == 0 else d.add_(v, alpha=momentum))
        return update

    def slope(self) -> Tensor:
        """``sum lr^2 <P, g>``, the quadratic form of ``lr P`` in the damped metric (``F_d P = g``); negative by rounding only."""
        products = [lr**2 * torch.sum(p * g) for p, g, lr in zip(self.preconditioned, self.gradients, self.lr, strict=True)]
        return torch.stack(products).sum().clamp_min(0.0)


@dataclass(frozen=True)
class Outcome:
    """The step of each parameter, with what is reported in `natgrad_apps.types.Info`."""

    update: list[Tensor]
    scale: Tensor
    predicted_kl: Tensor
    quadratic: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRule(ABC):
    """Turns a proposal into a step, in tensor operations only."""

    @abstractmethod
    def __call__(self, proposal: Proposal) -> Outcome:
        """The step; it becomes the velocity of the next one."""
