"""A graph run of several processes: each takes its part of every batch, and all of them take every step together.

The first process owns the run folder and says before each step whether there is one; the others follow. A checkpoint holds the state of
each, because dropout and sampled labels differ between them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.runner.command import INTERRUPTED
from natgrad_apps.runner.interrupts import InterruptFlag
from natgrad_apps.runner.processes import Processes
from natgrad_apps.runner.resuming import Resumed, reopen

RANK_SEED = 10_000_019
"""Between the seeds of dropout of two processes."""

MODULE = "natgrad_apps.graphs.cli"
GO, STOP, END = "go", "stop", "end"


def open_learner(config: TrainConfig, processes: Processes) -> Learner:
    """The trainer of this process, joined with the others'.

    Args:
        config: The run.
        processes: Those that train together.

    Raises:
        ConfigError: It cannot be made, or the task cannot be shared.
    """
    trainer = runs.open_learner(config)
    if processes.size > 1:
        trainer.distribute()
        torch.manual_seed(config.seed + RANK_SEED * processes.rank)
    return trainer


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


def follow(trainer: Learner, processes: Processes) -> None:
    """The part in a run of a process that does not lead.

    Args:
        trainer: Joined with the others.
        processes: Those that train together.

    Raises:
        SystemExit: The run was interrupted.
    """
    with InterruptFlag():  # signals reach the leading process too, which decides
        while (word := processes.told(GO)) == GO:
            trainer.advance()
            if processes.told(False):
                gather(trainer, "", processes)
        if word == STOP:
            gather(trainer, "", processes)
            raise SystemExit(INTERRUPTED)  # the leading process tells the user how to continue


def gather(trainer: Learner, config_yaml: str, processes: Processes) -> dict[str, bytes]:
    """The files of a checkpoint: those of the leading process, and the states of the others under names of their own."""
    everybody = processes.gathered(runs.pack(trainer, config_yaml))
    files = dict(everybody[0]) if everybody else {}
    return files | {_name(rank): own[runs.STATE] for rank, own in enumerate(everybody) if rank > 0}


def own_files(files: Mapping[str, bytes], processes: Processes) -> dict[str, bytes]:
    """The part of a checkpoint that belongs to this process."""
    return {runs.STATE: files[runs.STATE if processes.leads else _name(processes.rank)]}


def reopened(
    path: Path, processes: Processes, stack: ExitStack
) -> tuple[Resumed[TrainConfig] | None, TrainConfig, Mapping[str, bytes]] | None:
    """Open a run that is to be continued, on every process; None if it is complete, or if the leading process could not.

    Args:
        path: The run folder.
        processes: Those that are to continue it.
        stack: Closes the folder.

    Returns:
        The open run on the leading process, else None; its settings, and the files of its last checkpoint.

    Raises:
        ConfigError: The run cannot be continued, or not by this number of processes; raised on the leading process.
    """
    run: Resumed[TrainConfig] | None = None

    def check() -> None:
        nonlocal run
        run = reopen(path, TrainConfig, runs.PROGRAM, stack)
        count = 1 + sum(name.startswith(_PREFIX) for name in run.files) if run is not None else processes.size
        if count != processes.size:
            given = f"the run {str(path)!r} has {count} processes, not {processes.size}"
            raise ConfigError(f"{given}; to continue: {resume_command(path, count)}")

    if not agreed(processes, check):
        return None
    shared = processes.told(None if run is None else (run.config, run.files))
    return None if shared is None else (run, *shared)


def resume_command(path: Path, size: int) -> str:
    """The command that continues a run."""
    start = runs.PROGRAM if size == 1 else f"torchrun --nproc-per-node {size} -m {MODULE}"
    return f"{start} train --resume {shlex.quote(str(path))}"


_PREFIX = "rank_"


def _name(rank: int) -> str:
    return f"{_PREFIX}{rank}_{runs.STATE}"
