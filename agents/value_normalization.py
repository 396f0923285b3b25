"""Value-target normalization: the critic's last layer works in units of the returns' running deviation, whatever the rewards' scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natgrad_apps.errors import ConfigError, check_fraction, check_positive
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.ranks import Ranks
from natgrad_apps.registry import record


@dataclass(frozen=True)
class PopArt:
    """Adaptive normalization of the value targets that preserves the critic's outputs.

    The critic is ``V(s) = sigma n(s) + mu`` with ``n(s) = w^T h(s) + b`` its last layer, ``mu`` and ``sigma`` running mean and deviation of
    the returns. When they move, ``w' = w sigma / sigma'`` and ``b' = (sigma b + mu - mu') / sigma'`` keep every ``V(s)`` (Proposition 1 of
    the paper), and the velocity is multiplied by ``sigma / sigma'`` like the step that it is.

    What it means for the natural gradient. The critic's model in normalized units, ``y = (v - mu) / sigma ~ Normal(n(s), 1/sqrt(c))``
    with ``c = vf_fisher_coef``, is ``v ~ Normal(V(s), sigma / sqrt(c))``: a KL divergence does not change with units, so the radius
    ``delta`` in nats allows ``mean (dV)^2 <= 2 delta sigma^2 / c``, and the value loss is divided by ``sigma^2``. With ``c = "auto"`` the
    model is ``Normal(V(s), rms residual)`` with or without normalization, and so are Fisher, loss and radius. As the natural gradient does
    not depend on coordinates either, what remains is the damping: ``lambda`` is added to ``F_w = sigma^2 / s^2 E[h h^T]`` (``s`` the
    model's deviation) instead of ``E[h h^T] / s^2``, which rewards of 1e6 make 1e12 times smaller than those of 1, far below any damping.

    Departures from the paper: the variance is that of the mixture of old and new targets, which does not cancel; the first rollout
    replaces the initial statistics, and the ``t``-th has at least the weight ``1/t``.
    Reference: van Hasselt, Guez, Hessel, Mnih & Silver, Learning values across many orders of magnitude, NeurIPS 2016, arXiv 1602.07714.

    Attributes:
        decay: Weight of the old statistics, per update, in [0, 1).
        smallest_scale: Lower bound of ``sigma``, in the units of the rewards.

    Raises:
        ConfigError: A value is not legal.
    """

    decay: float = 0.99
    smallest_scale: float = 1e-4

    def __post_init__(self) -> None:
        check_fraction("decay", self.decay)
        check_positive("smallest_scale", self.smallest_scale)

    @classmethod
    def of(cls, spec: PopArt | Mapping[str, Any]) -> PopArt:
        """From itself or a mapping of some fields.

        Raises:
            ConfigError: Another type, an unknown field, or a value that is not legal.
        """
        return record(cls, spec, "value_normalization")


class NormalizedValue(nn.Module):
    """The critic's last layer with its normalization: ``V = scale * linear(h) + mean``.

    Statistics are buffers, so they are saved and restored with the policy.

    Shapes: ``h: [N, d]`` -> ``V: [N, 1]``, in the units of the rewards.

    Args:
        linear: The layer, with a bias; it gives the normalized value.

    Attributes:
        mean: Running mean of the targets, ``mu``.
        scale: Their running deviation, ``sigma``.
        count: Number of rollouts seen.
    """

    mean: Tensor
    scale: Tensor
    count: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        like = linear.weight.detach()
        self.register_buffer("mean", like.new_zeros(()))
        self.register_buffer("scale", like.new_ones(()))
        self.register_buffer("count", like.new_zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Values in the units of the rewards."""
        values: Tensor = self.linear(features) * self.scale + self.mean
        return values

    @torch.no_grad()
    def move(self, mean: float, variance: float, rule: PopArt) -> Tensor:
        """Take new targets into the statistics and keep the outputs.

        Args:
            mean: Of the new targets.
            variance: Of the new targets, in squared units of the rewards.
            rule: How fast the statistics move.

        Returns:
            ``sigma / sigma'``, by which the layer's weight was multiplied; 0-d.
        """
        self.count += 1
        rate = self.count.reciprocal().clamp_min(1 - rule.decay)
        delta = mean - self.mean
        moved = (1 - rate) * self.scale.square() + rate * variance + rate * (1 - rate) * delta.square()
        scale = moved.sqrt().clamp_min(rule.smallest_scale)
        ratio = self.scale / scale
        self.linear.weight.mul_(ratio)
        self.linear.bias.mul_(ratio).sub_(rate * delta / scale)
        self.mean += rate * delta
        self.scale.copy_(scale)
        return ratio


def normalize_value(policy: nn.Module) -> None:
    """Give a policy's critic the normalization; the values stay as they are.

    Raises:
        ConfigError: The critic does not end in a linear layer with a bias.
    """
    head = getattr(policy, "value_net", None)
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ConfigError(
            f"value_normalization needs a policy whose value_net is nn.Linear with a bias, got {type(head).__name__} in "
            f"{type(policy).__name__}; use value_normalization=None"
        )
    policy.value_net = NormalizedValue(head)


def observe_targets(optimizer: NaturalGradient, head: NormalizedValue, targets: np.ndarray[Any, Any], rule: PopArt) -> float:
    """Take the returns of a rollout into the statistics; values, and what the momentum means for them, stay as they are.

    Args:
        optimizer: Of the policy; its ranks, if it has any, take the moments over all of their rollouts.
        head: The critic's last layer.
        targets: The returns, in the units of the rewards. If one is NaN or infinite, nothing moves.
        rule: How fast the statistics move.

    Returns:
        The deviation ``sigma`` in force.
    """
    wide = torch.as_tensor(targets, dtype=torch.float64)
    mean = _mean(optimizer.preconditioner.ranks, wide.mean(), head.scale)
    variance = _mean(optimizer.preconditioner.ranks, (wide - mean).square().mean(), head.scale)
    if math.isfinite(variance):
        ratio = head.move(mean, variance, rule)
        for p in head.linear.parameters():
            for name in optimizer.objectives.rules:
                velocity = optimizer.state[p].get(optimizer.objectives.velocity(name))
                if velocity is not None:
                    velocity.mul_(ratio)
    return float(head.scale)


def _mean(ranks: Ranks | None, value: Tensor, like: Tensor) -> float:
    """Mean over the ranks, which have equally many targets."""
    if ranks is None:
        return float(value)
    [mean] = ranks.mean([value.to(like.device)])
    return float(mean)
