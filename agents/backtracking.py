"""Limits of the KL that an update really made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from natgrad_apps.agents.objectives import CRITIC
from natgrad_apps.errors import ConfigError, check_positive
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.registry import record
from natgrad_apps.types import Info

if TYPE_CHECKING:  # configurations are read without SB3
    from natgrad_apps.agents.heads import Change


@dataclass(frozen=True)
class Backtracking:
    """Limits of the KL that an update really made over its rollout; a longer step is shortened, and checked again.

    The predicted KL rests on running averages and on the Kronecker structure. Where the visited states change fast, it has been seen
    to fall short of the measured one by factors of 10 to 100. Each check costs one forward pass of what it looks at. As KL grows with
    the square of a step's length, a step that made ``kl > limit`` is multiplied by ``sqrt(limit / kl)``. What the last check finds too
    long is shortened too and not checked again: with one check the limit is kept as well as that law holds, with several up to a few per
    cent; with a stride, as well as the mean over a part is that over the whole.

    Attributes:
        kl_limit: Limit of ``KL(old policy || new policy)``, the mean over the rollout's states, in nats.
        critic_kl_limit: Limit of ``KL(old critic || new critic)``, in nats; None for none.
        max_checks: Most checks of one update.
        stride: A check looks at every `stride`-th state, others in each update; with a recurrent policy or masks at all states of every
            `stride`-th environment. Above 1 an update costs one more forward pass of that part, for the outputs before the step.

    Raises:
        ConfigError: A value is not legal.
    """

    kl_limit: float = 0.01
    critic_kl_limit: float | None = None
    max_checks: int = 4
    stride: int = 1

    def __post_init__(self) -> None:
        check_positive("kl_limit", self.kl_limit)
        if self.critic_kl_limit is not None:
            check_positive("critic_kl_limit", self.critic_kl_limit)
        for name in ("max_checks", "stride"):
            check_positive(name, getattr(self, name))
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name} must be a whole number, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, spec: Backtracking | Mapping[str, Any]) -> Backtracking:
        """From itself or a mapping of some fields.

        Raises:
            ConfigError: Another type, an unknown field, or a value that is not legal.
        """
        return record(cls, spec, "backtracking")

    def factor(self, kl: Tensor, limit: float | None) -> Tensor:
        """What to multiply a step by that made `kl`: ``min(1, sqrt(limit / kl))``; a KL that is no number keeps the step."""
        if limit is None:
            return torch.ones_like(kl)
        return torch.where(kl > limit, torch.sqrt(limit / kl.clamp_min(limit)), torch.ones_like(kl))


@dataclass(frozen=True)
class Shortened:
    """What is left of a step.

    Attributes:
        factors: Of each objective's step over all checks, 0-d tensors.
        together: Whether all have the same one.
    """

    factors: Mapping[str, Tensor]
    together: bool

    @property
    def scale(self) -> Tensor:
        """The factor of the actor's step."""
        return next(iter(self.factors.values()))

    def predicted_kl(self, info: Info) -> Tensor:
        """Half the quadratic form of what is left, in nats; blocks of the curvature never span two objectives that move apart.

        Args:
            info: Of the whole step.
        """
        if self.together:
            return info.predicted_kl * self.scale.square()
        return torch.stack([info.objectives[name].predicted_kl * f.square() for name, f in self.factors.items()]).sum()


def shorten(optimizer: NaturalGradient, check: Backtracking, changed: Callable[[], Change]) -> Shortened:
    """Shorten the last step so that it keeps the limits.

    With one objective, or where actor and critic moved the same parameters, the whole step is shortened; else each one's own.

    Args:
        optimizer: It has just taken the step.
        check: The limits.
        changed: Measures what the step did.
    """
    together = optimizer.objectives.alone or optimizer.overlapping
    total: dict[str, Tensor] = {}
    for _ in range(check.max_checks):
        change = changed()
        actor, critic = check.factor(change.actor_kl, check.kl_limit), check.factor(change.critic_kl, check.critic_kl_limit)
        if together:
            actor = critic = torch.minimum(actor, critic)
        factors = {name: critic if name == CRITIC else actor for name in optimizer.objectives.rules}
        total = {name: total[name] * f if total else f for name, f in factors.items()}
        if optimizer.preconditioner.branch_on_host and bool(actor == 1) and bool(critic == 1):
            break
        optimizer.shorten(factors)
    return Shortened(total, together)
