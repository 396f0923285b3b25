"""A run of several processes: each has its own environments, and all of them take every step together.

The first process owns the run folder and decides between updates; the others follow. Steps are counted over all of them. A checkpoint holds
the files of each, so that a run with several processes goes on as exactly as one with one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import NoReturn

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents import snapshot
from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.building import build_agent, open_environment
from natgrad_apps.agents.callbacks import NEVER, FollowerCallback, Progress
from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.runner.command import INTERRUPTED
from natgrad_apps.runner.interrupts import InterruptFlag
from natgrad_apps.runner.processes import Processes

RANK_SEED = 10_000_019
"""Between the seeds of two processes; far from those of evaluations."""

COMMAND = (PROGRAM, "natgrad_apps.agents.cli")
"""Console script, and the module that it runs."""


def seed_of(config: TrainConfig, processes: Processes) -> int:
    """The seed of this process: the run's own on the leading one."""
    return config.seed + RANK_SEED * processes.rank


def learner(config: TrainConfig, processes: Processes, stack: ExitStack) -> tuple[VecEnv, ACKTR]:
    """Environment and agent of this process, the agent joined with the others'.

    Args:
        config: The run.
        processes: Those that learn together.
        stack: Closes the environment.

    Raises:
        ConfigError: They cannot be made.
    """
    own = replace(config, seed=seed_of(config, processes))
    venv = open_environment(own, stack)
    agent = build_agent(own, venv)
    if processes.size > 1:
        agent.distribute()
    return venv, agent


def learn(agent: ACKTR, total_timesteps: int, callback: BaseCallback, finish: Callable[[], None]) -> None:
    """Train for what is left; a run that was interrupted during its last evaluation has nothing left.

    Args:
        agent: The agent.
        total_timesteps: Where the run ends.
        callback: What happens between updates.
        finish: What happens after the last one, if there is nothing left.
    """
    left = total_timesteps - agent.num_timesteps
    if left <= 0:
        callback.init_callback(agent)
        finish()
    else:
        agent.learn(left, callback, log_interval=NEVER, reset_num_timesteps=agent.num_timesteps == 0 and agent._last_obs is None)


def follow(agent: ACKTR, venv: VecEnv, config: TrainConfig, processes: Processes, state: snapshot.RunState | None) -> None:
    """The part in a run of a process that does not lead.

    Args:
        agent: Joined with the others.
        venv: Its environment.
        config: The run.
        processes: Those that learn together.
        state: What a checkpoint brought; None for a new run.

    Raises:
        SystemExit: The run was interrupted.
    """
    agent.set_logger(Logger(None, []))
    if state is not None:
        state.restore(venv, agent.logger)

    def save() -> None:
        processes.gathered(snapshot.pack(agent, venv, Progress(), ""))

    def stop() -> NoReturn:
        raise SystemExit(INTERRUPTED)  # the leading process tells the user how to continue

    with InterruptFlag():  # signals reach the leading process too, which decides
        callback = FollowerCallback(processes, save, stop)
        learn(agent, config.total_timesteps, callback, callback.between_updates)
