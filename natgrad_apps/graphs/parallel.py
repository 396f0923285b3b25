"""A graph run of several processes: each takes its part of every batch, and all of them take every step together.

The first process owns the run folder and says before each step whether there is one; the others follow. A checkpoint holds the state of
each, because dropout and sampled labels differ between them.
"""

from __future__ import annotations

import torch

from natgrad_apps.graphs import runs
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.runner.command import INTERRUPTED
from natgrad_apps.runner.interrupts import InterruptFlag
from natgrad_apps.runner.processes import Processes

RANK_SEED = 10_000_019
"""Between the seeds of dropout of two processes."""

COMMAND = (runs.PROGRAM, "natgrad_apps.graphs.cli")
"""Console script, and the module that it runs."""

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
                processes.gathered_files(runs.pack(trainer, ""))
        if word == STOP:
            processes.gathered_files(runs.pack(trainer, ""))
            raise SystemExit(INTERRUPTED)  # the leading process tells the user how to continue
