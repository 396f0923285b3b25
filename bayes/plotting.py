"""Pictures of a fitted posterior: reliability, predictive band, uncertainty of own and of foreign inputs, and the course of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from natgrad_apps.bayes import metrics
from natgrad_apps.bayes.config import ForeignConfig
from natgrad_apps.bayes.data.table import Floats
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.foreign import describe, detection, foreign_inputs, uncertainty
from natgrad_apps.bayes.prediction import ClassificationPrediction, Prediction, RegressionPrediction
from natgrad_apps.runner import figures
from natgrad_apps.runner.figures import COLORS
from natgrad_apps.runner.metrics import column, read_rows

LEVELS = np.linspace(0.05, 0.95, 19)


def coverage(found: RegressionPrediction, y: Tensor, levels: Floats = LEVELS) -> Floats:
    """Share of targets in the central interval of each probability, ``[L]``.

    Args:
        found: Predictions.
        y: Targets ``[N]``.
        levels: Probabilities of the intervals.
    """
    shares = []
    for level in levels:
        low, high = found.quantile((1 - level) / 2), found.quantile((1 + level) / 2)
        shares.append(float(((y >= low) & (y <= high)).double().mean()))
    return np.array(shares)


def plot_run(fit: Fit, config: ForeignConfig, path: Path) -> list[Path]:
    """Draw every picture of a run into its folder.

    Args:
        fit: A finished training.
        config: Foreign inputs.
        path: The run folder.

    Returns:
        The PNG files.
    """
    rows = fit.split.test
    own, outside = fit.predict(fit.table.x[rows]), fit.predict(foreign_inputs(fit, config))
    y = torch.as_tensor(fit.table.y[rows], device=fit.device)
    folder = path / "figures"
    done = [_reliability(own, y, fit, folder), _uncertainty(own, outside, (_name(fit), describe(config)), folder)]
    if isinstance(own, RegressionPrediction):
        done.append(_band(own, y, fit, folder))
    file = path / "metrics.csv"
    if file.is_file():
        done.append(_training(file, fit, folder))
    return done


def _panel(title: str) -> tuple[Figure, Axes]:
    figure, (axis,) = figures.new_figure(title)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    return figure, axis


def _name(fit: Fit) -> str:
    return f"{fit.recipe.method} on {fit.schema.name}"


def _reliability(found: Prediction, y: Tensor, fit: Fit, folder: Path) -> Path:
    figure, axis = _panel(f"Reliability: {_name(fit)}, {len(y)} test rows")
    axis.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    if isinstance(found, RegressionPrediction):
        axis.plot(LEVELS, coverage(found, y), "o-", color=COLORS[0], label="test rows")
        axis.set_xlabel("probability of the central predictive interval")
        axis.set_ylabel("share of targets inside")
    else:
        count, confidence, right = (t.numpy(force=True) for t in metrics.reliability(found.mean, y))
        some = count > 0
        centers = (np.arange(metrics.BINS) + 0.5) / metrics.BINS
        axis.bar(centers[some], right[some], width=0.9 / metrics.BINS, color=COLORS[5], label="accuracy of a bin")
        axis.plot(confidence[some], right[some], "o", color=COLORS[0], label="at its mean confidence")
        for x, n in zip(centers[some], count[some], strict=True):
            axis.annotate(f"{n:.0f}", (x, 0.01), ha="center", va="bottom", fontsize=7)
        axis.set_xlabel(f"confidence (ECE {metrics.calibration_error(found.mean, y):.3f}, {metrics.BINS} bins; numbers are test rows)")
        axis.set_ylabel("accuracy")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.05)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return _save(figure, folder / "reliability.png")


def _uncertainty(own: Prediction, outside: Prediction, names: tuple[str, str], folder: Path) -> Path:
    inside, foreign = uncertainty(own), uncertainty(outside)
    figure, axis = _panel(f"Uncertainty in and out of the training distribution: {names[0]}")
    values = [inside.numpy(force=True), foreign.numpy(force=True)]
    bins = np.linspace(0, max(float(np.max(v)) for v in values) or 1.0, 40).tolist()
    labels = ("test inputs", f"foreign: {names[1]}")
    for value, color, label in zip(values, COLORS, labels, strict=False):
        axis.hist(value, bins=bins, alpha=0.6, color=color, label=label)
    what = "entropy (nats)" if isinstance(own, ClassificationPrediction) else "epistemic standard deviation (unit of the target)"
    score = "AUROC {auroc:.3f}, FPR95 {fpr95:.3f}".format(**detection(inside, foreign))
    axis.set_xlabel(f"{what}; {score}")
    axis.set_ylabel("rows")
    axis.legend(frameon=False, fontsize=8)
    return _save(figure, folder / "uncertainty.png")


def _band(found: RegressionPrediction, y: Tensor, fit: Fit, folder: Path) -> Path:
    interval = fit.recipe.prediction.interval
    order = found.mean.argsort()
    place = np.arange(len(order))

    def sorted_values(values: Tensor) -> Floats:
        return np.asarray(values[order].numpy(force=True))

    low, high = found.quantile((1 - interval) / 2), found.quantile((1 + interval) / 2)
    std = found.epistemic.sqrt()
    inside = float(((y >= low) & (y <= high)).double().mean())
    figure, axis = _panel(f"Predictive band: {_name(fit)}")
    axis.fill_between(
        place,
        sorted_values(low),
        sorted_values(high),
        color=COLORS[0],
        alpha=0.2,
        linewidth=0,
        label=f"{interval:.0%} interval ({inside:.0%} inside)",
    )
    axis.fill_between(
        place,
        sorted_values(found.mean - 2 * std),
        sorted_values(found.mean + 2 * std),
        color=COLORS[0],
        alpha=0.35,
        linewidth=0,
        label="2 epistemic deviations",
    )
    axis.plot(place, sorted_values(found.mean), color=COLORS[0], linewidth=1.5, label="predictive mean")
    axis.plot(place, sorted_values(y), ".", color="black", markersize=4, label="target")
    axis.set_xlabel("test rows, in the order of the predicted mean")
    axis.set_ylabel(fit.schema.target)
    axis.legend(frameon=False, fontsize=8)
    return _save(figure, folder / "predictive_band.png")


def _training(file: Path, fit: Fit, folder: Path) -> Path:
    rows = read_rows(file)
    figure, axes = figures.new_figure(f"Training: {_name(fit)}", 2)
    for name, color, label in (
        ("train/nelbo", COLORS[0], "negative ELBO"),
        ("train/expected_nll", COLORS[1], "expected NLL (batch estimate)"),
    ):
        points = column(rows, name)
        axes[0].plot([s for s, _ in points], [v for _, v in points], color=color, label=label)
    points = column(rows, "train/kl")
    axes[1].plot([s for s, _ in points], [v for _, v in points], color=COLORS[2], label="KL(posterior || prior)")
    for axis in axes:
        axis.set_xlabel("steps")
        axis.set_ylabel("nats, whole training set")
        axis.legend(frameon=False, fontsize=8)
    return _save(figure, folder / "training.png")


def _save(figure: Figure, path: Path) -> Path:
    figures.save(figure, path)
    return path
