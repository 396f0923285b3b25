"""What a policy reads beside its observations: legal actions, and the memory of recurrent layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from natgrad_apps.errors import ConfigError

if TYPE_CHECKING:
    from stable_baselines3.common.type_aliases import PyTorchObs

Array = np.ndarray[Any, Any]
State = tuple[Array, ...]


@dataclass(frozen=True)
class Context:
    """For a forward pass over ``T`` steps of ``N`` environments, whose observations are rows ``t * N + n``.

    Attributes:
        masks: ``[T * N, choices]``, whether an action is legal; the dimensions of an action one after the other. None if all are.
        starts: ``[T, N]`` on the CPU, whether an episode begins with this observation. None for one step of unknown history.
        states: Memory before the first step, ``[extractors, 2, layers, N, hidden]``; None for an empty one.
    """

    masks: Tensor | None = None
    starts: Tensor | None = None
    states: Tensor | None = None


EMPTY = Context()


class ContextualPolicy(ActorCriticPolicy):
    """An actor-critic policy whose passes read a `Context`, which `given` sets around them.

    The passes themselves are SB3's. Collecting, updating and predicting are the same for every such policy; a subclass says what it reads.
    """

    context: Context = EMPTY

    @contextlib.contextmanager
    def given(self, context: Context) -> Iterator[None]:
        """Let the passes inside read this context."""
        before = self.context
        self.receive(context)
        try:
            yield
        finally:
            self.receive(before)

    def receive(self, context: Context) -> None:
        """Keep the context of the next passes."""
        self.context = context

    def read_masks(self, env: VecEnv) -> Tensor | None:
        """Masks ``[N, choices]`` of the environments as they are now; None if the policy reads none."""
        del env
        return None

    def to_masks(self, given: object, count: int) -> Tensor | None:
        """Masks ``[N, choices]`` that a caller of `predict` gave for `count` observations.

        Raises:
            ConfigError: Masks for a policy that reads none, or none or others than it needs.
        """
        del count
        if given is not None:
            raise unread_masks(self)
        return None

    def initial_states(self, count: int) -> Tensor | None:
        """An empty memory for `count` environments; None if the policy has none."""
        del count
        return None

    def states_after(self) -> Tensor | None:
        """Memory after the last pass, shaped as in `Context`; extractors that did not take part keep theirs."""
        return self.context.states

    def pack_state(self) -> State | None:
        """What `predict` returns of `states_after`."""
        return None

    def unpack_state(self, state: State | None, count: int) -> Tensor | None:
        """Inverse of `pack_state`, an empty memory for None."""
        del state
        return self.initial_states(count)

    def predict(
        self,
        observation: Array | dict[str, Array],
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        action_masks: object = None,
    ) -> tuple[Array, State | None]:
        """Actions for observations, as in SB3.

        Args:
            observation: One observation or one for each environment.
            state: What the last call returned; None before the first.
            episode_start: ``[N]``, whether an episode begins; None if none does.
            deterministic: Whether the most probable action is taken.
            action_masks: ``[N, choices]``, whether an action is legal.

        Raises:
            ConfigError: Masks or states do not fit the policy.
        """
        rows: PyTorchObs = self.obs_to_tensor(observation)[0]
        count = len(next(iter(rows.values())) if isinstance(rows, dict) else rows)
        starts = torch.zeros(count, dtype=torch.bool) if episode_start is None else torch.as_tensor(episode_start, dtype=torch.bool)
        context = Context(self.to_masks(action_masks, count), starts.reshape(1, -1), self.unpack_state(state, count))
        with self.given(context):
            actions, _ = super().predict(observation, None, None, deterministic)
            return actions, self.pack_state()


def unread_masks(policy: BasePolicy) -> ConfigError:
    """The error for masks that were given to a policy which reads none."""
    return ConfigError(f"action_masks were given to {type(policy).__name__}, which reads none; use 'MaskableMlpPolicy' or its like")


def given(policy: ActorCriticPolicy, context: Context) -> contextlib.AbstractContextManager[None]:
    """`ContextualPolicy.given`; other policies read nothing."""
    return policy.given(context) if isinstance(policy, ContextualPolicy) else contextlib.nullcontext()
