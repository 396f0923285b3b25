"""A run of several processes: each has its own environments, and all of them take every step together.

The first process owns the run folder and decides between updates; the others follow. Steps are counted over all of them. A checkpoint holds
the files of each, so that a run with several processes goes on as exactly as one with one.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents import snapshot
from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.building import build_agent, open_environment
from natgrad_apps.agents.callbacks import NEVER, FollowerCallback, Progress
from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.command import INTERRUPTED
from natgrad_apps.runner.folder import RunFolder
from natgrad_apps.runner.interrupts import InterruptFlag
from natgrad_apps.runner.processes import Processes
from natgrad_apps.runner.resuming import Resumed, reopen

RANK_SEED = 10_000_019
"""Between the seeds of two processes; far from those of evaluations."""

MODULE = "natgrad_apps.agents.cli"


@dataclass(frozen=True)
class Reopened:
    """A run that goes on, as every process needs it.

    Attributes:
        config: Its settings.
        config_yaml: The same as text.
        files: Content of its last checkpoint, by file name.
        folder: Its folder; None but for the leading process.
    """

    config: TrainConfig
    config_yaml: str
    files: Mapping[str, bytes]
    folder: RunFolder | None = None


def seed_of(config: TrainConfig, processes: Processes) -> int:
    """The seed of this process: the run's own on the leading one."""
    return config.seed + RANK_SEED * processes.rank


def agreed(processes: Processes, check: Callable[[], object]) -> bool:
    """Whether the leading process passed a check; its error is raised there, and the others are told."""
    if not processes.leads:
        return processes.told(False)
    try:
        check()
    except BaseException:
        processes.told(False)
        raise
    return processes.told(True)


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


def gather(files: dict[str, bytes], processes: Processes) -> dict[str, bytes]:
    """The files of a checkpoint of the run: those of the leading process, and the others' under names of their own."""
    everybody = processes.gathered(files)
    others = {_name(rank, name): data for rank, own in enumerate(everybody) for name, data in own.items() if rank > 0 and data}
    return {**files, **others}


def own_files(files: Mapping[str, bytes], processes: Processes) -> Mapping[str, bytes]:
    """The part of a checkpoint that belongs to this process."""
    if processes.leads:
        return files
    prefix = _name(processes.rank, "")
    return {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}


def reopened(path: Path, processes: Processes, stack: ExitStack) -> Reopened | None:
    """Open a run that is to be continued, on every process; None if it is complete, or if the leading process could not.

    Args:
        path: The run folder.
        processes: Those that are to continue it.
        stack: Closes the folder.

    Raises:
        ConfigError: The run cannot be continued, or not by this number of processes; raised on the leading process.
    """
    run: Resumed[TrainConfig] | None = None

    def check() -> None:
        nonlocal run
        run = reopen(path, TrainConfig, PROGRAM, stack)
        count = 1 + sum(name.endswith(f"_{snapshot.RUN}") for name in run.files) if run is not None else processes.size
        if count != processes.size:
            raise ConfigError(
                f"the run {str(path)!r} has {count} processes, not {processes.size}; to continue: {resume_command(path, count)}"
            )

    if not agreed(processes, check):
        return None
    shared = None if run is None else Reopened(run.config, run.config_yaml, run.files)
    shared = processes.told(shared)
    return shared if shared is None or run is None else replace(shared, folder=run.folder)


def resume_command(path: Path, size: int) -> str:
    """The command that continues a run."""
    start = PROGRAM if size == 1 else f"torchrun --nproc-per-node {size} -m {MODULE}"
    return f"{start} train --resume {shlex.quote(str(path))}"


def _name(rank: int, name: str) -> str:
    return f"rank_{rank}_{name}"
