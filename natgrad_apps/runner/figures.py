"""Pictures of learning curves, drawn without a display."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic

Floats = NDArray[np.float64]
Mark = Artist | tuple[Artist, ...]
"""What a legend shows beside a text: one thing, or several on top of each other."""
BOOTSTRAP_SAMPLES = 2000
CONFIDENCE = 0.95
GRID_POINTS = 200
# Okabe & Ito's palette: told apart by colour-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
Dashes = Literal["-", "--", ":"]
DASHES: tuple[Dashes, ...] = ("-", "--", ":")
MARKERS = ("o", "s", "^")
WIDTH, NAME_CHARACTERS, INCHES_A_CHARACTER = 8.0, 44, 0.068


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of one run.

    Attributes:
        steps: Where it was measured, ascending.
        values: What was measured.
        spread: Half the length of an error bar at each point; empty for none.
    """

    steps: Floats
    values: Floats
    spread: Floats = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Look:
    """How the marks of one experiment are told from those of others.

    Attributes:
        color: Of everything.
        dashes: Line style of its curve.
        marker: Of its single points.
    """

    color: str
    dashes: Dashes
    marker: str


def look(index: int) -> Look:
    """The look of the experiment of a number: where the colors begin anew, line styles and markers are others (21 looks)."""
    turn = index // len(COLORS)
    return Look(COLORS[index % len(COLORS)], DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)])


def new_figure(title: str, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with panels one above the other."""
    figure = Figure(figsize=(WIDTH, 0.7 + 4.1 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    axes = [figure.add_subplot(panels, 1, i + 1) for i in range(panels)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure, axes


def names_beside(axis: Axes, names: Mapping[str, Artist]) -> None:
    """A legend to the right of a panel, where it hides nothing; the figure becomes as much wider, and higher if there are many.

    Args:
        axis: The panel.
        names: What is shown for each; long ones are broken into lines.
    """
    texts = [textwrap.fill(name, NAME_CHARACTERS, break_on_hyphens=False) for name in names]
    axis.legend(list(names.values()), texts, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    lines = [line for text in texts for line in text.split("\n")]
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    width, height = figure.get_size_inches()
    missing = 0.19 * len(lines) - 3.0
    figure.set_size_inches(max(width, WIDTH + 0.6 + INCHES_A_CHARACTER * max(map(len, lines))), height + max(missing, 0.0))


def key_below(figure: Figure, marks: Mapping[str, Mark], columns: int = 3) -> None:
    """One legend for all panels, below them; the figure becomes as much higher.

    Args:
        figure: The figure.
        marks: What is shown for each text.
        columns: Entries beside each other.
    """
    handles: list[Any] = list(marks.values())  # the stubs know of no tuples
    figure.legend(handles, list(marks), frameon=False, fontsize=8, loc="outside lower center", ncols=columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * -(-len(marks) // columns))


def save(figure: Figure, path: Path) -> None:
    """Write a PNG.

    Raises:
        ConfigError: The folder cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"the picture {str(path)!r} cannot be written: {error.strerror}") from error


def smooth(curve: Curve, span: float = 0.05) -> Curve:
    """Gaussian-weighted running mean over a share of the curve's length, in steps: uneven spacing does no harm.

    Args:
        curve: What to smooth.
        span: Standard deviation of the weights as a share of the range of steps.
    """
    if len(curve.steps) < 3:
        return curve
    width = max(span * float(curve.steps[-1] - curve.steps[0]), 1e-12)
    weights = np.exp(-0.5 * ((curve.steps[:, None] - curve.steps[None, :]) / width) ** 2)
    return Curve(curve.steps, weights @ curve.values / weights.sum(1))


def on_common_grid(curves: Sequence[Curve]) -> tuple[Floats, Floats]:
    """Several runs at the steps that all of them cover, by linear interpolation.

    Returns:
        Steps ``[T]`` and values ``[runs, T]``.

    Raises:
        ConfigError: The runs have no common range of steps.
    """
    low, high = max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves)
    if low > high:
        raise ConfigError("the runs have no steps in common, so no mean can be drawn")
    grid = np.linspace(low, high, GRID_POINTS if high > low else 1)
    return grid, np.stack([np.interp(grid, c.steps, c.values) for c in curves])


def interquartile_mean(values: Floats, axis: int = 0) -> Floats:
    """Mean of the middle half of the runs: a quarter of them, rounded down, is left out at each end.

    Below four runs it is the mean. Reference: Agarwal, Schwarzer, Castro, Courville & Bellemare, Deep reinforcement learning at the edge
    of the statistical precipice, NeurIPS 2021, arXiv 2108.13264.

    Args:
        values: Any array.
        axis: The axis of the runs.
    """
    count = values.shape[axis]
    cut = count // 4
    middle = np.take(np.sort(values, axis=axis), np.arange(cut, count - cut), axis=axis)
    mean: Floats = np.asarray(middle.mean(axis=axis))
    return mean


def middle_name(count: int) -> str:
    """What `interquartile_mean` is for so many runs."""
    return "interquartile mean" if count // 4 else "mean"


def bootstrap_band(values: Floats, seed: int = 0) -> tuple[Floats, Floats]:
    """Percentile bootstrap over runs of their interquartile mean, at each step.

    Args:
        values: ``[runs, T]``.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end, ``[T]`` each, of the `CONFIDENCE` interval.
    """
    draws = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP_SAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(interquartile_mean(values[draws], axis=1), [tail, 1 - tail], axis=0)
    return low, high
