"""Learning curves from run folders: one run, or the (interquartile) mean of several seeds with a bootstrap band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from natgrad_apps.agents.experiments import Experiment, NothingToDrawError, Run, gather
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import figures
from natgrad_apps.runner.figures import CONFIDENCE, Curve, Floats, Look, Mark, look

__all__ = ["NothingToDrawError", "Run", "plot_runs"]

FEW = 3
"""Up to so many experiments a panel shows the unsmoothed returns, single seeds and error bars too."""
_GRAY = "0.35"
_SEED_DASHES = (0, (1, 1))
_DOTS: dict[str, Any] = {"linestyle": "none", "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.7}


class _Key:
    """What the marks of a picture mean: each is told once, whatever its color, and only what can be seen."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def draw(self, figure: Figure) -> None:
        """Put the key below the panels."""

        def line(**style: Any) -> Line2D:
            return Line2D([], [], color=_GRAY, **style)

        smooth = "smoothed" if self.seen & {"rough", "smoothed"} else "episodes of each log step"
        bar, dot = line(marker="|", markersize=13, linestyle="none"), line(marker="o", **_DOTS)
        meanings: dict[str, tuple[str, Mark]] = {
            "rough": ("training, episodes of each log step", line(alpha=0.6, linewidth=0.8)),
            "curve": (f"training, {smooth}", line(linewidth=2)),
            "point": ("training, the only log step", line(marker="x", linestyle="none")),
            "seeds": ("training, single seeds", line(alpha=0.8, linewidth=0.8, linestyle=_SEED_DASHES)),
            "band": (f"{CONFIDENCE:.0%} bootstrap interval over seeds", Patch(color=_GRAY, alpha=0.25, linewidth=0)),
            "evaluation": ("evaluation, mean over episodes", dot),
            "bars": ("evaluation, mean over episodes (bar: standard deviation)", (bar, dot)),
        }
        shown = self.seen - ({"evaluation"} if "bars" in self.seen else set())
        figures.key_below(figure, dict(meaning for name, meaning in meanings.items() if name in shown))


def plot_runs(paths: Sequence[Path], out: Path) -> Path:
    """Draw learning curves: one panel an environment, one curve an experiment; runs that differ in their seed only are one experiment.

    Args:
        paths: Run folders, and groups of them that ``train --seeds`` made. A folder that is given twice is drawn once, and a run in
            which no episode has ended is left out if there are others.
        out: The PNG file.

    Returns:
        The file.

    Raises:
        ConfigError: A folder is no run folder, or the picture cannot be written.
        NothingToDrawError: No episode has ended in any run yet.
    """
    panels = gather(paths)
    several = len(panels) > 1
    everything = [experiment for experiments in panels.values() for experiment in experiments]
    title = "ACKTR" + (f" on {', '.join(panels)}" if len(panels) <= FEW else f" in {len(panels)} environments")
    title = f"Learning curves: {title}" if len(everything) > 1 else f"Learning curve: {title}, {_sample(everything[0])}"
    figure, axes = figures.new_figure(title, len(panels))
    key, looks = _Key(), _looks(panels)
    for axis, (environment, experiments) in zip(axes, panels.items(), strict=True):
        names = {}
        for experiment in experiments:
            style = looks[environment, experiment.name]
            _draw(axis, experiment, style, key, few=len(experiments) <= FEW)
            text = experiment.name if len(experiment.runs) == 1 else f"{experiment.name} ({_sample(experiment)})"
            names[text] = _sign(experiment, style)
        if len(experiments) > 1:
            figures.names_beside(axis, names)
        axis.set_ylabel("return (sum of rewards of an episode)")
        axis.set_xlabel("environment steps" + (" (4 frames each)" if "NoFrameskip" in environment else ""))
        if several:
            axis.set_title(environment + (f", {_sample(experiments[0])}" if len(experiments) == 1 else ""), fontsize=10)
    key.draw(figure)
    figures.save(figure, out)
    return out


def _sign(experiment: Experiment, style: Look) -> Line2D:
    """What the legend shows of an experiment: its curve and evaluations, as far as it has any."""
    curve = any(len(run.recent.steps) > 1 for run in experiment.runs)
    evaluated = any(len(run.evaluations.steps) for run in experiment.runs)
    marker = style.marker if evaluated else None if curve else "x"
    return Line2D([], [], color=style.color, linestyle=style.dashes if curve else "none", marker=marker, linewidth=2, markersize=5)


