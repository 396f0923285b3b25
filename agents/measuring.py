"""What an update did to the outputs of the policy, over the states of its rollout or a part of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from natgrad_apps.agents.context import Context, given
from natgrad_apps.agents.heads import Change, Heads, measure_change

if TYPE_CHECKING:
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.type_aliases import PyTorchObs

    from natgrad_apps.ranks import Ranks


@dataclass(frozen=True)
class States:
    """States of a rollout as the policy reads them, with the actions taken there.

    Attributes:
        observations: ``[rows, ...]``, or a dictionary of such.
        actions: ``[rows]`` or ``[rows, dimensions]``.
        context: What the policy reads beside them; where it has ``starts`` ``[T, N]``, rows are ``t * N + n``.
    """

    observations: PyTorchObs
    actions: Tensor
    context: Context

    def every(self, stride: int, first: int) -> States:
        """A part: every `stride`-th row, or where rows are steps of a history, all steps of every `stride`-th environment.

        Args:
            stride: At least 1; of few rows or environments one at least is left.
            first: Where to begin, modulo the stride.
        """
        if stride == 1:
            return self
        starts, masks, states = self.context.starts, self.context.masks, self.context.states
        if starts is None:
            rows = _strided(len(self.actions), stride, first)
            return States(_each(self.observations, lambda x: x[rows]), self.actions[rows], self.context)
        environments = _strided(starts.shape[1], stride, first)

        def kept(x: Tensor) -> Tensor:
            rows: Tensor = x.reshape(*starts.shape, *x.shape[1:])[:, environments].flatten(0, 1)
            return rows

        context = Context(
            None if masks is None else kept(masks),
            starts[:, environments],
            None if states is None else states[..., environments, :],
        )
        return States(_each(self.observations, kept), kept(self.actions), context)

    def pass_through(self, policy: ActorCriticPolicy, scale: float) -> Heads:
        """The heads as the policy is now, without a graph.

        Args:
            policy: Of actor and critic.
            scale: Standard deviation of the critic, in the units of the rewards.
        """
        with torch.no_grad(), given(policy, self.context):
            values, _, _ = policy.evaluate_actions(self.observations, self.actions)
            return Heads.of(policy, values, scale)


class Comparison:
    """How far the outputs have moved since the comparison was made, one forward pass for each call.

    Args:
        policy: To compare with itself.
        states: Where.
        scale: Standard deviation of the critic, in the units of the rewards.
        heads: Those of the states as the policy is now, where they are known; None costs a forward pass.
        ranks: Processes to take the mean over; None for this one alone.
    """

    def __init__(self, policy: ActorCriticPolicy, states: States, scale: float, heads: Heads | None, ranks: Ranks | None) -> None:
        self._policy, self._states, self._scale, self._ranks = policy, states, scale, ranks
        self._before = (states.pass_through(policy, scale) if heads is None else heads).detach()

    def __call__(self) -> Change:
        """The change up to now, a mean over the states of all processes."""
        change = measure_change(self._before, self._states.pass_through(self._policy, self._scale))
        return change if self._ranks is None else Change(*self._ranks.mean(list(vars(change).values())))


def _strided(count: int, stride: int, first: int) -> slice:
    stride = min(stride, count)
    return slice(first % stride, None, stride)


def _each(observations: PyTorchObs, choose: Callable[[Tensor], Tensor]) -> PyTorchObs:
    return {name: choose(x) for name, x in observations.items()} if isinstance(observations, dict) else choose(observations)
