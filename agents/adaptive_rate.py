"""A learning rate that follows the KL which updates really make."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natgrad_apps.agents.acktr import ACKTR

RATE_FACTOR, RATE_BOUNDS = 1.5, (1e-8, 1.0)
"""Change of the rate after an update far from ``kl_target``, and its bounds."""


def use_rate(agent: ACKTR) -> float:
    """Set the learning rate of the policy's next step, log and return it: the schedule's, times the factor that `follow` keeps.

    A critic with a step rule of its own has the schedule's.
    """
    optimizer = agent.optimizer
    scheduled = float(optimizer.param_groups[0]["lr"])
    if agent.natural_gradient.kl_target is None or scheduled <= 0:
        return scheduled
    rate = _bounded(scheduled * agent._rate_factor)
    agent._rate_factor = rate / scheduled
    policy_objective = next(iter(optimizer.objectives.rules))
    optimizer.objectives.rates[policy_objective] = agent._rate_factor
    agent.logger.record("train/learning_rate", rate)
    return rate


def follow(agent: ACKTR, rate: float, kl: float) -> None:
    """Adapt the factor of the schedule after an update.

    The schedule is where the rate begins, and it moves the rate by its own relative changes; an update that makes less than half of the
    target raises the rate again, so with a target a schedule that falls to zero does not end in small steps.

    Args:
        agent: It has a ``kl_target``.
        rate: Of the update.
        kl: Measured, of the policy, in nats.
    """
    target = agent.natural_gradient.kl_target
    if target is not None and rate > 0:
        agent._rate_factor *= adapted_rate(rate, kl, target) / rate


def adapted_rate(rate: float, kl: float, target: float) -> float:
    """The learning rate after an update: smaller above twice the target, larger below half of it.

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
    return _bounded(rate)


def _bounded(rate: float) -> float:
    return min(max(rate, RATE_BOUNDS[0]), RATE_BOUNDS[1])
