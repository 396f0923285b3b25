"""What an update did, in the names of SB3's logger."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from natgrad_apps.agents.heads import Heads, measure_change
from natgrad_apps.errors import NonFiniteWarning
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.types import Info

SPECTRUM_PERIOD = 10
"""Fewest updates between two computations of the eigenvalues, which cost about as much as a refresh of all inverses."""


@dataclass(frozen=True)
class Losses:
    """Terms of the loss of one update, 0-d tensors, with SB3's signs."""

    policy_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor

    def items(self) -> dict[str, Tensor]:
        """The terms by name."""
        return {f.name: getattr(self, f.name).detach() for f in fields(self)}


class Diagnostics:
    """Records one update in SB3's logger.

    Every update: losses, ``predicted_kl``, ``kl_scale``, ``damping``, ``skipped_updates``. Only in updates that the logger will write, because they cost
    something: ``measured_kl``, ``measured_critic_kl``, ``actor_share``, ``critic_share`` (one forward pass) and ``min_eigenvalue``, ``max_eigenvalue`` (about a
    refresh, at most every `SPECTRUM_PERIOD` updates; the last values are repeated in between). All numbers leave the device in one transfer.

    Args:
        measure_kl: Whether to spend the forward pass.
    """

    def __init__(self, *, measure_kl: bool) -> None:
        self._measure_kl = measure_kl
        self._spectrum: dict[str, Tensor] = {}
        self._spectrum_update = -SPECTRUM_PERIOD

    def collect(
        self, optimizer: NaturalGradient, info: Info, before: Heads | None, after: Callable[[], Heads], update: int
    ) -> dict[str, Tensor]:
        """The natural-gradient numbers of one update.

        Args:
            optimizer: Has taken the step.
            info: What the step reported.
            before: Heads before the step, detached; None if this update is not written.
            after: Computes the heads after the step.
            update: Number of this update.
        """
        values = {"predicted_kl": info.predicted_kl, "kl_scale": info.scale, "damping": info.damping, "skipped_updates": info.skipped_steps}
        if before is None:
            return values
        if self._measure_kl:
            with torch.no_grad():
                change = measure_change(before, after())
            values |= {
                "measured_kl": change.actor_kl,
                "measured_critic_kl": change.critic_kl,
                "actor_share": change.actor_share,
                "critic_share": change.critic_share,
            }
        if update - self._spectrum_update >= SPECTRUM_PERIOD and bool(optimizer.preconditioner.step_count > info.skipped_steps):
            smallest, largest = optimizer.preconditioner.spectrum()
            self._spectrum, self._spectrum_update = {"min_eigenvalue": smallest, "max_eigenvalue": largest}, update
        return values | self._spectrum


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
        f"update {update} was skipped, weights and curvature are unchanged: {cause}; stable_baselines3.common.vec_env.VecCheckNan finds the environment's share",
        NonFiniteWarning,
        stacklevel=3,
    )
