"""Pictures of runs: accuracy and loss over epochs, and the nodes in the plane by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import figures, metrics
from natgrad_apps.runner.figures import COLORS
from natgrad_apps.runner.folder import require_run

if TYPE_CHECKING:
    from natgrad_apps.graphs.trainer import Trainer

PARTS = ("train", "val", "test")
WORDS = {"train": "training", "val": "validation", "test": "test"}


def plot_run(path: Path, trainer: Trainer) -> list[Path]:
    """Curves and embedding of one run, into its ``figures/``.

    Args:
        path: The run folder.
        trainer: With the weights to draw.

    Returns:
        The files.
    """
    return [
        plot_curves([path], path / "figures" / "curves.png"),
        plot_embedding(trainer, path / "figures" / "embedding.png"),
    ]


def plot_curves(paths: Sequence[Path], out: Path) -> Path:
    """Accuracy and loss over epochs of one run or several.

    Args:
        paths: Run folders.
        out: The PNG file.

    Returns:
        The file.

    Raises:
        ConfigError: A folder is no run folder or has no epoch yet, or the picture cannot be written.
    """
    figure, (upper, lower) = figures.new_figure("Learning curves: " + ", ".join(p.name for p in paths), 2)
    alone = len(paths) == 1
    for index, path in enumerate(paths):
        require_run(path)
        file = path / "metrics.csv"
        rows = metrics.read_rows(file) if file.is_file() else []
        if not rows:
            raise ConfigError(f"{str(path)!r} has nothing to draw: no epoch has ended yet")
        for number, part in enumerate(PARTS if alone else ("val", "test")):
            color, style = (COLORS[number], "-") if alone else (COLORS[index % len(COLORS)], "-" if part == "test" else "--")
            label = WORDS[part] if alone else f"{path.name}, {WORDS[part]}"
            _draw(upper, rows, f"{part}_accuracy", (color, style, label), 100.0)
            _draw(lower, rows, f"{part}_nll", (color, style, label), 1.0)
    upper.set_ylabel("accuracy (%)")
    lower.set_ylabel("mean negative log-likelihood (nats)")
    for axis in (upper, lower):
        axis.set_xlabel("epoch")
        axis.legend(frameon=False, fontsize=8)
    figures.save(figure, out)
    return out


def plot_embedding(trainer: Trainer, out: Path) -> Path:
    """Nodes at the first two principal components of their centred log-probabilities, coloured by class; test errors are ringed.

    Args:
        trainer: With the weights to draw.
        out: The PNG file.

    Returns:
        The file.
    """
    logits = trainer.predict().cpu().double()
    centred = logits.log_softmax(-1)
    centred = centred - centred.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary; fixing it keeps pictures of equal runs equal.
    axes = axes[:2] * torch.where(axes[:2].sum(1, keepdim=True) < 0, -1.0, 1.0)
    points = (centred @ axes.mT).numpy()
    y, data = trainer.data.y.cpu().numpy(), trainer.data
    figure, (axis,) = figures.new_figure(f"{data.name}: predictions of the nodes, {trainer.split}", 1)
    for c in range(data.classes):
        own = y == c
        label = data.class_names[c] if data.class_names else f"class {c}"
        color = COLORS[c % len(COLORS)]
        axis.scatter(points[own, 0], points[own, 1], s=6, color=color, label=label, marker="o" if c < len(COLORS) else "^")
    wrong = np.zeros(len(y), dtype=bool)
    wrong[trainer.split.test.numpy()] = True
    wrong &= logits.argmax(-1).numpy() != y
    axis.scatter(points[wrong, 0], points[wrong, 1], s=24, facecolors="none", edgecolors="black", linewidths=0.4, label="wrong test node")
    axis.set_xlabel("first principal component of log-probabilities")
    axis.set_ylabel("second principal component")
    axis.legend(frameon=False, fontsize=7, loc="best")
    figures.save(figure, out)
    return out


def _draw(axis: Axes, rows: list[dict[str, str]], name: str, look: tuple[str, str, str], scale: float) -> None:
    pairs = metrics.column(rows, name)
    if pairs:
        color, style, label = look
        axis.plot(
            [step for step, _ in pairs], [scale * value for _, value in pairs], color=color, linestyle=style, label=label, linewidth=1.3
        )
