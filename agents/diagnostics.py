"""What an update did, in the names of SB3's logger."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from natgrad_apps.agents.heads import Change
from natgrad_apps.agents.objectives import ACTOR, CRITIC
from natgrad_apps.agents.value_normalization import NormalizedValue
from natgrad_apps.errors import NonFiniteWarning
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.types import Info

SPECTRUM_PERIOD = 100
"""Fewest updates between two computations of the eigenvalues, which cost several times as much as a refresh by Cholesky inverses."""


@dataclass(frozen=True)
class Losses:
    """Terms of the loss of one update, 0-d tensors, with SB3's signs.

    Attributes:
        policy_loss: ``-E[advantage log pi(a | s)]``.
        value_loss: Mean squared error of the critic, in squared units of the returns.
        entropy_loss: Negative mean entropy, in nats.
    """

    policy_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor

    def items(self) -> dict[str, Tensor]:
        """The terms by name."""
        return {f.name: getattr(self, f.name).detach() for f in fields(self)}


def describe_step(info: Info) -> dict[str, Tensor]:
    """What the optimizer reports of every update: predicted KL of the step, its scale, the damping, and the number of skipped updates.

    Where actor and critic have their own step rules, ``kl_scale`` is the actor's.
    """
    described = {"predicted_kl": info.predicted_kl, "kl_scale": info.scale, "damping": info.damping, "skipped_updates": info.skipped_steps}
    if CRITIC in info.objectives:
        described |= {"kl_scale": info.objectives[ACTOR].scale, "critic_kl_scale": info.objectives[CRITIC].scale}
    return described


def describe_change(change: Change) -> dict[str, Tensor]:
    """What an update did to the outputs over the rollout."""
    return {
        "measured_kl": change.actor_kl,
        "measured_critic_kl": change.critic_kl,
        "actor_share": change.actor_share,
        "critic_share": change.critic_share,
    }


def describe_policy(policy: ActorCriticPolicy) -> dict[str, Tensor]:
    """Statistics that the networks themselves hold: standard deviation of the actions, mean and deviation of normalized value targets."""
    described: dict[str, Tensor] = {}
    if isinstance(policy.value_net, NormalizedValue):
        described |= {"value_mean": policy.value_net.mean, "value_scale": policy.value_net.scale}
    if hasattr(policy, "log_std"):
        described["std"] = policy.log_std.detach().exp().mean()
    return described


@dataclass
class Spectrum:
    """Extreme eigenvalues of the undamped curvature, computed at most every `SPECTRUM_PERIOD` updates and repeated in between.

    Attributes:
        update: Update of the last computation.
        values: Its results by name; empty before the first.
    """

    update: int = -SPECTRUM_PERIOD
    values: dict[str, float] = field(default_factory=dict)

    def at(self, update: int, optimizer: NaturalGradient) -> dict[str, float]:
        """The eigenvalues to report for this update."""
        if update - self.update >= SPECTRUM_PERIOD:
            smallest, largest = optimizer.preconditioner.spectrum()
            self.values, self.update = to_numbers({"min_eigenvalue": smallest, "max_eigenvalue": largest}), update
        return self.values


def to_numbers(values: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors as numbers, with one transfer from the device."""
    return dict(zip(values, torch.stack([v.detach().double() for v in values.values()]).tolist(), strict=True))


def record(logger: Logger, numbers: dict[str, float], buffer: RolloutBuffer, update: int) -> None:
    """Log the numbers under ``train/``, and how much of the returns' variance the critic explained during the rollout."""
    logger.record("train/n_updates", update, exclude="tensorboard")
    logger.record("train/explained_variance", float(explained_variance(buffer.values.flatten(), buffer.returns.flatten())))
    for name, number in numbers.items():
        logger.record(f"train/{name}", int(number) if name == "skipped_updates" else number)


def warn_skipped(update: int, buffer: RolloutBuffer) -> None:
    """Say that an update was skipped, and which part of the rollout is to blame."""
    observations = buffer.observations.values() if isinstance(buffer, DictRolloutBuffer) else [buffer.observations]
    parts = {"observations": observations, "rewards": [buffer.rewards], "values": [buffer.values]}
    guilty = [name for name, arrays in parts.items() if not all(np.isfinite(a).all() for a in arrays)]
    cause = (
        f"the rollout's {' and '.join(guilty)} contain NaN or infinity" if guilty else "a gradient or Fisher statistic is NaN or infinite"
    )
    warnings.warn(
        f"update {update} was skipped, weights and curvature are unchanged: {cause}; stable_baselines3's VecCheckNan finds the step "
        "of the environment where it began",
        NonFiniteWarning,
        stacklevel=3,
    )
