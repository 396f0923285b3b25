"""The verb ``check``: everything that can be known about a run before it starts. Writes nothing."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from natgrad_apps.agents.building import build_agent, open_environment
from natgrad_apps.agents.callbacks import NEVER
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import make_evaluation
from natgrad_apps.agents.sizes import layer_lines, wide_lines

TRIAL_SECONDS, SLOW_SECONDS, TRIAL_UPDATES = 5.0, 15.0, 20
"""A trial ends after the first, with three updates at least; after the second one update is enough."""

TELL_SECONDS = 5.0


def check(config: TrainConfig) -> str:
    """Make the environments and the agent, try a few updates, and report sizes and cost.

    Args:
        config: The run.

    Returns:
        The report.

    Raises:
        ConfigError: The run could not start.
    """
    with ExitStack() as stack:
        venv = open_environment(config, stack)
        make_evaluation(config.environment, 1, config.seed, None).close()
        agent = build_agent(config, venv)
        agent.set_logger(Logger(None, []))
        wide = wide_lines(agent)
        for line in wide:
            _tell(f"warning: {line}")  # before the trial, which it slows
        trial = _Trial(config.batch_size)
        agent.learn(TRIAL_UPDATES * config.batch_size, trial, log_interval=NEVER)
        env, updates = config.environment, -(-config.total_timesteps // config.batch_size)
        lines = [
            f"environment   {env.id}, {env.n_envs} copies ({env.vectorization})",
            f"spaces        observations {venv.observation_space}, actions {venv.action_space}",
            f"agent         {config.agent.policy}, {sum(p.numel() for p in agent.policy.parameters()):,} parameters, on {agent.device}",
            f"run           {updates:,} updates of {config.agent.n_steps} x {env.n_envs} steps: {updates * config.batch_size:,} steps",
            "",
            *layer_lines(agent),
            *wide,
            "",
            *_cost_lines(trial, updates),
        ]
    return "\n".join(lines)


def _cost_lines(trial: _Trial, updates: int) -> list[str]:
    # The first update allocates and warms up.
    rollout, update = (float(np.mean(times[1:] or times)) for times in (trial.rollouts[: len(trial.updates)], trial.updates))
    seconds = updates * (rollout + update)
    measured = f"{len(trial.updates) - 1} updates" if len(trial.updates) > 1 else "1 update, the first, which takes longer"
    return [
        f"measured      {measured}: rollout {1e3 * rollout:.1f} ms, update {1e3 * update:.1f} ms",
        f"estimate      about {_duration(seconds)} of training, without evaluations",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class _Trial(BaseCallback):
    """Times rollouts and updates, says how far it is, and ends the trial when it has enough of them."""

    batch_size: int
    rollouts: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._start = self._clock = self._told = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.rollouts:
            self.updates.append(self._lap())
        self._lap()

    def _on_rollout_end(self) -> None:
        self.rollouts.append(self._lap())

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if now - self._told > TELL_SECONDS:
            self._told = now
            done = self.num_timesteps - len(self.rollouts) * self.batch_size
            _tell(f"trying update {len(self.rollouts) + 1}: step {done:,} of {self.batch_size:,}")
        seconds = now - self._start
        return seconds < TRIAL_SECONDS or len(self.updates) < (3 if seconds < SLOW_SECONDS else 1)

    def _on_training_end(self) -> None:
        if len(self.updates) < len(self.rollouts):
            self.updates.append(self._lap())

    def _lap(self) -> float:
        before, self._clock = self._clock, time.perf_counter()
        return self._clock - before
