"""The verb ``check``: what a run would do, its blocks and its cost. Writes nothing."""

from __future__ import annotations

import time
import warnings

from natgrad_apps.graphs import runs
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.coverage import coverage, describe
from natgrad_apps.optim import NaturalGradient

EPOCHS = 11


def check(config: TrainConfig) -> str:
    """Load the graph, build the network, try a few epochs.

    Args:
        config: The run.

    Returns:
        The report.

    Raises:
        ConfigError: The run could not start.
    """
    trainer = runs.open_learner(config)
    times = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table below says what falls back
        for _ in range(EPOCHS):
            start = time.perf_counter()
            trainer.step()
            times.append(time.perf_counter() - start)
            trainer.progress.epoch += 1
    weights = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    # The first epoch allocates and warms up.
    mean = trainer.batches * sum(times[1:]) / len(times[1:])
    lines = [
        f"{'graphs' if config.task == 'graphs' else 'graph ':<11}{trainer.data}",
        f"split      {trainer.split}",
        f"model      {config.model.name}, {weights:,} weights, on {trainer.device}",
        f"cost       {1e3 * mean:.1f} ms an epoch of {trainer.batches} steps, from {EPOCHS - 1} of them; at most {config.epochs} epochs: "
        f"about {mean * config.epochs:.0f} s without evaluations",
    ]
    if isinstance(trainer.optimizer, NaturalGradient):
        lines += ["", describe(coverage(trainer.model, trainer.optimizer.preconditioner))]
    else:
        lines += ["", f"{config.optimizer.name} preconditions no layer"]
    return "\n".join(lines)
