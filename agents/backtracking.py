"""Limits of the KL that an update really made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from natgrad_apps.agents.objectives import ACTOR, CRITIC
from natgrad_apps.errors import ConfigError, check_positive
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.registry import record

if TYPE_CHECKING:  # configurations are read without SB3
    from natgrad_apps.agents.heads import Change


@dataclass(frozen=True)
class Backtracking:
    """Limits of the KL that an update really made over its rollout; a longer step is shortened until it keeps them.

    The predicted KL rests on running averages and on the Kronecker structure. Where the visited states change fast, it has been seen
    to fall short of the measured one by factors of 10 to 100. Each check costs one forward pass. As KL grows with the square of a
    step's length, a step that made ``kl > limit`` is multiplied by ``sqrt(limit / kl)``; what is checked last is not shortened again.

    Attributes:
        kl_limit: Limit of ``KL(old policy || new policy)``, the mean over the rollout's states, in nats.
        critic_kl_limit: Limit of ``KL(old critic || new critic)``, in nats; None for none.
        max_checks: Most forward passes of one update.

    Raises:
        ConfigError: A value is not legal.
    """

    kl_limit: float = 0.01
    critic_kl_limit: float | None = None
    max_checks: int = 4

    def __post_init__(self) -> None:
        check_positive("kl_limit", self.kl_limit)
        if self.critic_kl_limit is not None:
            check_positive("critic_kl_limit", self.critic_kl_limit)
        check_positive("max_checks", self.max_checks)
        if not isinstance(self.max_checks, int):
            raise ConfigError(f"max_checks must be a whole number, got {self.max_checks!r}")

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


RATE_FACTOR, RATE_BOUNDS = 1.5, (1e-8, 1.0)
"""Change of the learning rate after an update far from ``kl_target``, and its bounds."""


def adapted_rate(rate: float, kl: float, target: float) -> float:
    """The factor of the learning rate after an update: smaller above twice the target, larger below half of it.

    Reference: the continuous ACKTR of OpenAI's baselines (Wu et al. 2017), whose target is 0.002 nats.

    Args:
        rate: The learning rate of the update.
        kl: Measured KL of the policy, in nats; one that is no number leaves the rate.
        target: In nats.
    """
    if kl > 2 * target:
        rate /= RATE_FACTOR
    elif kl < target / 2:
        rate *= RATE_FACTOR
    return min(max(rate, RATE_BOUNDS[0]), RATE_BOUNDS[1])


def shorten(optimizer: NaturalGradient, check: Backtracking, changed: Callable[[], Change]) -> Tensor:
    """Shorten the last step until it keeps the limits.

    With one objective, or where actor and critic moved the same parameters, the whole step is shortened; else each one's own.

    Args:
        optimizer: It has just taken the step.
        check: The limits.
        changed: Measures what the step did.

    Returns:
        The factor of the actor's step over all checks, a 0-d tensor.
    """
    total = None
    for _ in range(check.max_checks):
        change = changed()
        actor, critic = check.factor(change.actor_kl, check.kl_limit), check.factor(change.critic_kl, check.critic_kl_limit)
        if optimizer.objectives.alone or optimizer.overlapping:
            actor = critic = torch.minimum(actor, critic)
        total = actor if total is None else total * actor
        if optimizer.preconditioner.branch_on_host and bool(actor == 1) and bool(critic == 1):
            break
        alone = optimizer.objectives.alone
        optimizer.shorten({name: actor for name in optimizer.objectives.rules} if alone else {ACTOR: actor, CRITIC: critic})
    assert total is not None
    return total
