"""Rollouts of policies that read more than observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from natgrad_apps.agents.context import Array, Context, ContextualPolicy

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.type_aliases import PyTorchObs
    from stable_baselines3.common.vec_env import VecEnv

    from natgrad_apps.agents.contextual import ContextualAlgorithm


@dataclass(frozen=True)
class Batch:
    """A rollout as rows ``t * N + n``.

    Attributes:
        observations: ``[T * N, ...]``, or a dictionary of such.
        actions: ``[T * N, dimensions]``, as drawn, not clipped.
        advantages: ``[T * N]``.
        returns: ``[T * N]``, the targets of the critic.
    """

    observations: PyTorchObs
    actions: Tensor
    advantages: Tensor
    returns: Tensor

    @classmethod
    def in_order(cls, buffer: RolloutBuffer) -> Batch:
        """All of a full buffer in the order of time, which `RolloutBuffer.get` does not keep."""

        def rows(array: Array) -> Tensor:
            return buffer.to_torch(array.reshape(-1, *array.shape[2:]))

        seen: Any = buffer.observations  # a dictionary in DictRolloutBuffer
        observations = {name: rows(part) for name, part in seen.items()} if isinstance(seen, dict) else rows(seen)
        return cls(observations, rows(buffer.actions.astype(np.float32)), rows(buffer.advantages), rows(buffer.returns))


def collect(
    agent: ContextualAlgorithm, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
) -> Context | None:
    """Fill the buffer with the agent's own steps, as SB3 does, and keep what its policy has read beside the observations.

    Memory is carried from one rollout to the next by the agent (`keep_states`, `states_for`) and emptied where an episode begins. The
    value of the last observation of an episode that was cut off by a time limit is that after its own history.

    Args:
        agent: Its policy is a `ContextualPolicy`.
        env: The environments.
        callback: Called as SB3 calls it, with this function's local variables under SB3's names.
        rollout_buffer: To fill.
        n_rollout_steps: Of each environment.

    Returns:
        What the policy read, to evaluate the rollout again with; None if the callback ended the training.
    """
    policy = agent.policy
    assert isinstance(policy, ContextualPolicy)
    policy.set_training_mode(False)
    rollout_buffer.reset()
    callback.on_rollout_start()
    states = first = agent.states_for(env.num_envs)
    read, starts = [], []
    dones = np.asarray(agent._last_episode_starts)
    n_steps = 0
    while n_steps < n_rollout_steps:
        assert agent._last_obs is not None
        obs_tensor = obs_as_tensor(agent._last_obs, agent.device)
        masks, began = policy.read_masks(env), torch.as_tensor(dones, dtype=torch.bool)
        with torch.no_grad(), policy.given(Context(masks, began.reshape(1, -1), states)):
            drawn, values, log_probs = policy(obs_tensor)
            states = policy.states_after()
        actions = drawn.cpu().numpy()
        space = agent.action_space
        clipped_actions = np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions
        new_obs, rewards, dones, infos = env.step(clipped_actions)
        agent.num_timesteps += env.num_envs
        callback.update_locals(locals())
        if not callback.on_step():
            return None
        agent._update_info_buffer(infos, dones)
        n_steps += 1
        for idx in np.flatnonzero(dones):
            if infos[idx].get("TimeLimit.truncated", False) and infos[idx].get("terminal_observation") is not None:
                rewards[idx] += agent.gamma * _value_after(policy, infos[idx]["terminal_observation"], states, int(idx))
        rollout_buffer.add(agent._last_obs, actions, rewards, agent._last_episode_starts, values, log_probs)  # type: ignore[arg-type]
        read.append(masks)
        starts.append(began)
        agent._last_obs, agent._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        agent.keep_states(states)
    with torch.no_grad(), policy.given(Context(None, torch.as_tensor(dones, dtype=torch.bool).reshape(1, -1), states)):
        values = policy.predict_values(obs_as_tensor(new_obs, agent.device))  # type: ignore[arg-type]
    rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    kept = [masks for masks in read if masks is not None]
    return Context(torch.cat(kept) if kept else None, torch.stack(starts), first)


def _value_after(policy: ContextualPolicy, observation: Any, states: Tensor | None, index: int) -> float:
    """Value of an observation that follows the steps that one environment has made."""
    own = None if states is None else states[..., index : index + 1, :]
    with torch.no_grad(), policy.given(Context(None, torch.zeros(1, 1, dtype=torch.bool), own)):
        return float(policy.predict_values(policy.obs_to_tensor(observation)[0]))
