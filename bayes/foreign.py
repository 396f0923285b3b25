"""Inputs that are not from the training distribution, and how well uncertainty tells them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from torch import Tensor

from natgrad_apps.bayes import metrics
from natgrad_apps.bayes.config import ForeignConfig
from natgrad_apps.bayes.data import read_inputs
from natgrad_apps.bayes.data.table import Floats
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.prediction import Prediction, RegressionPrediction
from natgrad_apps.errors import ConfigError

SEED = 77


def foreign_inputs(fit: Fit, config: ForeignConfig) -> Floats:
    """Foreign rows ``[M, D]``, in the units of the inputs; the same on every call.

    Args:
        fit: A training, whose test rows are changed.
        config: How.

    Raises:
        ConfigError: The rows are no square images, or the table cannot be used.
    """
    x = fit.table.x[fit.split.test]
    generator = np.random.default_rng(SEED)
    if config.kind == "moved":
        return np.asarray(x + config.distance * generator.choice([-1.0, 1.0], size=x.shape) * fit.scales.x.scale)
    if config.kind == "permuted":
        return np.asarray(generator.permuted(x, axis=0))
    if config.kind == "rotated":
        side = math.isqrt(x.shape[1])
        if side**2 != x.shape[1] or side < 2:
            raise ConfigError(
                f"foreign.kind=rotated needs rows that are square images, {fit.table.name} has {x.shape[1]} inputs; use moved"
            )
        return np.asarray(np.rot90(x.reshape(-1, side, side), axes=(1, 2)).reshape(len(x), -1))
    assert config.table is not None  # the configuration has checked it
    return read_inputs(Path(config.table), fit.table.features)


def describe(config: ForeignConfig) -> str:
    """The foreign inputs in words."""
    return {
        "moved": f"moved by {config.distance:g} training deviations in every column",
        "permuted": "columns permuted among the rows",
        "rotated": "images turned by 90 degrees",
        "table": f"rows of {Path(config.table or '').name}",
    }[config.kind]


def uncertainty(found: Prediction) -> Tensor:
    """What tells foreign inputs, ``[N]``: epistemic deviation for regression, entropy in nats for classification."""
    return found.epistemic.sqrt() if isinstance(found, RegressionPrediction) else found.entropy


def detection(own: Tensor, foreign: Tensor) -> dict[str, float]:
    """AUROC and FPR95 of uncertainties.

    Args:
        own: Of test inputs, ``[N]``.
        foreign: Of foreign inputs, ``[M]``.
    """
    return {"auroc": metrics.auroc(own, foreign), "fpr95": metrics.fpr95(own, foreign)}
