"""The outputs of an actor-critic policy as likelihoods, and how far an update moved them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from natgrad_apps.errors import ConfigError
from natgrad_apps.likelihoods import Bernoulli, Categorical, Gaussian, Joint, Likelihood


@dataclass(frozen=True)
class Heads:
    """Policy distribution and critic of one forward pass.

    The joint model is ``p(a, v | s) = pi(a | s) Normal(v; V(s), scale)`` (Wu et al. 2017, section 3.1); the heads are independent given
    the state, so their Fisher information adds.

    Attributes:
        actor: The policy over the batch, one term a state.
        critic: ``Normal(V(s), scale)``, one term a state.
        parameters: Bare parameters of the policy distribution (``log_std``), with a copy of their value and the Fisher diagonal of one
            term; filled by `detach`.
    """

    actor: Likelihood
    critic: Likelihood
    parameters: tuple[tuple[Tensor, Tensor, Tensor], ...] = field(default=())

    @classmethod
    def of(cls, policy: ActorCriticPolicy, values: Tensor, scale: float) -> Heads:
        """The heads of the last forward pass of a policy.

        Args:
            policy: Its ``action_dist`` holds the distribution that the pass has made.
            values: ``[N]`` or ``[N, 1]``, in the units of the rewards.
            scale: Standard deviation of the critic, in the same units.

        Raises:
            ConfigError: The distribution is of no known family.
        """
        return cls(actor_likelihood(policy), Gaussian(values.reshape(-1, 1), scale=scale))

    @property
    def joint(self) -> Joint:
        """Both heads."""
        return Joint(self.actor, self.critic)

    def detach(self) -> Heads:
        """Copies to compare with after the update."""
        known = tuple((p, p.detach().clone(), diagonal) for p, diagonal in self.actor.known_fisher())
        return Heads(self.actor.detach(), self.critic.detach(), known)


@dataclass(frozen=True)
class Change:
    """How far one update moved the heads, as means over the states of the rollout; 0-d tensors, in nats.

    Attributes:
        actor_kl: Exact ``KL(old policy || new policy)``.
        critic_kl: Exact ``KL(old critic || new critic)``, which is ``(dV)^2 / (2 scale^2)``.
        actor_share: Part of the actor in ``d^T F d``.
        critic_share: Part of the critic; the two sum to 1, or are both 0 if nothing moved.
    """

    actor_kl: Tensor
    critic_kl: Tensor
    actor_share: Tensor
    critic_share: Tensor


def measure_change(old: Heads, new: Heads) -> Change:
    """Compare the heads before (`Heads.detach`) and after an update, over the same states.

    The shares use the realised change of the *outputs* and the output Fisher, ``d^T F d = mean_s dz^T F_z dz``: weights of a shared
    trunk belong to both heads, outputs to one.
    """
    actor, critic = (
        before.output_quadratic(tuple(n.detach() - o for n, o in zip(after.outputs, before.outputs, strict=True))).mean()
        for before, after in ((old.actor, new.actor), (old.critic, new.critic))
    )
    for parameter, value, diagonal in old.parameters:
        actor = actor + (diagonal * (parameter.detach() - value).square()).sum()
    total = actor + critic
    moved = total > 0
    safe = torch.where(moved, total, torch.ones_like(total))
    return Change(old.actor.kl(new.actor).mean(), old.critic.kl(new.critic).mean(), actor / safe, critic / safe)


def actor_likelihood(policy: ActorCriticPolicy) -> Likelihood:
    """The policy distribution of the last forward pass as a likelihood over the *unclipped* actions.

    Raises:
        ConfigError: It is of no family whose Fisher is known here.
    """
    distribution = policy.action_dist
    if isinstance(distribution, CategoricalDistribution):
        return Categorical(distribution.distribution)
    if isinstance(distribution, MultiCategoricalDistribution):
        # A dimension with one action is certain: it has no Fisher.
        return Joint(*(Categorical(part) for part in distribution.distribution if part.logits.shape[-1] > 1))
    if isinstance(distribution, BernoulliDistribution):
        return Bernoulli(distribution.distribution)
    if isinstance(distribution, DiagGaussianDistribution):
        log_std = getattr(policy, "log_std", None)
        if isinstance(log_std, nn.Parameter):
            return Gaussian(distribution.distribution.mean, log_std=log_std)
        return Gaussian(distribution.distribution)
    raise ConfigError(
        f"ACKTR knows the Fisher of categorical, multi-categorical, Bernoulli and diagonal Gaussian policies, not of "
        f"{type(distribution).__name__}; use an action space Discrete, MultiDiscrete, MultiBinary or Box with use_sde=False"
    )


def observed_targets(policy: ActorCriticPolicy, actions: Tensor, returns: Tensor) -> tuple[Tensor, ...]:
    """What a rollout observed, one tensor for each head of `Heads.joint`, for the empirical Fisher."""
    value = returns.reshape(-1, 1)
    if not isinstance(policy.action_dist, MultiCategoricalDistribution):
        return actions, value
    columns = actions.long().unbind(dim=1)
    return (*(column for column, choices in zip(columns, policy.action_dist.action_dims, strict=True) if choices > 1), value)
