"""The verb ``check``: everything that can be known about a run before it starts. Writes nothing."""

from __future__ import annotations

import statistics
import time

from torch import nn

from natgrad_apps.bayes.config import TrainConfig
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.foreign import foreign_inputs
from natgrad_apps.bayes.training import open_fit

TRIAL_STEPS = 20


def check(config: TrainConfig) -> str:
    """Make data, network and posterior, try a few steps, and report sizes and cost. Writes nothing.

    Args:
        config: The run.

    Raises:
        ConfigError: The run could not start.
    """
    fit = open_fit(config)
    fit.start_from_file()
    foreign_inputs(fit, config.foreign)
    times = []
    for _ in range(min(TRIAL_STEPS, fit.steps_total)):
        start = time.perf_counter()
        fit.step()
        times.append(time.perf_counter() - start)
    # The first step allocates.
    each = statistics.fmean(times[1:] or times)
    parameters = sum(p.numel() for p in fit.vi.model.parameters())
    bayesian = sum(p.numel() for p in fit.vi.posterior.mean.values())
    task = f"{len(fit.schema.classes)} classes" if fit.schema.classes else "regression"
    lines = [
        f"data       {fit.schema.name}, {task}: {fit.schema.rows} training rows, {len(fit.split.test)} test rows",
        f"inputs     {len(fit.schema.features)}" + (f"; never vary: {', '.join(fit.table.constant)}" if fit.table.constant else ""),
        f"network    {' - '.join(str(n) for n in _widths(fit))}, {parameters:,} parameters, {bayesian:,} of them Bayesian, on {fit.device}",
        f"method     {config.method}: {fit.vi.method}",
        f"run        {fit.steps_total:,} steps: {config.training.epochs} epochs, batches of about {config.training.batch_size}",
        f"measured   {1e3 * each:.2f} ms a step",
        f"estimate   about {each * fit.steps_total:.0f} s of training",
    ]
    return "\n".join(lines)


def _widths(fit: Fit) -> list[int]:
    layers = [module for module in fit.vi.model.modules() if isinstance(module, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]
