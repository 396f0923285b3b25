"""Pictures of several classifiers side by side: reliability, and uncertainty of own and of foreign images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from natgrad_apps.bayes.metrics import BINS, auroc, calibration_error, reliability
from natgrad_apps.bayes.prediction import ClassificationPrediction
from natgrad_apps.runner import figures
from natgrad_apps.runner.figures import COLORS

FEW = 5
"""Bins with fewer images are not drawn: their accuracy is chance."""


def draw(found: Mapping[str, Mapping[str, ClassificationPrediction]], y: Tensor, path: Path) -> None:
    """A panel of reliability, and one of the entropy's distribution for each method.

    Args:
        found: Predictions by method and set; the set ``test`` has classes.
        y: Its classes ``[N]``.
        path: The PNG.
    """
    figure, axes = figures.new_figure(path.stem, 1 + len(found))
    axes[0].plot([0, 1], [0, 1], color="0.6", linestyle="--")
    for (method, sets), color in zip(found.items(), COLORS, strict=False):
        count, confidence, right = (t.numpy() for t in reliability(sets["test"].mean, y))
        some = count >= FEW
        error = calibration_error(sets["test"].mean, y)
        axes[0].plot(confidence[some], right[some], "o-", color=color, label=f"{method}: ECE {100 * error:.2f} %")
    axes[0].set_xlabel(f"confidence ({BINS} bins; those with fewer than {FEW} images are left out)")
    axes[0].set_ylabel("accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    bins = np.linspace(0, np.log(10), 40).tolist()
    for axis, (method, sets) in zip(axes[1:], found.items(), strict=True):
        for (name, prediction), color in zip(sets.items(), COLORS, strict=False):
            label = name if name == "test" else f"{name}: AUROC {auroc(sets['test'].entropy, prediction.entropy):.3f}"
            axis.hist(prediction.entropy.numpy(), bins=bins, alpha=0.5, density=True, color=color, label=label)
        axis.set_yscale("log")
        axis.set_xlabel(f"{method}: predictive entropy (nats)")
        axis.set_ylabel("density")
        axis.legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.xaxis.set_major_formatter(ScalarFormatter())
    figures.save(figure, path)
