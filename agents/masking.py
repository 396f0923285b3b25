"""Policies over the actions that are legal now, which the environment says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from natgrad_apps.agents.context import Array, ContextualPolicy, State
from natgrad_apps.agents.contextual import ContextualAlgorithm
from natgrad_apps.agents.faults import name_of
from natgrad_apps.agents.networks import ACKTRCnnPolicy
from natgrad_apps.errors import ConfigError

METHOD = "action_masks"
"""Method of an environment that says which actions are legal, as sb3-contrib's MaskablePPO calls it."""


class MaskedPolicy(ContextualPolicy):
    """The softmax over legal actions: ``pi(a | s) = m_a exp(z_a) / sum_b m_b exp(z_b)`` for logits ``z`` and the mask ``m(s)`` of 0 and 1.

    The masked logits are ``z' = z`` where ``m = 1`` and ``-inf`` elsewhere, so ``pi`` is a categorical distribution over ``z'`` and
    everything that is known of those holds: fresh actions for the Fisher are legal ones, and the Fisher of ``z`` is
    ``J^T (diag(pi) - pi pi^T) J`` with ``J = dz'/dz = diag(m)``. As ``pi_a = 0`` wherever ``m_a = 0``, that is ``diag(pi) - pi pi^T``
    itself: rows and columns of illegal actions are zero, and their logits are moved by other states only.

    Each dimension of a MultiDiscrete action has its own softmax, and each bit of a MultiBinary one a softmax over 0 and 1, with
    two logits, so that either value can be illegal. An action with one legal choice is certain and has no Fisher.

    Shapes: masks ``[N, choices]`` with ``choices`` the sum over dimensions, 2 for each bit.
    Reference: Huang & Ontanon, A closer look at invalid action masking in policy gradient algorithms, FLAIRS 2022, arXiv 2006.14171.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        """As in SB3, with two logits for each bit.

        Raises:
            ConfigError: The actions are not discrete.
        """
        choices(self.action_space)
        if isinstance(self.action_space, spaces.MultiBinary):
            self.action_dist = MultiCategoricalDistribution(choices(self.action_space))
        super()._build(lr_schedule)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        """The distribution over legal actions.

        Raises:
            ConfigError: No masks were given.
        """
        masks = self.context.masks
        if masks is None:
            raise ConfigError(
                f"{type(self).__name__} chooses among the legal actions and needs their masks: predict(observation, action_masks=...) "
                "with env.env_method('action_masks'); evaluate with evaluate_policy of sb3_contrib.common.maskable.evaluation"
            )
        logits = torch.where(masks, self.action_net(latent_pi), -math.inf)
        assert isinstance(self.action_dist, (CategoricalDistribution, MultiCategoricalDistribution))
        return self.action_dist.proba_distribution(action_logits=logits)

    def require_masks(self, env: VecEnv) -> None:
        """Raise unless every environment can be asked.

        Raises:
            ConfigError: One has no ``action_masks()``.
        """
        if not env.has_attr(METHOD):
            raise ConfigError(
                f"{type(self).__name__} asks the environment which actions are legal, but it has no method {METHOD}(); add one that "
                f"returns {sum(choices(self.action_space))} booleans, or use a policy without 'Maskable'{_of(env)}"
            )

    def read_masks(self, env: VecEnv) -> Tensor:
        """What the environments' ``action_masks()`` say.

        Raises:
            ConfigError: The answer is no mask, or leaves no action.
        """
        given = env.env_method(METHOD)
        try:
            return self.to_masks(given, env.num_envs)
        except ConfigError as error:
            raise ConfigError(f"{error}{_of(env)}") from error

    def to_masks(self, given: object, count: int) -> Tensor:
        """Masks as a tensor ``[N, choices]``.

        Raises:
            ConfigError: None were given, their size is wrong, or a dimension of an action has no legal choice.
        """
        parts = choices(self.action_space)
        if given is None:
            raise ConfigError(f"{type(self).__name__} needs action_masks for {count} observations, {sum(parts)} booleans each")
        try:
            masks = np.asarray(given)
        except ValueError:
            masks = np.asarray(None)  # rows of different lengths
        if masks.dtype.kind not in "biuf" or masks.size != count * sum(parts):
            raise ConfigError(
                f"action_masks must be {count} x {sum(parts)} booleans for the action space {self.action_space}, got {masks.dtype} of "
                f"shape {masks.shape}"
            )
        legal = masks.astype(bool).reshape(count, sum(parts))
        for part in np.split(legal, np.cumsum(parts)[:-1], axis=1):
            if not part.any(axis=1).all():
                raise ConfigError(f"environment {int(part.any(axis=1).argmin())} has no legal action: its action_masks() are all false")
        return torch.as_tensor(legal, device=self.device)


class MaskableMlpPolicy(MaskedPolicy, ActorCriticPolicy):
    """For vectors."""


class MaskableCnnPolicy(MaskedPolicy, ACKTRCnnPolicy):
    """For pixels, with `ACKTRCnn`."""


class MaskableMultiInputPolicy(MaskedPolicy, MultiInputActorCriticPolicy):
    """For dictionaries of observations."""


def choices(space: spaces.Space[Any]) -> list[int]:
    """Number of choices of each dimension of an action.

    Raises:
        ConfigError: The space is not discrete.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return [int(n) for n in space.nvec]
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int):
        return [2] * space.n
    raise ConfigError(f"masks need an action space Discrete, MultiDiscrete or MultiBinary with one dimension, got {space}")


def _of(env: VecEnv) -> str:
    name = name_of(env)
    return "" if name is None else f" (environment {name!r})"


def player(model: BaseAlgorithm, env: VecEnv) -> BaseAlgorithm | MaskReader:
    """What plays in an environment without knowing of masks: the agent, or its `MaskReader` if it needs some."""
    return MaskReader(model, env) if isinstance(model, ContextualAlgorithm) and isinstance(model.policy, MaskedPolicy) else model


@dataclass(frozen=True)
class MaskReader:
    """An agent that reads the masks of the environment it plays in, for callers of ``predict`` that know of none.

    Attributes:
        model: The agent.
        env: The environment.
    """

    model: ContextualAlgorithm
    env: VecEnv

    def predict(
        self,
        observation: Array | dict[str, Array],
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, State | None]:
        """As `ContextualAlgorithm.predict`."""
        return self.model.predict(observation, state, episode_start, deterministic, self.env.env_method(METHOD))