def _looks(panels: dict[str, list[Experiment]]) -> dict[tuple[str, str], Look]:
    """Colors by environment and name; a name that is in several panels has one color in all of them."""
    names = [e.name for experiments in panels.values() for e in experiments]
    shared = list(dict.fromkeys(names)) if len(set(names)) < len(names) else None
    return {
        (environment, e.name): look(i if shared is None else shared.index(e.name))
        for environment, experiments in panels.items()
        for i, e in enumerate(experiments)
    }


def _sample(experiment: Experiment) -> str:
    """What a curve stands for."""
    count = len(experiment.runs)
    if count == 1:
        return f"seed {experiment.runs[0].seed}"
    if _on_grid(experiment.runs) is None:
        return f"each of {count} seeds"
    return f"{figures.middle_name(count)} of {count} seeds"


def _draw(axis: Axes, experiment: Experiment, style: Look, key: _Key, *, few: bool) -> None:
    common = _on_grid(experiment.runs) if len(experiment.runs) > 1 else None
    if common is not None:
        _draw_seeds(axis, experiment.runs, common, (style, key), few=few)
        return
    for run in experiment.runs:
        _draw_run(axis, run, (style, key), few=few)


def _draw_run(axis: Axes, run: Run, marks: tuple[Look, _Key], *, few: bool) -> None:
    """Every point faintly where it is not on the curve, the smoothed curve, and the evaluations."""
    style, key = marks
    line, points = figures.smooth(run.recent), run.evaluations
    if not _coincide(run.recent, line):
        key.seen.add("rough" if few else "smoothed")
        if few:
            axis.plot(run.recent.steps, run.recent.values, color=style.color, alpha=0.3, linewidth=0.8)
    if len(line.steps) == 1:
        axis.plot(line.steps, line.values, "x", color=style.color)
        key.seen.add("point")
    elif len(line.steps):
        axis.plot(line.steps, line.values, color=style.color, linestyle=style.dashes, linewidth=2)
        key.seen.add("curve")
    if few and len(points.spread) == len(points.steps) > 0:
        axis.errorbar(points.steps, points.values, points.spread, fmt="none", ecolor=style.color, alpha=0.5, elinewidth=1, capsize=2)
        key.seen.add("bars")
    _draw_evaluations(axis, Curve(points.steps, points.values), style, key)


def _draw_seeds(
    axis: Axes, runs: Sequence[Run], common: tuple[list[Curve], Floats, Floats], marks: tuple[Look, _Key], *, few: bool
) -> None:
    """(Interquartile) mean of the smoothed curves with a bootstrap band, each seed faintly, and that of the evaluations."""
    style, key = marks
    curves, steps, values = common
    low, high = figures.bootstrap_band(values)
    for curve in curves if few else ():
        axis.plot(curve.steps, curve.values, color=style.color, alpha=0.5, linewidth=0.8, linestyle=_SEED_DASHES)
        key.seen.add("seeds")
    axis.fill_between(steps, low, high, color=style.color, alpha=0.2 if few else 0.12, linewidth=0)
    axis.plot(steps, figures.interquartile_mean(values), color=style.color, linestyle=style.dashes, linewidth=2)
    key.seen |= {"curve", "band"}
    if not all(_coincide(run.recent, curve) for run, curve in zip(runs, curves, strict=True)):
        key.seen.add("smoothed")
    evaluated = [dict(zip(run.evaluations.steps.tolist(), run.evaluations.values.tolist(), strict=True)) for run in runs]
    places = sorted(set.intersection(*(set(points) for points in evaluated)))
    if places:
        means = figures.interquartile_mean(np.array([[points[place] for place in places] for points in evaluated]))
        _draw_evaluations(axis, Curve(np.array(places), means), style, key)


def _draw_evaluations(axis: Axes, points: Curve, style: Look, key: _Key) -> None:
    if len(points.steps):
        axis.plot(points.steps, points.values, color=style.color, marker=style.marker, zorder=3, **_DOTS)
        key.seen.add("evaluation")


def _on_grid(runs: Sequence[Run]) -> tuple[list[Curve], Floats, Floats] | None:
    """Smoothed curves, and their values at common steps; None where they have none."""
    curves = [figures.smooth(run.recent) for run in runs]
    if not all(len(curve.steps) for curve in curves):
        return None
    try:
        return (curves, *figures.on_common_grid(curves))
    except ConfigError:
        return None


def _coincide(first: Curve, second: Curve) -> bool:
    """Whether one curve hides another at the same steps: they differ by less than the width of a line."""
    if not len(first.values):
        return True
    return bool(np.all(np.abs(first.values - second.values) <= 0.01 * np.ptp(first.values)))
