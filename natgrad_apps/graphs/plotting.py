"""Pictures of runs: accuracy and loss over epochs, the nodes in the plane by class and by uncertainty, and reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray
from torch import Tensor

from natgrad_apps.bayes.metrics import calibration_error, reliability
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.measures import BINS
from natgrad_apps.graphs.splits import Split
from natgrad_apps.runner import figures, metrics
from natgrad_apps.runner.figures import COLORS, Floats
from natgrad_apps.runner.folder import require_run

if TYPE_CHECKING:
    from natgrad_apps.graphs.learning import Learner

PARTS = ("train", "val", "test")
SCORES = ("accuracy", "auc")
WORDS = {"train": "training", "val": "validation", "test": "test"}


def plot_run(path: Path, trainer: Learner) -> list[Path]:
    """Curves of one run, and of a node classifier the embedding too, into its ``figures/``.

    Args:
        path: The run folder.
        trainer: With the weights to draw.

    Returns:
        The files.
    """
    curves = plot_curves([path], path / "figures" / "curves.png")
    return [curves, *plot_predictions(trainer, path / "figures" / "embedding.png")]


def plot_predictions(trainer: Learner, out: Path) -> list[Path]:
    """The embedding of a node classifier; nothing for other tasks."""
    from natgrad_apps.graphs.trainer import Trainer  # noqa: PLC0415 - pictures of posteriors need no trainer

    return [plot_embedding(trainer.data, trainer.split, trainer.predict(), out)] if isinstance(trainer, Trainer) else []


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
            for measured in SCORES:
                _draw(upper, rows, f"{part}_{measured}", (color, style, label), 100.0)
            _draw(lower, rows, f"{part}_nll", (color, style, label), 1.0)
    upper.set_ylabel("area under the curve (%)" if "val_auc" in rows[0] else "accuracy (%)")
    lower.set_ylabel("mean negative log-likelihood (nats)")
    for axis in (upper, lower):
        axis.set_xlabel("epoch")
        axis.legend(frameon=False, fontsize=8)
    figures.save(figure, out)
    return out


def plot_embedding(data: GraphData, split: Split, log_p: Tensor, out: Path) -> Path:
    """Nodes at the first two principal components of the roots of their probabilities, coloured by class; test errors are ringed.

    Args:
        data: The graph.
        split: Its split.
        log_p: Log-probabilities or logits of all nodes, ``[N, C]``.
        out: The PNG file.

    Returns:
        The file.
    """
    points, y = _plane(log_p), data.y.numpy(force=True)
    figure, (axis,) = figures.new_figure(f"{data.name}: predictions of the nodes\n{split}", 1)
    for c in range(data.classes):
        own = y == c
        label = data.class_names[c] if data.class_names else f"class {c}"
        color = COLORS[c % len(COLORS)]
        axis.scatter(points[own, 0], points[own, 1], s=6, color=color, label=label, marker="o" if c < len(COLORS) else "^")
    _ring_errors(axis, points, y, split, log_p)
    _name_plane(axis)
    axis.legend(frameon=False, fontsize=7, loc="best")
    figures.save(figure, out)
    return out


def plot_uncertainty(data: GraphData, split: Split, log_p: Tensor, kinds: Mapping[str, Tensor], out: Path) -> Path:
    """Nodes where `plot_embedding` has them, coloured by each kind of uncertainty.

    Args:
        data: The graph.
        split: Its split.
        log_p: Log-probabilities of all nodes, ``[N, C]``.
        kinds: Uncertainty of each node in nats, ``[N]``, by what it is called.
        out: The PNG file.

    Returns:
        The file.
    """
    points, y = _plane(log_p), data.y.numpy(force=True)
    figure, axes = figures.new_figure(f"{data.name}: uncertainty of the nodes\n{split}", len(kinds))
    for axis, (name, values) in zip(axes, kinds.items(), strict=True):
        v = values.numpy(force=True)
        order = np.argsort(v)  # the most uncertain ones on top
        drawn = axis.scatter(points[order, 0], points[order, 1], s=7, c=v[order], cmap="viridis")
        figure.colorbar(drawn, ax=axis, label=f"{name} (nats)")
        _ring_errors(axis, points, y, split, log_p)
        _name_plane(axis)
        axis.legend(frameon=False, fontsize=7, loc="best")
    figures.save(figure, out)
    return out


def plot_reliability(data: GraphData, split: Split, curves: Mapping[str, Tensor], out: Path) -> Path:
    """Accuracy over confidence in bins of equal width, and how many test nodes each bin has.

    Args:
        data: The graph.
        split: Its split; it has test nodes.
        curves: Log-probabilities of all nodes, ``[N, C]``, by what they are called.
        out: The PNG file.

    Returns:
        The file.
    """
    test = split.test
    figure, (upper, lower) = figures.new_figure(f"{data.name}: reliability\n{split}", 2)
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    width = 1 / BINS
    for index, (name, log_p) in enumerate(curves.items()):
        p = log_p[test].double().exp().cpu()
        count, confidence, right = (t.numpy() for t in reliability(p, data.y[test].cpu(), BINS))
        some = count > 0
        color = COLORS[index % len(COLORS)]
        error = calibration_error(p, data.y[test].cpu(), BINS)
        upper.plot(confidence[some], right[some], "o-", color=color, label=f"{name}: ECE {100 * error:.1f} %")
        shift = (index + 0.5) * width / len(curves)
        lower.bar(np.arange(BINS) * width + shift, count, width=0.9 * width / len(curves), color=color, label=name)
    upper.set_ylabel("accuracy")
    lower.set_ylabel("test nodes")
    for axis in (upper, lower):
        axis.set_xlim(0, 1)
        axis.set_xlabel("confidence (largest probability)")
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    figures.save(figure, out)
    return out


def _plane(log_p: Tensor) -> Floats:
    """First two principal components of the square roots of the probabilities, ``[N, 2]``.

    Their distance is Hellinger's, which is bounded: a node that the network is very sure of does not stretch the picture.
    """
    roots = log_p.cpu().double().softmax(-1).sqrt()
    centred = roots - roots.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary; fixing it keeps pictures of equal runs equal.
    axes = axes[:2] * torch.where(axes[:2].sum(1, keepdim=True) < 0, -1.0, 1.0)
    return np.asarray((centred @ axes.mT).numpy(), dtype=np.float64)


def _ring_errors(axis: Axes, points: Floats, y: NDArray[np.int64], split: Split, log_p: Tensor) -> None:
    wrong = np.zeros(len(y), dtype=bool)
    wrong[split.test.numpy(force=True)] = True
    wrong &= log_p.argmax(-1).numpy(force=True) != y
    axis.scatter(points[wrong, 0], points[wrong, 1], s=24, facecolors="none", edgecolors="black", linewidths=0.4, label="wrong test node")


def _name_plane(axis: Axes) -> None:
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("first principal component of the roots of probabilities")
    axis.set_ylabel("second principal component")


def _draw(axis: Axes, rows: list[dict[str, str]], name: str, look: tuple[str, str, str], scale: float) -> None:
    pairs = metrics.column(rows, name)
    if pairs:
        color, style, label = look
        axis.plot(
            [step for step, _ in pairs], [scale * value for _, value in pairs], color=color, linestyle=style, label=label, linewidth=1.3
        )
