"""Intrinsic motivation: a reward for transitions that teach a Bayesian model of the environment something."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor, nn

from natgrad_apps.bayes import NoisyKFAC, Regression, Variational
from natgrad_apps.bayes.linearized import linearize
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.bayes.tasks import RegressionTask
from natgrad_apps.errors import ConfigError, check_positive, unknown_name

Floats = NDArray[np.float32]
SMALLEST_DEVIATION = 1e-6
HISTORY = 10
"""Trainings whose mean gains make up the unit of the reward."""


@dataclass(frozen=True)
class Curiosity:
    """Settings of `CuriousVecEnv`.

    Attributes:
        weight: Reward of a transition that teaches as much as the mean of the last transitions.
        hidden: Width of the two hidden layers of the model.
        method: How its posterior is found.
        period: Steps of the vectorized environment between two trainings.
        updates: Steps of a training.
        batch_size: Transitions of a training step.
        capacity: Transitions that are kept; older ones are overwritten.
        gain: expected or realised.

    Raises:
        ConfigError: A value is not legal.
    """

    weight: float = 0.1
    hidden: int = 32
    method: Method = field(default_factory=lambda: NoisyKFAC(lr=0.05, damping=1e-3))
    period: int = 20
    updates: int = 10
    batch_size: int = 128
    capacity: int = 50_000
    gain: Literal["expected", "realised"] = "expected"

    def __post_init__(self) -> None:
        check_positive("weight", self.weight, allow_zero=True)
        if self.gain not in ("expected", "realised"):
            raise unknown_name("gain of Curiosity", str(self.gain), ("expected", "realised"))
        for name in ("hidden", "period", "updates", "batch_size", "capacity"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")


class CuriousVecEnv(VecEnvWrapper):
    r"""Adds ``weight * gain / unit`` to the reward of every transition ``(s, a, s')``.

    ``q`` is the posterior of a network that predicts ``s' - s`` from ``s`` and ``a``, all standardized. The gain is what the transition
    tells of the weights, in closed form for the linearized network: expected over ``s'``, the mutual information
    (`Linearized.mutual_information`), or realised, ``KL(q' || q)`` with ``q'`` the posterior after it (`Linearized.information_gain`). Both
    have one mean under the model; the realised one has a long tail where the model is wrong. ``unit`` is the mean gain of the transitions
    between the last `HISTORY` trainings, so the reward does not fade as the model gets sure, and does not depend on its scale. The model is
    trained every ``period`` steps on transitions drawn from all that are kept; ``num_data`` is the number of those.

    An episode's last transition is judged with its true last observation (``infos["terminal_observation"]``). ``infos`` have the
    environment's own reward (``extrinsic_reward``) and the gain in nats (``information_gain``). Put it outside of `VecMonitor`, so that
    returns of episodes are the environment's, and inside of `VecNormalize`. Model and transitions are no part of a checkpoint of the agent.

    Departures from VIME: the gain is that of the linearized model, with correlated weights, in place of one gradient step's on independent
    ones, and its expectation unless asked otherwise; ``unit`` is a mean in place of a median over trajectories.

    Cost: for each transition as many backward passes through the model as the observation has dimensions; every ``period`` steps
    ``updates`` training steps.
    Reference: Houthooft, Chen, Duan, Schulman, De Turck & Abbeel, VIME: Variational information maximizing exploration, NeurIPS 2016,
    arXiv 1605.09674; with noisy K-FAC: Zhang et al., ICML 2018, arXiv 1712.02390, section 5.4.

    Args:
        venv: With flat continuous observations and discrete or continuous actions.
        options: Settings.
        seed: Of the model, its training and its samples; the global generators are left alone.

    Attributes:
        vi: The posterior of the model.
        gains: Mean gain in nats between the last trainings.

    Raises:
        ConfigError: The spaces are of another kind.
    """

    def __init__(self, venv: VecEnv, options: Curiosity | None = None, seed: int = 0) -> None:
        super().__init__(venv)
        self.options = options or Curiosity()
        seen, acted = venv.observation_space, venv.action_space
        if not isinstance(seen, spaces.Box) or len(seen.shape) != 1 or not isinstance(acted, (spaces.Box, spaces.Discrete)):
            raise ConfigError(f"curiosity needs flat continuous observations and Box or Discrete actions, got {seen} and {acted}")
        self._choices = int(acted.n) if isinstance(acted, spaces.Discrete) else 0
        width, inputs = seen.shape[0], seen.shape[0] + (self._choices or int(np.prod(acted.shape or ())))
        hidden = self.options.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width))
        task = Regression(noise_precision=1.0, learn=True)
        self.vi = Variational(model, method=self.options.method, task=task, num_data=1, seed=seed)
        self.gains: deque[float] = deque(maxlen=HISTORY)
        self._generator = np.random.default_rng(seed)
        self._inputs, self._changes = RunningMeanStd(shape=(inputs,)), RunningMeanStd(shape=(width,))
        self._kept = np.zeros((self.options.capacity, inputs + width), dtype=np.float32)
        self._count, self._steps = 0, 0
        self._new: list[float] = []
        self._last: Floats = np.zeros((venv.num_envs, width), dtype=np.float32)
        self._actions: NDArray[Any] = np.zeros(0)

    def reset(self) -> VecEnvObs:
        """Begin episodes."""
        observations = self.venv.reset()
        self._last = np.array(observations, dtype=np.float32)
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Pass the actions on."""
        self._actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the transitions and add the rewards for what they teach."""
        observations, rewards, dones, infos = self.venv.step_wait()
        following = np.array(observations, dtype=np.float32)
        for i in np.flatnonzero(dones):
            following[i] = infos[i]["terminal_observation"]
        inputs, changes = np.concatenate([self._last, self._encoded()], 1), following - self._last
        self._last = np.array(observations, dtype=np.float32)
        self._inputs.update(inputs)
        self._changes.update(changes)
        gains = self._information_gain(inputs, changes)
        self._keep(np.concatenate([inputs, changes], 1))
        self._new.extend(gains.tolist())
        self._steps += 1
        if self._steps % self.options.period == 0:
            self.gains.append(float(np.mean(self._new)))
            self._new = []
            self._train()
        for info, reward, gain in zip(infos, rewards, gains, strict=True):
            info["extrinsic_reward"], info["information_gain"] = float(reward), float(gain)
        unit = float(np.mean(self.gains)) if self.gains else 0.0  # before the first training everything is news: no reward
        bonus = self.options.weight * gains / unit if unit > 0 else np.zeros_like(gains)
        return observations, (rewards + bonus).astype(np.float32), dones, infos

    def _encoded(self) -> Floats:
        if self._choices:
            return np.asarray(np.eye(self._choices, dtype=np.float32)[self._actions.reshape(-1)])
        return self._actions.reshape(len(self._actions), -1).astype(np.float32)

    def _information_gain(self, inputs: Floats, changes: Floats) -> NDArray[np.float64]:
        x, y = self._standardized(inputs, changes)
        closed = linearize(self.vi, x)
        assert isinstance(self.vi.task, RegressionTask)
        noise = self.vi.task.noise_std
        gain = closed.mutual_information(noise) if self.options.gain == "expected" else closed.information_gain(y, noise)
        return np.asarray(gain.numpy(force=True))

    def _standardized(self, inputs: Floats, changes: Floats) -> tuple[Tensor, Tensor]:
        found = []
        for values, scale in ((inputs, self._inputs), (changes, self._changes)):
            deviation = np.sqrt(scale.var) + SMALLEST_DEVIATION
            found.append(torch.as_tensor((values - scale.mean) / deviation, dtype=torch.float32))
        return found[0], found[1]

    def _keep(self, rows: Floats) -> None:
        places = (self._count + np.arange(len(rows))) % self.options.capacity
        self._kept[places] = rows
        self._count += len(rows)

    def _train(self) -> None:
        filled, size = min(self._count, self.options.capacity), self.options.batch_size
        self.vi.set_num_data(filled)
        width = self._last.shape[1]
        for _ in range(self.options.updates):
            rows = self._kept[self._generator.integers(filled, size=min(size, filled))]
            self.vi.step(*self._standardized(rows[:, :-width], rows[:, -width:]))
