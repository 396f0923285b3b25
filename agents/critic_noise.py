"""The critic as a likelihood ``Normal(V(s), scale)``: which scale, and what it means for the value loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer

from natgrad_apps.agents.options import AUTO
from natgrad_apps.agents.value_normalization import NormalizedValue, PopArt, observe_targets

if TYPE_CHECKING:
    from natgrad_apps.agents.acktr import ACKTR
    from natgrad_apps.ranks import Ranks

RESIDUAL_WEIGHT = 0.1
"""Weight of a new rollout in the running mean square of the critic's residual."""

SMALLEST_VARIANCE = 1e-8
"""Lower bound of that mean square, for environments without rewards."""


def critic_scale(agent: ACKTR) -> tuple[float, float]:
    """Standard deviation of the critic in the Fisher, in units of the rewards, and the factor of the value loss that belongs to it.

    With ``vf_fisher_coef="auto"`` the variance is the running mean square of the residual, which the agent keeps, and divides the loss.
    """
    options, unit = agent.natural_gradient, 1.0
    if isinstance(agent.policy.value_net, NormalizedValue) and isinstance(options.value_normalization, PopArt):
        unit = observe_targets(agent.optimizer, agent.policy.value_net, agent.rollout_buffer.returns, options.value_normalization)
    if options.vf_fisher_coef != AUTO:
        return unit / math.sqrt(float(options.vf_fisher_coef)), 1.0 / unit**2
    residual = _mean_square(agent.rollout_buffer, agent.ranks, agent.device)
    if math.isfinite(residual):
        old = agent._value_variance
        agent._value_variance = residual if old is None else old + RESIDUAL_WEIGHT * (residual - old)
    variance = 1.0 if agent._value_variance is None else max(agent._value_variance, SMALLEST_VARIANCE)
    return math.sqrt(variance), 1.0 / variance


def _mean_square(buffer: RolloutBuffer, ranks: Ranks | None, device: torch.device) -> float:
    """Of return minus value, over the rollouts of all ranks."""
    residual = float(np.square(buffer.returns - buffer.values, dtype=np.float64).mean())
    if ranks is None:
        return residual
    [mean] = ranks.mean([torch.tensor(residual, dtype=torch.float64, device=device)])
    return float(mean)
