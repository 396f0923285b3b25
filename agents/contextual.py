"""An SB3 on-policy algorithm whose policy may read more than observations: masks of legal actions, and a memory."""

from __future__ import annotations

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from natgrad_apps.agents.collecting import Batch, collect
from natgrad_apps.agents.context import EMPTY, Array, Context, ContextualPolicy, State, unread_masks


class ContextualAlgorithm(OnPolicyAlgorithm):
    """Collects, batches and predicts with a `ContextualPolicy` as SB3 does with any other policy, which it leaves to SB3.

    The memory after a rollout begins the next one. A subclass evaluates the rollout inside ``given(self.policy, self.context)``.
    """

    _context: Context | None = None
    _states: Array | None = None

    @property
    def context(self) -> Context:
        """What the policy read during the rollout."""
        return self._context or EMPTY

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        """As in SB3; policies that read masks or have a memory collect with both."""
        if not isinstance(self.policy, ContextualPolicy):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        self._context = collect(self, env, callback, rollout_buffer, n_rollout_steps)
        return self._context is not None

    @property
    def playing_policy(self) -> ActorCriticPolicy:
        """What `predict` asks."""
        return self.policy

    def batch(self) -> RolloutBufferSamples | DictRolloutBufferSamples | Batch:
        """The rollout; in the order of time if the policy reads a context, which is in that order."""
        if isinstance(self.policy, ContextualPolicy):
            return Batch.in_order(self.rollout_buffer)
        (samples,) = self.rollout_buffer.get(batch_size=None)
        return samples

    def predict(
        self,
        observation: Array | dict[str, Array],
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        action_masks: object = None,
    ) -> tuple[Array, State | None]:
        """As in SB3; policies that choose among legal actions need `action_masks`, ``[N, choices]``.

        Raises:
            ConfigError: Masks are missing, or do not fit the policy.
        """
        policy = self.playing_policy
        if isinstance(policy, ContextualPolicy):
            return policy.predict(observation, state, episode_start, deterministic, action_masks)
        if action_masks is not None:
            raise unread_masks(policy)
        return policy.predict(observation, state, episode_start, deterministic)

    def states_for(self, count: int) -> Tensor | None:
        """The policy's memory, an empty one if it is of another number of environments; None if it has none."""
        policy = self.policy
        empty = policy.initial_states(count) if isinstance(policy, ContextualPolicy) else None
        if empty is None or self._states is None or self._states.shape != empty.shape:
            return empty
        return torch.as_tensor(self._states, device=self.device)

    def keep_states(self, states: Tensor | None) -> None:
        """Carry the memory to the next rollout; part of checkpoints."""
        self._states = None if states is None else states.cpu().numpy()

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As in SB3, but 0 in a last rollout that passes the end, where a falling schedule would make the rate negative."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_context"]
